"""Whole nets: the backward graph against torch autograd, and what it says of operators it does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.logits import find_logits
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.exports import CLASSES, make_net
from tests.graphs import make_model, node
from tests.torch_resnet import gradients

# Both sides sum thousands of products in float32 in another order; the goal set for this project is 1e-4.
TOLERANCE = 1e-4
LABEL = 2


def layer_gradients(model: Model, x: Array, label: int, classes: int) -> list[tuple[tuple[int, ...], Array]]:
    """(shape of the weight, dPhi/dz) of every layer in the order of the graph."""
    example = Example({model.inputs[0].name: x})
    normalised = normalise(model, example).model
    expanded = expand(normalised, example)
    assert expanded.notes == ()
    shapes = example.shapes(expanded.model)
    logits = find_logits(expanded.model, shapes)
    layers = find_layers(normalised, example.shapes(normalised))
    targets = [use.output for layer in layers for use in layer.uses]
    backward = build_backward(expanded.model, shapes, logits.tensor, targets)
    outputs = [backward.gradients[name] for name in targets]
    seed = np.zeros((len(x), classes), np.float32)
    seed[:, label] = 1
    session = Session(attach(expanded.model, backward, logits.tensor, shapes, outputs))
    values = session.run({model.inputs[0].name: x, backward.seed: seed}, outputs)
    return [(layer.weight_shape, values[name]) for layer, name in zip(layers, outputs, strict=True)]


def torch_gradients(net: nn.Module, x: Array, label: int) -> list[Array]:
    """dPhi/dz behind every layer and the batch norm that follows it, in the order of the run."""
    outputs: list[torch.Tensor] = []
    layers = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.Linear)
    modules = list(net.modules())

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:  # noqa: ARG001
        if isinstance(module, nn.BatchNorm2d):
            outputs.pop()
        output.retain_grad()
        outputs.append(output)

    for module in modules:
        if isinstance(module, (*layers, nn.BatchNorm2d)):
            module.register_forward_hook(keep)
    scores = net(torch.tensor(x))
    phi = outputs[-1] if scores.shape == outputs[-1].shape else scores  # in front of a softmax
    phi[:, label].sum().backward()
    return [output.grad.numpy() for output in outputs if output.grad is not None]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["depthwise", "vit", "signal", "residual"])
def test_gradients_of_exported_nets_match_autograd(
    exported: Callable[..., onnx.ModelProto],
    name: str,
    dynamo: bool,
) -> None:
    net = make_net(name)
    x = np.random.default_rng(1).standard_normal((4, *net.example_shape)).astype(np.float32)  # type: ignore[misc]
    found = layer_gradients(load(exported(name, dynamo=dynamo)), x, LABEL, CLASSES)
    expected = torch_gradients(net, x, LABEL)
    assert len(found) == len(expected)
    for _, gradient in found:
        distances = [
            np.linalg.norm(gradient.reshape(-1) - other.reshape(-1)) / np.linalg.norm(other)
            for other in expected
            if other.size == gradient.size
        ]
        assert min(distances) < TOLERANCE


def test_gradients_of_resnet20_match_autograd(real_data: Callable[[str], Path]) -> None:
    """Every layer of the real net, against the same graph built in torch from the ONNX nodes."""
    path = real_data("resnet20_cifar10.onnx")
    images = np.load(real_data("cifar10_calibration.npz"))["x"][:8]
    mean, std = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    found = layer_gradients(load(path), x, LABEL, 10)
    expected = gradients(onnx.load(path), x, LABEL)
    assert len(found) == len(expected) == 20
    for (_, gradient), other in zip(found, expected, strict=True):
        assert np.linalg.norm(gradient - other) < TOLERANCE * np.linalg.norm(other)


def test_an_operator_without_a_rule_is_named() -> None:
    proto = make_model(
        [node("Gemm", "x w", "z"), node("Det", "z3", "d"), node("Add", "z d")],
        {"x": ["N", 4]},
        ["y"],
        {"w": np.ones((4, 4), np.float32), "shape": np.array([-1, 2, 2])},
    )
    proto.graph.node.insert(1, node("Reshape", "z shape", "z3"))
    proto.graph.node[3].input[1] = "d2"
    proto.graph.node.insert(3, node("Unsqueeze", "d axis", "d2"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    model = load(proto)
    example = Example.made_up(model)
    with pytest.raises(
        UnsupportedOperatorError, match="'Det_d': operator Det has no gradient rule; use --method uniform"
    ):
        build_backward(model, example.shapes(model), "y", ["z"])


def test_operators_off_the_path_need_no_rule() -> None:
    """ArgMax beside the scores, and whatever lies in front of the first layer, must not matter."""
    proto = make_model(
        [
            node("Det", "x", "d"),
            node("Unsqueeze", "d axis", "u"),
            node("Gemm", "u w"),
            node("ArgMax", "y", "label", axis=1),
        ],
        {"x": ["N", 2, 2]},
        ["y", "label"],
        {"w": np.ones((1, 4), np.float32), "axis": np.array([1])},
    )
    model = load(proto)
    backward = build_backward(model, Example.made_up(model).shapes(model), "y", ["y"])
    assert backward.gradients == {"y": backward.seed}


def test_a_grid_that_follows_the_activation_is_passed_through() -> None:
    """TFLite's dynamic-range files quantize each activation by its own range; codes were differentiated as numbers."""
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "d"), node("MatMul", "d w")]
    constants = {"w": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)}
    model = load(make_model(nodes, {"x": ["N", 5]}, ["y"], constants))
    found = expand(model, Example.made_up(model)).model
    assert [n.op_type for n in found.nodes] == ["Identity", "Identity", "MatMul"]
