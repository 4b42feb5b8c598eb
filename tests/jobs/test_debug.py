"""`debug`: every figure is that of plain numpy, and what was broken on purpose stands first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import CalibrationSet, DebugResult, LayerDebug, QuantizeConfig, archive, debug, quantize
from onnx_cbq.model import Array
from onnx_cbq.verification.kernels import Deviation
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.qdq import grid_of, on_grid, quantized_by_hand, rounded_weight
from tests.targets.files import give, nodes_of, value
from tests.unsafe import unsafe_file

SIZE, INNER, CLASSES = 6, 9, 4
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((SIZE, INNER), (INNER, CLASSES)))
X = RANDOM.standard_normal((48, SIZE)).astype(np.float32)
DATA = CalibrationSet.from_arrays(X, np.arange(len(X)) % CLASSES)
INNER_X = np.maximum(X @ W, 0)
# The second grid ends where some numbers lie beyond.
GRIDS = {"x": grid_of(X), "r": grid_of(0.6 * INNER_X)}


def chain(*, gemm: bool = False, last: str | None = None) -> onnx.ModelProto:
    """scores = Relu(x W) V, by MatMul or Gemm, and perhaps what turns them into probabilities."""
    end = "z" if last else "y"
    second = node("Gemm", "r v b", end, transB=1) if gemm else node("MatMul", "r v", end)
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), second, *([node(last, "z")] if last else [])]
    constants = {"w": W, "v": V.T if gemm else V, **({"b": np.zeros(CLASSES, np.float32)} if gemm else {})}
    return make_model(nodes, {"x": ["N", SIZE]}, ["y"], constants)


def ratio(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(wanted.astype(float)).sum() / np.square(found - wanted.astype(float)).sum()))


def gain(wanted: Array, found: Array) -> float:
    return float((wanted.astype(float) * found).sum() / np.square(wanted.astype(float)).sum())


def divergence(scores: Array, others: Array) -> float:
    p, q = (np.exp(s - s.max(axis=1, keepdims=True)) for s in (scores.astype(float), others.astype(float)))
    p, q = (s / s.sum(axis=1, keepdims=True) for s in (p, q))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def named(result: DebugResult, name: str) -> LayerDebug:
    return next(layer for layer in result.layers if layer.name == name)


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("last", [None, "Softmax", "LogSoftmax"])
def test_every_figure_is_that_of_its_definition(gemm: bool, bits: int, last: str | None) -> None:
    model = chain(gemm=gemm, last=last)
    result = debug(model, quantized_by_hand(model, GRIDS, bits=bits), DATA)
    w, v = rounded_weight(W, bits), rounded_weight(V, bits)
    x, r = on_grid(X, *GRIDS["x"]), on_grid(INNER_X, *GRIDS["r"])
    inner, scores = X @ W, INNER_X @ V
    in_file = x @ w
    out_file = on_grid(np.maximum(in_file, 0), *GRIDS["r"]) @ v
    first, second = result.layers
    for layer, weights, read, y, (by_weight, by_input, alone), so_far in (
        (first, (W, w), (X, x), inner, (X @ w, x @ W, x @ w), in_file),
        (second, (V, v), (INNER_X, r), scores, (INNER_X @ v, r @ V, r @ v), out_file),
    ):
        assert layer.weight_snr == pytest.approx(ratio(*weights), abs=1e-3)
        assert layer.weight_gain == pytest.approx(gain(*weights), rel=1e-5)
        assert layer.input_snr == pytest.approx(ratio(*read), abs=1e-3)
        assert layer.weight_alone_snr == pytest.approx(ratio(y, by_weight), abs=1e-3)
        assert layer.input_alone_snr == pytest.approx(ratio(y, by_input), abs=1e-3)
        assert layer.alone_snr == pytest.approx(ratio(y, alone), abs=1e-3)
        assert layer.accumulated_snr == pytest.approx(ratio(y, so_far), abs=1e-3)
        assert layer.gain == pytest.approx(gain(y, by_weight), rel=1e-5)
        assert (layer.weight_type, layer.input_type) == ("int8", "uint8")
    costs = divergence(scores, np.maximum(x @ w, 0) @ V), divergence(scores, r @ v)
    assert [layer.divergence for layer in result.layers] == pytest.approx(costs, rel=2e-3)
    assert [layer.share for layer in result.layers] == pytest.approx(100 * np.divide(costs, sum(costs)), rel=2e-3)
    scale, zero = GRIDS["r"]
    beyond = 100 * (scale * (255 - zero + 0.5) < INNER_X).mean()
    assert beyond > 1
    assert [first.clipped, second.clipped] == pytest.approx([0, beyond])
    assert result.divergence == pytest.approx(divergence(scores, out_file), rel=2e-3)
    assert result.agreement == pytest.approx(100 * (scores.argmax(axis=1) == out_file.argmax(axis=1)).mean())
    assert result.samples == len(X)


def test_what_is_clipped_or_coarse_is_the_cause() -> None:
    model = chain()
    clipping = debug(model, quantized_by_hand(model, {**GRIDS, "r": grid_of(0.3 * INNER_X)}), DATA)
    assert clipping.ranking[0].cause == f"clips {clipping.layers[1].clipped:.1f} %"
    coarse = debug(model, quantized_by_hand(model, {**GRIDS, "r": grid_of(INNER_X)}, bits=3), DATA)
    assert [layer.cause for layer in coarse.layers] == ["weights", "weights"]
    wide = debug(model, quantized_by_hand(model, {"x": (1.0, 8), "r": grid_of(INNER_X)}), DATA)
    assert (wide.ranking[0].name, wide.ranking[0].cause) == (wide.layers[0].name, "input")


def test_few_samples_are_drawn_and_the_same_ones_again() -> None:
    model = chain()
    file = quantized_by_hand(model, GRIDS)
    one, other = (debug(model, file, DATA, samples=10) for _ in range(2))
    assert one.samples == 10
    assert one == other


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at 8 bits."""
    path = tmp_path_factory.mktemp("debug") / "q.onnx"
    config = QuantizeConfig(bits=8, method="uniform", rounding="nearest", samples=60, equalize=False)
    quantize(DIGITS_MODEL, DIGITS_CARD, config).save(path)
    return path


