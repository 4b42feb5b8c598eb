"""Whole nets, normalised as the quantizer sees them: exported ones, and the real ones where their files are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from onnx_cbq.torch_graph import TorchGraph

CPU = torch.device("cpu")
# The goal set for this module, relative to the output's scale.
TOLERANCE = 1e-5
# Gradients are sums of products of rounded activations, through up to 20 layers; the goal of the field is 1e-4.
GRADIENT_TOLERANCE = 1e-4
# Where two inputs of a MaxPool differ by a rounding, or one of a Relu is as near to 0, each side may send the gradient
# another way. One sample may meet such a tie; it changes one of thousands of paths.
NEAR_TIE_TOLERANCE = 1e-2
RESNETS = ["resnet20_cifar10.onnx", "resnet20_cifar10_torchscript.onnx"]
REAL = [*RESNETS, "vgg_small_cifar10.onnx", "lenet_mnist.onnx"]


def agrees(model: Model, x: Array, *, channels_last: bool = False) -> None:
    """Logits at several batch sizes, and the gradient of a class score with respect to every layer's output."""
    example = Example({model.inputs[0].name: x})
    normalised = normalise(model, example).model
    module = TorchGraph(normalised, device=CPU, channels_last=channels_last)
    for part in (x, x[:-1], x[:1]):
        expected = Session(model).run({model.inputs[0].name: part})
        for name, value in module(torch.tensor(part)).items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(value.detach(), expected[name], rtol=0, atol=TOLERANCE * scale)

    expanded = expand(normalised, example).model
    shapes = example.shapes(expanded)
    logits = find_logits(expanded, shapes).tensor
    layers = find_layers(normalised, example.shapes(normalised))
    targets = [use.output for layer in layers for use in layer.uses]
    backward = build_backward(expanded, shapes, logits, targets)
    outputs = [backward.gradients[name] for name in targets]
    seed = np.zeros(shapes[logits], np.float32)
    seed[:, 2] = 1
    feeds = {model.inputs[0].name: x, backward.seed: seed}
    expected = Session(attach(expanded, backward, logits, shapes, outputs)).run(feeds, outputs)
    found = module(torch.tensor(x), [logits, *targets])
    gradients = torch.autograd.grad(found[logits], [found[name] for name in targets], torch.tensor(seed))
    for output, gradient in zip(outputs, gradients, strict=True):
        difference, reference = (v.reshape(len(x), -1) for v in (gradient.numpy() - expected[output], expected[output]))
        distances = np.sort(np.linalg.norm(difference, axis=1) / np.linalg.norm(reference, axis=1))
        assert distances[-2] <= GRADIENT_TOLERANCE
        assert distances[-1] <= NEAR_TIE_TOLERANCE


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("depthwise", (3, 16, 16)), ("vit", (3, 16, 16)), ("signal", (2, 40)), ("residual", (3, 16, 16))],
)
def test_exported_nets_compute_the_same(
    exported: Callable[..., onnx.ModelProto], name: str, shape: tuple[int, ...], dynamo: bool
) -> None:
    """Depthwise layers, attention, one-dimensional and transposed convolutions, shortcuts, from both exporters."""
    x = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    agrees(load(exported(name, dynamo=dynamo)), x)


def real_samples(real_data: Callable[[str], Path], model: str) -> Array:
    """A few images as the model wants them."""
    if model.startswith("lenet"):
        images = np.load(real_data("mnist_test.npz"))["x"][:8] / np.float32(255)
        return np.asarray(images.reshape(8, 1, 28, 28), np.float32)
    images = np.load(real_data("cifar10_test.npz"))["x"][:8] / np.float32(255)
    mean, std = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2), np.float32)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_real_nets_compute_the_same(real_data: Callable[[str], Path], name: str, channels_last: bool) -> None:
    agrees(load(real_data(name)), real_samples(real_data, name), channels_last=channels_last)


@pytest.mark.parametrize("name", REAL)
def test_real_nets_can_be_trained_and_written_back(real_data: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    """A few steps with quantized weights and activations lower the loss, in torch and in the file that is written."""
    x = real_samples(real_data, name)
    model = normalise(load(real_data(name)), Example({"input": x})).model
    layers = find_layers(model, Example({"input": x}).shapes(model))
    module = TorchGraph(model, [layer.weight for layer in layers], device=CPU)
    labels = torch.arange(len(x)) % 10
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def coarse(tensor: torch.Tensor) -> torch.Tensor:
        step = tensor.detach().abs().amax() / 7
        return tensor + ((tensor / step).round() * step - tensor).detach()

    hooks = {use.activation: coarse for layer in layers for use in layer.uses}
    losses = []
    for _ in range(8):
        weights = {weight: coarse(parameter) for weight, parameter in module.weights.items()}
        loss = torch.nn.functional.cross_entropy(
            module(torch.tensor(x), weights=weights, hooks=hooks)["logits"], labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    trained = module.write_back(model)
    onnx.save(trained.to_proto(), tmp_path / "trained.onnx")
    expected = Session(tmp_path / "trained.onnx").run({"input": x})["logits"]
    found = module(torch.tensor(x))["logits"].detach()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
