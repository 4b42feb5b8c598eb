"""Learning lowers the divergence on samples that it does not see, repeats itself, and is never worse than its start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_cbq import CalibrationSet, LearnedConfig, QuantizeConfig, quantize
from onnx_cbq.errors import ConfigError
from onnx_cbq.learned import descent
from onnx_cbq.learned.descent import Learned, begin, learn
from onnx_cbq.learned.student import Student
from onnx_cbq.learned.teacher import Lesson
from onnx_cbq.model import Array
from onnx_cbq.records import LayerWeights, fits_bits
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.scene import Scene
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.scenes import gather, solved

CONFIG = QuantizeConfig(bits=2, method="uniform", rounding="nearest", samples=200, activation_bits=4)


@cache
def start() -> tuple[Scene, Rounded]:
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, CONFIG)
    return scene, solved(scene, CONFIG).rounded


def learned(config: LearnedConfig) -> tuple[Mapping[str, LayerWeights], Learned]:
    scene, rounded = start()
    drawn, held = scene.drawn.split(config.held_back)
    parts = scene.class_weights, scene.evidence.groups
    lesson = Lesson(scene.work, scene.grids, drawn.indices, held.indices, *parts)
    return rounded.weights, learn(lesson, rounded.weights, rounded.biases, config)


def test_samples_held_back_are_answered_better() -> None:
    """From weights rounded to nearest: most of what they lost comes back, at the same widths."""
    before, found = learned(LearnedConfig(updates=60))
    assert found.after < 0.6 * found.before
    assert (found.left, found.by_time) == ((), False)
    coarse = {name: grid for name, grid in start()[0].grids.items() if grid.bits == 4}
    assert found.grids.keys() == coarse.keys()
    assert all(0.5 < grid.scale / coarse[name].scale < 2 for name, grid in found.grids.items())
    assert all(grid.scale != coarse[name].scale for name, grid in found.grids.items())
    assert 0 < found.kept <= found.updates == 60
    for layer in start()[0].work.layers:
        weights = found.weights[layer.name]
        np.testing.assert_array_equal(weights.bits, before[layer.name].bits)
        codes = zip(layer.rows(weights.codes), weights.bits, strict=True)
        assert all(fits_bits(row, int(bits)) for row, bits in codes)


def test_learning_repeats_itself() -> None:
    """The same codes, scales and biases, bit for bit."""
    _, first = learned(LearnedConfig(updates=5, check_every=5))
    _, second = learned(LearnedConfig(updates=5, check_every=5))
    assert (first.before, first.after, first.kept) == (second.before, second.after, second.kept)
    for name, weights in first.weights.items():
        np.testing.assert_array_equal(weights.codes, second.weights[name].codes)
        np.testing.assert_array_equal(weights.scale, second.weights[name].scale)


def test_what_is_never_better_leaves_the_start() -> None:
    """Rates that destroy the net: nothing of that is kept."""
    before, found = learned(LearnedConfig(updates=10, weight_rate=0.99, rate=0.99, check_every=5))
    assert (found.kept, found.after) == (0, found.before)
    assert found.weights == before


@pytest.mark.parametrize(
    ("looks", "kept"),
    [
        ([1.0, 0.7, 0.5, 0.6], 3),
        # By chance, or by heart: more than half of the gain is gone.
        ([1.0, 0.7, 0.5, 0.8], 2),
        ([1.0, 1.2, 1.1, 0.9], 3),
        ([1.0, 0.5, 0.9, 1.1], 1),
        ([1.0, 1.1, 1.1, 1.0], 0),
        ([1.0, 0.5, 0.6, np.nan], 1),
    ],
)
def test_the_last_state_is_kept_unless_it_lost_half_of_the_gain(
    looks: list[float], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 3 bits the best look was the luckiest one: rates were still high, and 10,000 others lost by it."""
    seen = iter(looks)

    class Measured:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def run_instead(self, *_: Any) -> Measured:
            return self

        def loss(self, *_: Any) -> float:
            return next(seen)

    monkeypatch.setattr(descent, "PlanMeasure", Measured)
    _, found = learned(LearnedConfig(updates=3, check_every=1))
    assert (found.before, found.after, found.kept) == (1.0, looks[kept], kept)
    assert next(seen, None) is None


def test_updates_that_are_no_numbers_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one made everything NaN, and the start was kept without a word why."""
    differentiate, asked = Student.differentiate, list[int]()

    def sometimes(self: Student, *given: Any) -> dict[str, Array]:
        asked.append(0)
        found = differentiate(self, *given)
        return found if len(asked) % 4 else {name: value * np.nan for name, value in found.items()}

    monkeypatch.setattr(Student, "differentiate", sometimes)
    _, found = learned(LearnedConfig(updates=40))
    assert (found.updates, found.skipped) == (40, 10)
    assert found.after < 0.8 * found.before


def test_time_ends_it_too() -> None:
    """And the last state counts, whenever that is."""
    _, found = learned(LearnedConfig(updates=100_000, minutes=0.02))
    assert 0 < found.updates < 100_000
    assert found.by_time
    assert found.after <= found.before


def activation_scales(proto: onnx.ModelProto) -> dict[str, float]:
    """By the tensor that is quantized."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    quantizers = (node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    return {node.input[0]: float(constants[node.input[1]]) for node in quantizers}