def scaled(path: Path, position: int, factor: float) -> onnx.ModelProto:
    """The file with the scales of a layer's weight so many times as large."""
    proto = onnx.load(path)
    names = {t.name for t in proto.graph.initializer}
    at = [n for n in nodes_of(proto, "DequantizeLinear") if n.input[0] in names and value(proto, n.input[0]).ndim > 1]
    give(proto, at[position], 1, value(proto, at[position].input[1]) * np.float32(factor))
    return proto


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_layer_with_a_wrong_scale_stands_first(digits: Path, position: int) -> None:
    """Its neighbours are as they were, and the noise behind it is not laid to those that follow."""
    sound = debug(DIGITS_MODEL, digits, DIGITS_CARD)
    result = debug(DIGITS_MODEL, scaled(digits, position, 3), DIGITS_CARD)
    worst = result.ranking[0]
    assert worst.name == sound.layers[position].name
    assert worst.cause == "weights x 3.00"
    assert worst.share is not None
    assert worst.share > 90
    for before, after in zip(sound.layers, result.layers, strict=True):
        if after.name != worst.name:
            assert after.alone_snr == pytest.approx(before.alone_snr, abs=0.01)
            assert after.cause == before.cause


def test_the_command_says_so(digits: Path, tmp_path: Path, command: Command) -> None:
    broken, written = tmp_path / "broken.onnx", tmp_path / "d.json"
    onnx.save(scaled(digits, 1, 3), broken)
    done = command("debug", DIGITS_MODEL, broken, "--data", DIGITS_CARD, "--json", written)
    assert (done.code, done.err) == (0, "")
    found = json.loads(written.read_text())
    name = found["layers"][1]["name"]
    assert found["ranking"][0] == name
    assert found["layers"][1]["cause"] == "weights x 3.00"
    text = " ".join(done.out.split())
    assert f"hurts most: {name}, " in text
    assert "weights x 3.00" in text
    row = next(line for line in done.out.splitlines() if line.startswith("layer"))
    assert done.out.splitlines()[done.out.splitlines().index(row) + 1].startswith(name)
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_an_archive_is_what_was_put_into_it(digits: Path, tmp_path: Path) -> None:
    packed = tmp_path / "q.cbqz"
    archive(digits).save(packed)
    plain, unpacked = (debug(DIGITS_MODEL, path, DIGITS_CARD, samples=20) for path in (digits, packed))
    assert plain == unpacked


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_packed_weights_are_unpacked(tmp_path: Path, activation_bits: int) -> None:
    """By arithmetic on int8 codes in the graph, with no DequantizeLinear where activations stay float."""
    config = QuantizeConfig(
        bits=3, method="uniform", rounding="nearest", samples=60, storage="packed", activation_bits=activation_bits
    )
    quantize(DIGITS_MODEL, DIGITS_CARD, config).save(tmp_path / "q.onnx")
    result = debug(DIGITS_MODEL, tmp_path / "q.onnx", DIGITS_CARD, samples=20)
    assert (result.unmatched, result.unmatched_in_file) == ((), ())
    assert all(layer.cause == "weights" for layer in result.layers)
    assert all(layer.weight_snr is not None and 10 < layer.weight_snr < 25 for layer in result.layers)


