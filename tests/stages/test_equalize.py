"""Equalization where it helps, by measurement: nets whose channels were put out of scale on purpose.

Scaling the channels between two layers and back again changes nothing in float, but ruins an activation that has one
scale for all its channels; that is what equalization is to undo. Left alone such a net loses most of its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import QuantizeConfig, Result, quantize
from onnx_cbq.evidence.workload import Workload, aimed_at, prepare
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.pairs import Maker, Pair
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, fused_operators, median_latency
from onnx_cbq.stages import equalize as equalizing
from onnx_cbq.stages.equalize import equalize
from onnx_cbq.verification import comparison
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL, random_set
from tests.graphs import make_model, node

QUICK = QuantizeConfig(bits=8, method="uniform", rounding="nearest", samples=200)


@pytest.fixture(autouse=True)
def _no_time_for_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "median_latency", partial(median_latency, seconds=0))


def digits() -> onnx.ModelProto:
    """Three Conv-Relu, the second with max pooling, then mean, flatten and Gemm."""
    return onnx.load(DIGITS_MODEL)


def constants(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def replaced(proto: onnx.ModelProto, values: dict[str, Array]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in values]
    changed.graph.ClearField("initializer")
    changed.graph.initializer.extend(kept + [numpy_helper.from_array(v, name) for name, v in values.items()])
    return changed


def out_of_scale(proto: onnx.ModelProto, factors: Callable[[int], Array]) -> onnx.ModelProto:
    """Every channel between two layers multiplied by a factor, and the columns behind it divided; by hand, in float64.

    The layers are taken in the order of the file: Conv, depthwise Conv and, last, a Gemm with transB.
    """
    layers = [entry for entry in proto.graph.node if entry.op_type in ("Conv", "Gemm")]
    values = {name: value.astype(np.float64) for name, value in constants(proto).items() if value.dtype == np.float32}
    for first, second in pairwise(layers):
        weight, bias, following = first.input[1], first.input[2], second.input[1]
        factor = factors(len(values[weight]))
        values[weight] = values[weight] * factor.reshape(-1, *(1,) * (values[weight].ndim - 1))
        values[bias] = values[bias] * factor
        depthwise = values[following].ndim == 4 and values[following].shape[1] == 1
        axis = 0 if depthwise else 1
        shape = [-1 if a == axis else 1 for a in range(values[following].ndim)]
        values[following] = values[following] / factor.reshape(shape)
    return replaced(proto, {name: value.astype(np.float32) for name, value in values.items()})


def with_depthwise(proto: onnx.ModelProto, bound: float | None) -> onnx.ModelProto:
    """A depthwise convolution that only passes on what comes, behind every Relu of a Conv, and a Relu behind it.

    With `bound` every Relu becomes a Clip to 0 .. bound.
    """
    changed = replaced(proto, {"low": np.array(0, np.float32), "high": np.array(bound or 0, np.float32)})
    values, nodes = constants(proto), list(proto.graph.node)
    changed.graph.ClearField("node")
    channels = 0
    for entry in nodes:
        if entry.op_type == "Conv":
            channels = len(values[entry.input[1]])
        if entry.op_type != "Relu":
            changed.graph.node.append(entry)
            continue
        source, result = entry.input[0], entry.output[0]
        kernel = np.zeros((channels, 1, 3, 3), np.float32)
        kernel[:, :, 1, 1] = 1
        for name, value in ((f"{result}_w", kernel), (f"{result}_b", np.zeros(channels, np.float32))):
            changed.graph.initializer.append(numpy_helper.from_array(value, name))
        cut = ("Relu", "") if bound is None else ("Clip", " low high")
        names = f"{result}_a {result}_w {result}_b"
        changed.graph.node.append(node(cut[0], source + cut[1], f"{result}_a"))
        changed.graph.node.append(node("Conv", names, f"{result}_z", group=channels, pads=[1, 1, 1, 1]))
        changed.graph.node.append(node(cut[0], f"{result}_z{cut[1]}", result))
    return changed


def spread(count: int, low: float = 0.01, high: float = 100) -> Array:
    return np.exp(np.random.default_rng(count).uniform(np.log(low), np.log(high), count))


def run(proto: onnx.ModelProto | Any) -> Array:
    work = prepare(proto, DIGITS_CARD)
    return Session(work.model).run(work.samples.read(range(100)))[work.logits.output]


def quantized(proto: onnx.ModelProto, **changes: Any) -> Result:
    return quantize(proto, DIGITS_CARD, replace(QUICK, **changes))


def notes_on(result: Result) -> list[str]:
    return [note for note in result.notes if "channels" in note]


@pytest.mark.parametrize("rounding", ["nearest", "compensate"])
@pytest.mark.parametrize(("activation_bits", "lost"), [(8, 1.0), (4, 4.0)])
@pytest.mark.parametrize("depthwise", [False, True], ids=["plain", "depthwise"])
def test_channels_out_of_scale_are_repaired(
    *, depthwise: bool, rounding: str, activation_bits: int, lost: float
) -> None:
    """Against the net without them: no more than `lost` points below it."""
    plain = with_depthwise(digits(), None) if depthwise else digits()
    ruined = out_of_scale(plain, spread)
    np.testing.assert_allclose(run(ruined), run(plain), rtol=0, atol=1e-4 * np.abs(run(plain)).max())
    settings: dict[str, Any] = {"activation_bits": activation_bits, "rounding": rounding}
    without = quantized(ruined, equalize=False, **settings)
    assert without.quantized.top1 < without.reference.top1 - 20
    assert notes_on(without) == []
    result = quantized(ruined, **settings)
    assert result.quantized.top1 >= quantized(plain, equalize=False, **settings).quantized.top1 - lost
    (note,) = notes_on(result)
    assert note.startswith("channels equalized between ")
    assert note.count(" -> ") >= 3


def test_channels_below_a_clip_are_enlarged_to_its_bound(tmp_path: Path) -> None:
    """ReLU6 behind depthwise layers, its channels 1 to 1/1000 of what the bound lets through.

    No operator is added: onnxruntime fuses as many integer kernels as without.
    """
    work = prepare(with_depthwise(digits(), None), DIGITS_CARD)
    relus = [entry.output[0] for entry in work.model.nodes if entry.op_type == "Relu"]
    values = Session(work.model.with_graph(outputs=relus)).run(work.samples.read(range(500)))
    largest = max(float(value.max()) for value in values.values())
    net = with_depthwise(digits(), 6.0)
    ruined = out_of_scale(net, lambda count: spread(count, 0.001, 1) * 5 / largest)
    np.testing.assert_allclose(run(ruined), run(digits()), rtol=0, atol=1e-4 * np.abs(run(digits())).max())
    without, result = quantized(ruined, equalize=False), quantized(ruined)
    assert without.quantized.top1 < without.reference.top1 - 20
    assert result.quantized.top1 >= without.reference.top1 - 1
    kinds = []
    for number, made in enumerate((without, result)):
        made.save(tmp_path / f"{number}.onnx")
        kinds.append(fused_operators(tmp_path / f"{number}.onnx"))
    assert kinds[0]["QLinearConv"] == kinds[1]["QLinearConv"] == 6


def test_a_net_whose_channels_fit_stays_as_it_is() -> None:
    """With 8 bits nothing is to be gained beyond chance; the file is the same."""
    result = quantized(digits())
    assert result.proto == quantized(digits(), equalize=False).proto
    assert not notes_on(result)


def equalized(work: Workload, **changes: Any) -> Workload:
    """What the stage makes of a workload that is aimed at the target of the settings."""
    choice = replace(QUICK, **changes).choice
    return equalize(aimed_at(work, choice.target, 8), choice.scene, choice.goal.bits)


def test_only_what_gains_is_equalized() -> None:
    """One pair out of scale: it must be among those that are taken, and the accuracy come back."""
    ruined = out_of_scale(digits(), lambda count: spread(count) if count == 16 else np.ones(count))
    work = prepare(ruined, DIGITS_CARD)
    found = equalized(work)
    (note,) = found.notes
    assert note.startswith("channels equalized between /0/Conv -> /3/Conv: measured divergence")
    same = [np.array_equal(work.model.weight(e.weight), found.model.weight(e.weight)) for e in work.layers]
    assert same == [False, False, True, True]


def test_outputs_stay_and_a_rewrite_that_changes_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    work = prepare(out_of_scale(digits(), spread), DIGITS_CARD)
    feeds = work.samples.read(range(100))
    expected = Session(work.model).run(feeds)["logits"]
    found = equalized(work)
    assert found.model is not work.model
    np.testing.assert_allclose(Session(found.model).run(feeds)["logits"], expected, atol=1e-4 * np.abs(expected).max())

    def bend(model: Any, example: Any, passes: Any) -> Any:
        (rewrite,) = passes
        return normalise(model, example, (lambda m, e: bent(rewrite(m, e)),))

    def bent(model: Any) -> Any:
        name = work.layers.layers[0].weight
        return model.with_constants({name: model.weight(name) * np.float32(1.1)})

    monkeypatch.setattr(equalizing, "normalise", bend)
    refused = equalized(work)
    assert refused.model is work.model
    assert "not applied: it changes an output by" in refused.notes[0]


def test_nothing_is_tried_where_activations_stay_float() -> None:
    ruined = out_of_scale(digits(), spread)
    result = quantized(ruined, activation_bits=0)
    assert "equalize" not in result.seconds
    assert "equalize" not in quantized(ruined, equalize=False).seconds
    assert notes_on(result) == []


def test_two_samples_of_each_class_are_enough_to_try() -> None:
    """One to measure ranges on, one to measure the loss on."""
    classes = 40
    nodes = [node("Gemm", "x w b", "z"), node("Relu", "z", "a"), node("Gemm", "a v")]
    random = np.random.default_rng(0)
    shapes = {"w": (6, 20), "b": (20,), "v": (20, classes)}
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    values["w"] *= np.logspace(-3, 0, 20).astype(np.float32)
    values["b"] *= np.logspace(-3, 0, 20).astype(np.float32)
    values["v"] *= np.logspace(3, 0, 20).astype(np.float32).reshape(-1, 1)
    work = prepare(make_model(nodes, {"x": ["N", 6]}, ["y"], values), random_set((6,), 2 * classes, classes))
    (note,) = equalized(work, rounding="compensate").notes
    assert note.startswith("channels equalized between w -> v")


def test_a_normalization_gives_its_scales_to_all_its_readers() -> None:
    """Queries, keys and the like read the same tensor: all or none of them are scaled."""
    width, classes, random = 20, 10, np.random.default_rng(0)
    nodes = [node("LayerNormalization", "x scale shift", "l"), node("MatMul", "l q", "a"), node("MatMul", "l k", "b")]
    nodes += [node("Tanh", "a", "t"), node("Tanh", "b", "u"), node("Add", "t u", "s"), node("Gemm", "s v")]
    sizes = np.logspace(-3, 0, width).astype(np.float32)
    values = {"scale": sizes, "shift": random.standard_normal(width).astype(np.float32) * sizes}
    values |= {n: random.standard_normal((width, 16)).astype(np.float32) / sizes[:, None] / 8 for n in "qk"}
    values["v"] = random.standard_normal((16, classes)).astype(np.float32)
    work = prepare(make_model(nodes, {"x": ["N", width]}, ["y"], values), random_set((width,), 200, classes))
    (note,) = equalized(work, rounding="compensate").notes
    assert note.startswith("channels equalized between LayerNormalization_l -> q, k: measured divergence")


def test_too_few_samples_tell_nothing() -> None:
    work = prepare(out_of_scale(digits(), spread), DIGITS_CARD)
    assert equalized(work, samples=30).model is work.model


class FakeTrials:
    """Losses of 50 samples that depend on which pairs are taken; `gains` per pair at full strength."""

    def __init__(self, pairs: Sequence[Pair], gains: Sequence[float]) -> None:
        self.gains = dict(zip(pairs, gains, strict=True))
        self.noise = np.random.default_rng(0).normal(0, 0.05, (len(pairs), 50))
        self.asked = 0

    def losses(self, chosen: dict[Pair, float], weights: Array) -> Array:
        self.asked += 1
        total = np.full(50, 10.0)
        for row, (pair, gain) in zip(self.noise, self.gains.items(), strict=True):
            total = total - chosen.get(pair, 0.0) * (gain + row)
        return total


@pytest.mark.parametrize(
    ("gains", "taken"),
    [
        ([3, 2, 1], [0, 1, 2]),
        ([3, -1, 1], [0, 2]),
        ([-3, 5, -1], [1]),
        ([-3, 1, -2], []),
        ([-1, -1, -1], []),
        ([0, 0, 0], []),
        ([3, 0, 3], [0, 2]),
    ],
)
def test_pairs_are_kept_that_lower_the_loss(gains: list[float], taken: list[int]) -> None:
    pairs = [Pair(Maker("maker", (), str(number), 1), (0, 3), str(number), 1) for number in range(3)]
    trials = FakeTrials(pairs, gains)
    steps: list[tuple[int, int]] = []
    search: Any = equalizing._search
    before, after, chosen = search(trials, pairs, np.ones(1), lambda _, done, total: steps.append((done, total)))
    assert [pairs.index(pair) for pair in chosen] == taken
    assert before == pytest.approx(10)
    assert after == pytest.approx(10 - sum(strength * trials.gains[pair] for pair, strength in chosen.items()), abs=0.1)
    assert steps[-1] == (6, 6)
    assert trials.asked == (6 if taken else 3)


def test_the_command_line_turns_it_off(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(out_of_scale(digits(), spread), path)
    base = ["quantize", str(path), "--data", str(DIGITS_CARD), "--method", "uniform", "--rounding", "nearest"]
    arguments = [*base, "--samples", "200", "--output", str(tmp_path / "out.onnx")]
    with_it, without = command(*arguments), command(*arguments, "--no-equalize")
    assert with_it.code == without.code == 0
    assert "channels equalized between" in with_it.out
    assert "channels equalized between" not in without.out