def test_a_whole_run_says_what_was_learned() -> None:
    """The file holds what was learned, and a note tells of it."""
    config = replace(CONFIG, rounding="learned", learned=LearnedConfig(updates=30), samples=100)
    found = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    (note,) = [note for note in found.notes if note.startswith("--rounding learned")]
    assert "30 updates on 450 samples of the card" in note
    assert found.quantized.top1 > 0.9 * found.reference.top1
    plain = quantize(DIGITS_MODEL, DIGITS_CARD, replace(config, rounding="compensate"))
    before, after = (activation_scales(one.proto) for one in (plain, found))
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 3


@pytest.mark.parametrize(
    "other", [{"storage": "archive"}, {"codebook": "kmeans"}, {"max_drop": 1.0}, {"keep_quantized": True}]
)
def test_what_learning_does_not_go_with_is_refused(other: dict[str, Any]) -> None:
    """Codes with a price, limits that are proved on samples that nothing else used, kept grids that it cannot see."""
    with pytest.raises(ConfigError, match=r"--rounding|--keep-quantized"):
        QuantizeConfig(rounding="learned", **other)


def tokens(count: int = 80) -> CalibrationSet:
    random = np.random.default_rng(5)
    return CalibrationSet.from_arrays({"ids": random.integers(0, 20, (count, 6))}, np.arange(count) % 3)


def word_net(width: int, *, tied: bool) -> onnx.ModelProto:
    """A table, the mean of what is looked up, and a head; or one behind the table once more."""
    random = np.random.default_rng(6)
    constants = {"table": random.standard_normal((20, width)), "b": np.zeros(3)}
    constants |= {"inner": random.standard_normal((width, width)) / width**0.5}
    constants |= {"head": random.standard_normal((20 if tied else width, 3))}
    nodes = [node("Gather", "table ids", "words"), node("ReduceMean", "words axis", "mean", keepdims=0)]
    nodes += [node("MatMul", "mean inner", "h"), node("Tanh", "h", "t")]
    nodes += [node("Gemm", "t table", "u", transB=1)] if tied else []
    nodes += [node("MatMul", "u head" if tied else "t head", "v"), node("Add", "v b", "logits")]
    floats = {name: value.astype(np.float32) for name, value in constants.items()}
    given = {**floats, "axis": np.array([1])}
    return make_model(nodes, {"ids": ["N", 6]}, ["logits"], given, dtypes={"ids": np.int64})


@pytest.mark.parametrize(("width", "tied"), [(32, False), (128, False), (128, True)])
def test_a_table_does_not_keep_a_net_from_learning(width: int, tied: bool) -> None:
    """It has no gradient itself, and a note names it; the products behind it learn."""
    learning = LearnedConfig(updates=20, batch=16, check_every=5)
    config = QuantizeConfig(bits=2, method="uniform", rounding="learned", learned=learning, samples=60)
    scene, _ = gather(word_net(width, tied=tied), tokens(), config)
    notes = solved(scene, config).rounded.notes
    assert any("20 updates on" in note for note in notes)
    tables = [layer.name for layer in scene.work.layers if layer.kind == "table"]
    left = [note for note in notes if "stay as compensated" in note]
    assert len(tables) == (not tied)
    assert left == [f"--rounding learned: weights stay as compensated in {name}" for name in tables]


def test_updates_of_a_fixed_batch_see_as_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many exports take one sample at a time; updates of one sample were mostly noise: hardly anything was learned."""
    single, asked = onnx.load(DIGITS_MODEL), list[int]()
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    differentiate = Student.differentiate

    def counted(self: Student, feeds: Mapping[str, Array], *others: Any) -> dict[str, Array]:
        asked.append(len(next(iter(feeds.values()))))
        return differentiate(self, feeds, *others)

    monkeypatch.setattr(Student, "differentiate", counted)
    config = replace(
        CONFIG, rounding="learned", learned=LearnedConfig(updates=20, batch=16, check_every=10), samples=60
    )
    for model, batches in ((onnx.load(DIGITS_MODEL), [16] * 20), (single, [1] * 320)):
        scene, _ = gather(model, DIGITS_CARD, config)
        (note,) = [note for note in solved(scene, config).rounded.notes if note.startswith("--rounding learned")]
        before, after = (float(word) for word in re.findall(r"(0\.\d+) (?:before|kept)", note))
        assert after < 0.9 * before
        assert asked == batches
        asked.clear()


def test_the_mean_of_states_lies_between_them() -> None:
    """What is looked at is a running mean: single states swing around it by as much as learning saves."""
    scene, rounded = start()
    parts = scene.drawn.indices, scene.drawn.indices, scene.class_weights, scene.evidence.groups
    lesson = Lesson(scene.work, scene.grids, *parts)
    _, first = begin(lesson, rounded.weights, rounded.biases)
    gradients = {name: np.ones_like(value) for name, value in first.constants().items()}
    second = first.moved(gradients, 0.2, 0.1)
    for share, same in ((0.0, first), (1.0, second)):
        found = first.towards(second, share).constants()
        for name, value in same.constants().items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)
    middle = first.towards(second, 0.5)
    for name, value in middle.biases.items():
        np.testing.assert_allclose(value, (first.biases[name] + second.biases[name]) / 2, rtol=1e-6, atol=1e-7)
    for name, one in middle.scales.items():
        ends = first.scales[name].value, second.scales[name].value
        np.testing.assert_allclose(one.value, np.sqrt(ends[0] * ends[1]), rtol=1e-6)
    assert middle.memory == {}