def test_a_layer_whose_pairs_overflow_is_named(tmp_path: Path) -> None:
    """By the codes on every processor: what saturates elsewhere is to be seen where nothing does."""
    path, x, _ = unsafe_file(tmp_path)
    proto = onnx.load(path)
    proto.graph.node.extend([node("Flatten", "y", "f"), node("MatMul", "f head", "scores")])
    proto.graph.initializer.append(numpy_helper.from_array(head(), "head"))
    proto.graph.output[0].name = "scores"
    result = debug(float_form(proto), proto, CalibrationSet.from_arrays(np.concatenate([x, x / 2]), np.arange(2)))
    first, large, last = result.layers
    assert (first.pair_sum, last.pair_sum) == (None, None)
    weights = np.sort(value(proto, "w").reshape(8, 4).astype(int), axis=1)
    assert large.pair_sum is not None
    assert 129 < large.pair_sum <= weights[:, -2:].sum(axis=1).max()


def head() -> Array:
    return np.random.default_rng(3).standard_normal((72, 3)).astype(np.float32)


def float_form(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The file of `unsafe_file` without grids."""
    nodes = [node("Conv", "x v", "a"), node("Conv", "a w", "p"), node("Flatten", "p", "f"), node("MatMul", "f head")]
    weights: dict[str, Array] = {name: value(proto, name).astype(np.float32) for name in ("v", "w")}
    return make_model(nodes, {"x": [1, 4, 3, 3]}, ["y"], {**weights, "head": head()}, opset=17)


def test_a_kernel_that_deviates_is_the_cause(digits: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """As on a processor without VNNI, where the first Conv saturates and others follow."""
    proto = onnx.load(digits)
    convs = nodes_of(proto, "Conv")
    found = [
        Deviation(f"Conv {convs[1].name or convs[1].output[0]}", "c", 30, 17, 1000),
        Deviation("input x", "q", 1, 1, 1000),
    ]
    monkeypatch.setattr("onnx_cbq.jobs.debug.deviations", lambda *_: found)
    done = command("debug", DIGITS_MODEL, digits, "--data", DIGITS_CARD)
    text = " ".join(done.out.split())
    assert "compute something else than the file says: first Conv" in text
    # Rounding, by one code, is none of them.
    assert "by up to 30 codes in 17 numbers" in text
    assert "tensors behind it" not in text
    result = debug(DIGITS_MODEL, digits, DIGITS_CARD, samples=10)
    assert [layer.deviation for layer in result.layers if layer.deviation] == [30]
    assert [layer.cause for layer in result.layers if layer.deviation] == ["saturates, 30 codes"]
