"""The net between widths beside numpy and onnxruntime, and its gradient beside the paper's and finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping, Layer, Use
from onnx_cbq.runtime import Session
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.torch_graph import EXACT
from onnx_cbq.training.lesson import Lesson
from onnx_cbq.training.records import Levels
from onnx_cbq.training.widths import BetweenWidths, WidthLoss, WidthNet
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

CPU = torch.device("cpu")
SETTINGS = DifferentiableConfig(batch=64, bfloat16=False)
SHAPES = [((5, 3, 2, 2), 0), ((7, 5), 1), ((5, 7), 0), ((3, 5, 2), 1)]


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.fixture(scope="module")
def levels(work: Workload) -> dict[str, Levels]:
    return {layer.name: Levels.nearest(layer.rows(work.model.weight(layer.weight))) for layer in work.layers}


def layer_of(shape: tuple[int, ...], axis: int) -> Layer:
    return Layer("l", "Conv", "w", shape, axis, 1, (Use("z", "x", 1, "bias", 1, 0, (2, shape[axis])),), 2)


def made(shape: tuple[int, ...], axis: int) -> tuple[Layer, Levels, Array]:
    """A layer, its levels with made-up shifts of the bias, and widths with both ends and a whole one among them."""
    random = np.random.default_rng(0)
    layer = layer_of(shape, axis)
    rows = layer.rows(random.standard_normal(shape).astype(np.float32))
    shifts = (random.standard_normal((9, layer.channels)),)
    widths = np.array([0.0, 8.0, 3.0, 2.25, 5.5])
    return layer, replace(Levels.nearest(rows), shifts=shifts), widths


def interpolated(at: Array, widths: Array) -> Array:
    """(ceil b - b) Q(floor b) + (b - floor b) Q(ceil b), channel by channel, for `at` [widths, channels, ...]."""
    found = []
    for channel, b in enumerate(widths):
        low, high = int(np.floor(b)), int(np.ceil(b))
        one, other = at[low, channel], at[high, channel]
        found.append(one if low == high else (high - b) * one + (b - low) * other)
    return np.array(found)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_weights_and_biases_lie_between_two_widths(shape: tuple[int, ...], axis: int) -> None:
    layer, levels, widths = made(shape, axis)
    found = BetweenWidths(layer, levels, {"bias": np.ones(5, np.float32)}, CPU)(torch.tensor(widths).float())
    rows = levels.codes * levels.scale[:, :, None]
    np.testing.assert_allclose(found["w"].numpy(), layer.unrows(interpolated(rows, widths)), atol=1e-6)
    np.testing.assert_allclose(found["bias"].numpy(), 1 + interpolated(levels.shifts[0], widths), atol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_gradient_is_what_the_wider_width_would_change(shape: tuple[int, ...], axis: int) -> None:
    """dw~/db = Q(ceil b) - Q(floor b); at a whole width that to the next, at 8 bits that from 7."""
    layer, levels, widths = made(shape, axis)
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    at = torch.tensor(widths, dtype=torch.float32, requires_grad=True)
    made_of = BetweenWidths(layer, levels, {"bias": np.zeros(5, np.float32)}, CPU)(at)
    (found,) = torch.autograd.grad((made_of["w"] * torch.tensor(weight)).sum(), at)
    rows = levels.codes * levels.scale[:, :, None]
    low = np.minimum(np.floor(widths), 7).astype(int)
    steps = rows[low + 1, np.arange(5)] - rows[low, np.arange(5)]
    np.testing.assert_allclose(found.numpy(), (layer.rows(weight) * steps).sum(axis=1), atol=1e-5)


def test_whole_widths_are_the_net_that_is_written(work: Workload, levels: dict[str, Levels]) -> None:
    """In onnxruntime, with the weights rounded in numpy: an axis swapped, or a width off by one, would part them."""
    random = np.random.default_rng(0)
    bits = {layer.name: random.integers(0, 9, layer.channels) for layer in work.layers}
    constants = {}
    for layer in work.layers:
        at, channels = bits[layer.name], np.arange(layer.channels)
        rows = levels[layer.name].codes[at, channels] * levels[layer.name].scale[at, channels][:, None]
        constants[layer.weight] = layer.unrows(rows)
    feeds = work.samples.read(np.arange(20))
    expected = Session(work.model.with_constants(constants).with_graph(outputs=[work.logits.tensor])).run(feeds)
    net = WidthNet(work.model, work.layers, levels, Lesson(work.logits), EXACT)
    found = net(tensors(feeds), tensors({name: part.astype(np.float32) for name, part in bits.items()}))
    np.testing.assert_allclose(found.numpy(), expected[work.logits.tensor], rtol=1e-4, atol=1e-4)
    plain = Session(work.model.with_graph(outputs=[work.logits.tensor])).run(feeds)[work.logits.tensor]
    np.testing.assert_allclose(net.teach(tensors(feeds)).numpy(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_the_loss_falls_as_its_gradient_says(work: Workload, levels: dict[str, Levels], alpha: float) -> None:
    """Finite differences along a random direction, between whole widths, where the loss is smooth."""
    random = np.random.default_rng(0)
    widths = {layer.name: random.uniform(2.3, 2.7, layer.channels) for layer in work.layers}
    direction = {name: random.standard_normal(len(part)) for name, part in widths.items()}
    step = 5e-4

    def at(distance: float) -> tuple[float, dict[str, Array]]:
        # The same samples every time.
        settings = replace(SETTINGS, alpha=alpha)
        groups = Grouping.single(work.class_names)
        loss = WidthLoss.of(work, levels, np.arange(200), (np.ones(10), groups), settings, seed=0)
        return loss({name: part + distance * direction[name] for name, part in widths.items()})

    slope = sum(float(at(0.0)[1][name] @ direction[name]) for name in widths)
    measured = (at(step)[0] - at(-step)[0]) / (2 * step)
    assert slope == pytest.approx(measured, rel=0.02)


def test_samples_of_a_class_that_does_not_count_do_not_matter(work: Workload, levels: dict[str, Levels]) -> None:
    weights = np.where(np.arange(10) < 5, 1.0, 0.0)
    chosen = np.flatnonzero(work.samples.labels < 5)
    few = WidthLoss.of(work, levels, chosen[:10], (weights, Grouping.single(work.class_names)), SETTINGS, seed=0)
    others = np.flatnonzero(work.samples.labels >= 5)
    indices = np.concatenate([chosen[:10], others[:10]])
    many = WidthLoss.of(work, levels, indices, (weights, Grouping.single(work.class_names)), SETTINGS, seed=0)
    widths = {layer.name: np.full(layer.channels, 2.5) for layer in work.layers}
    assert many(widths)[0] == pytest.approx(few(widths)[0], rel=1e-4)


def tensors(values: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in values.items()}
