"""Quantized without data: what the files hold, widths by distortion, and the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_cbq import DataFreeConfig, DataFreeResult, quantize_without_data
from onnx_cbq.jobs.data_free import layer_statistics
from onnx_cbq.model import Array
from onnx_cbq.quantize.schemes import SCHEMES, grid_statistics, quantize_scheme
from onnx_cbq.runtime import Session
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.storage.emitted import distance

# Weight -> its shape and the axis along which its output channels lie.
LAYERS: dict[str, tuple[tuple[int, ...], int]] = {
    "grouped": ((6, 2, 3, 3), 0),
    "transposed": ((6, 2, 2, 2), 1),
    "left": ((5, 12), 0),
    "right": ((12, 7), 1),
    "stacked": ((4, 7, 3), 2),
    "rows": ((60, 9), 1),
    "head": ((5, 9), 0),
}
NODES = [
    node("Conv", "x grouped", "a", group=2, pads=[1, 1, 1, 1]),
    node("Relu", "a", "b"),
    node("ConvTranspose", "b transposed", "c", group=2, strides=[2, 2]),
    node("MatMul", "left c", "d"),
    node("MatMul", "d right", "e"),
    node("Tanh", "e", "f"),
    node("MatMul", "f stacked", "g"),
    node("Flatten", "g", "h"),
    node("Gemm", "h rows", "i"),
    node("Gemm", "i head bias", "y", transB=1),
]
# Only float32 sums in another order, in a Conv or in what fits a scale; one code off would move a weight by 1 %.
TOLERANCE = 1e-5


def net() -> onnx.ModelProto:
    """Every operator that has weights; some weights are much larger than others, so that rows differ."""
    random = np.random.default_rng(0)
    constants = {
        name: (random.standard_normal(shape) * random.lognormal(size=shape)).astype(np.float32) / 4
        for name, (shape, _) in LAYERS.items()
    }
    constants["bias"] = random.standard_normal(5).astype(np.float32)
    return typed(make_model(NODES, {"x": ["N", 4, 6, 6]}, ["y"], constants, opset=19), 5)


def typed(proto: onnx.ModelProto, outputs: int) -> onnx.ModelProto:
    """The model with a declared output, as exporters write it."""
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs]))
    return proto


def constants(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def expected_weight(weight: Array, axis: int, bits: Array, config: DataFreeConfig) -> Array:
    """Every channel at its width, or all weights at the width of the layer, by the scheme."""
    if config.per_tensor:
        return quantize_scheme(weight.reshape(1, -1), int(bits[0]), config.scheme).values.reshape(weight.shape)
    rows = np.moveaxis(weight, axis, 0)
    values = [
        quantize_scheme(row.reshape(1, -1), int(width), config.scheme).values.reshape(row.shape)
        for row, width in zip(rows, bits, strict=True)
    ]
    return np.moveaxis(np.array(values), 0, axis)


def weights_in(result: DataFreeResult) -> dict[str, str]:
    """Layer -> the tensor that stands for its weight in the file."""
    read = {n.output[0]: list(n.input) for n in result.proto.graph.node}
    return {layer.name: read[layer.uses[0].output][layer.uses[0].weight_index] for layer in result.layers}


def run(proto: onnx.ModelProto, names: list[str], feeds: dict[str, Array]) -> dict[str, Array]:
    """The tensors `names` by onnxruntime."""
    session = onnxruntime.InferenceSession(
        showing(proto, names).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, feeds), strict=True))


def showing(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with other outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.ClearField("output")
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return shown


def made_by_reference(proto: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    """Weights by ONNX's reference, which has no ConvTranspose of several groups: what makes the weights is enough."""
    made = showing(proto, names)
    nodes = [n for n in made.graph.node if n.op_type in ("Cast", "Gather", "DequantizeLinear", "Sub", "Mul")]
    for field, content in (("node", nodes), ("input", [])):
        made.graph.ClearField(field)
        getattr(made.graph, field).extend(content)
    return dict(zip(names, ReferenceEvaluator(made).run(names, {}), strict=True))


@pytest.mark.parametrize("bits", [2.0, 4.5, 8.0])
@pytest.mark.parametrize("per_tensor", [False, True], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_holds_the_weights_of_the_scheme(scheme: str, per_tensor: bool, bits: float, tmp_path: Path) -> None:
    """Scales along the wrong axis, a zero point lost, or codes mixed up between widths would give other weights."""
    proto, config = net(), DataFreeConfig(bits, scheme, per_tensor)
    result = quantize_without_data(proto, config)
    result.save(tmp_path / "q.onnx")
    source, names = constants(proto), weights_in(result)
    assert set(names) == set(LAYERS)
    wanted = {
        name: expected_weight(source[name], axis, result.plan.bits[name], config) for name, (_, axis) in LAYERS.items()
    }
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)}
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for tensor in plain.graph.initializer:
        if tensor.name in wanted:
            tensor.CopyFrom(numpy_helper.from_array(wanted[tensor.name].astype(np.float32), tensor.name))
    file = onnx.load(tmp_path / "q.onnx")
    ran = run(file, [*names.values(), "y"], feeds)
    for found in (ran, made_by_reference(file, list(names.values()))):
        for name, tensor in names.items():
            np.testing.assert_allclose(found[tensor], wanted[name], rtol=TOLERANCE / 10, atol=1e-12)
    assert distance(ran["y"], run(plain, ["y"], feeds)["y"]) < TOLERANCE


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_written_codes_take_no_more_than_their_bits(scheme: str) -> None:
    result = quantize_without_data(net(), DataFreeConfig(3.3, scheme))
    stored = constants(result.proto)
    for layer in result.layers:
        rows = np.moveaxis(stored[f"{layer.weight}_q"], LAYERS[layer.name][1], 0)
        assert rows.dtype.itemsize == 1
        for codes, width in zip(rows, result.plan.bits[layer.name], strict=True):
            assert len(np.unique(codes)) <= 2 ** int(width)


@pytest.mark.parametrize("per_tensor", [False, True], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("bits", [2.2, 4.5, 7.9])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_fraction_of_bits_is_met_and_used_up(scheme: str, bits: float, per_tensor: bool) -> None:
    """What is left over is less than one bit more for the largest unit that has a width of its own."""
    result = quantize_without_data(net(), DataFreeConfig(bits, scheme, per_tensor))
    sizes = {name: int(np.prod(shape)) for name, (shape, _) in LAYERS.items()}
    units = sizes if per_tensor else {name: sizes[name] // shape[axis] for name, (shape, axis) in LAYERS.items()}
    widths = result.plan.bits
    spent = sum(int(widths[name].sum()) * sizes[name] / len(widths[name]) for name in LAYERS)
    assert result.average_bits == pytest.approx(spent / sum(sizes.values()))
    assert result.average_bits <= bits
    assert scheme == "log" or result.average_bits >= bits - max(units.values()) / sum(sizes.values())
    assert all(2 <= width <= 8 for layer in widths.values() for width in layer.tolist())
    assert not per_tensor or all(len(set(layer.tolist())) == 1 for layer in widths.values())


def test_log_leaves_out_bits_that_change_no_weight() -> None:
    """Its further bits only add levels closer to zero than any weight."""
    result = quantize_without_data(net(), DataFreeConfig(7.9, "log"))
    assert result.average_bits < 7
    for name, (_, axis) in LAYERS.items():
        weight, bits = constants(net())[name], result.plan.bits[name]
        one, other = (expected_weight(weight, axis, b, result.config) for b in (bits, np.full_like(bits, 8)))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "log"])
def test_widths_go_where_they_lower_the_distortion(scheme: str) -> None:
    """Widths in another order than the channels would be worse than the same width everywhere."""

    def distortion(bits: float) -> float:
        config = DataFreeConfig(bits, scheme)
        result, total = quantize_without_data(net(), config), 0.0
        for name, (_, axis) in LAYERS.items():
            weight = constants(net())[name].astype(np.float64)
            noise = weight - expected_weight(constants(net())[name], axis, result.plan.bits[name], config)
            total += float((noise**2).sum() / (weight**2).sum())
        return total

    assert distortion(4.01) < 0.8 * distortion(4)
    assert distortion(4.99) > 0.8 * distortion(5.01)


def test_a_layer_of_zeros_has_no_ratio_of_signal_to_noise() -> None:
    """And JSON has no NaN."""
    values = {"w": np.zeros((4, 6), np.float32), "v": np.eye(6, dtype=np.float32)}
    proto = typed(make_model([node("Gemm", "x w", "a"), node("Gemm", "a v")], {"x": ["N", 4]}, ["y"], values), 6)
    for scheme in SCHEMES:
        result = quantize_without_data(proto, DataFreeConfig(4.5, scheme))
        assert json.loads(result.to_json())["layers"]["w"]["snr_db"] is None
        assert result.statistics["w"].zero_share == 1


@pytest.mark.parametrize("per_tensor", [False, True], ids=["per-channel", "per-tensor"])
def test_statistics_of_a_layer_are_those_of_its_rows(per_tensor: bool) -> None:
    found = layer_statistics(net(), 3, per_tensor=per_tensor)
    assert list(found) == list(LAYERS)
    for name, (_, axis) in LAYERS.items():
        weight = np.moveaxis(constants(net())[name], axis, 0)
        rows = weight.reshape(1 if per_tensor else len(weight), -1)
        for scheme in SCHEMES:
            expected = grid_statistics(rows, quantize_scheme(rows, 3, scheme), 3)
            assert asdict(found[name][scheme]) == pytest.approx(asdict(expected))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_statistics_of_a_result_are_those_of_the_weights_in_the_file(scheme: str) -> None:
    """Over all widths of a layer, from the values alone; how many levels there are depends on each channel's width."""
    result = quantize_without_data(net(), DataFreeConfig(3.3, scheme))
    names = weights_in(result)
    values = made_by_reference(result.proto, list(names.values()))
    for name, (_, axis) in LAYERS.items():
        weight, found = constants(net())[name].astype(np.float64), values[names[name]].astype(np.float64)
        rows = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
        used = [len(np.unique(row)) / 2 ** int(b) for row, b in zip(rows, result.plan.bits[name], strict=True)]
        statistics = result.statistics[name]
        assert statistics.zero_share == pytest.approx(np.mean(found == 0))
        assert statistics.range == pytest.approx(np.ptp(rows, axis=1).max(), rel=1e-5)
        assert statistics.occupancy == pytest.approx(np.mean(used))
        noise = float(((weight - found) ** 2).sum())
        assert statistics.snr_db == pytest.approx(10 * np.log10((weight**2).sum() / noise), abs=1e-3)


DIGITS = ("--data", DIGITS_CARD)


@pytest.mark.parametrize(
    ("options", "bits"),
    [((), 4.0), (("--bits", "4.5", "--scheme", "log"), 4.5), (("--bits", "6", "--per-tensor"), 6.0)],
)
def test_the_command_needs_no_card(tmp_path: Path, command: Command, options: tuple[str, ...], bits: float) -> None:
    """The file can be evaluated and inspected like any other, and JSON and table say what is in it."""
    model, figures = tmp_path / "q.onnx", tmp_path / "q.json"
    finished = command("quantize", DIGITS_MODEL, "--data-free", "--output", model, "--json", figures, *options)
    assert (finished.code, finished.err) == (0, "")
    found = json.loads(figures.read_text())
    assert bits - 0.05 < found["average_bits"] <= bits
    assert found["quantized"]["bytes"] == model.stat().st_size < found["float"]["bytes"] == DIGITS_MODEL.stat().st_size
    assert found["settings"]["bits"] == bits
    rows = [line.split() for line in finished.out.splitlines()]
    for name, statistics in found["layers"].items():
        row = next(row for row in rows if row and row[0] == name)
        assert row[2] == f"{np.mean(found['bits'][name]):.2f}"
        assert row[4:] == [
            f"{100 * statistics['zero_share']:.2f}",
            f"{100 * statistics['occupancy']:.2f}",
            f"{statistics['snr_db']:.1f}",
        ]
    assert command("evaluate", model, *DIGITS, "--json", tmp_path / "e.json").code == 0
    assert json.loads((tmp_path / "e.json").read_text())["top1"] > 90
    inspected = command("inspect", model).out
    scheme = found["settings"].get("scheme", "mse")
    assert f"method data-free {scheme}, {found['average_bits']:.3f} bits" in inspected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "--data"),
        (("--data-free", *DIGITS), "leave out --data"),
        (("--data-free", "--max-drop", "1", "--curve"), "leave out --curve, --max-drop"),
        (("--data-free", "--activation-bits", "8"), "leave out --activation-bits"),
        ((*DIGITS, "--scheme", "log"), "leave out --scheme"),
    ],
    ids=["neither", "both", "limit", "activations", "scheme"],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], expected: str
) -> None:
    """A limit that nobody checks, or a scheme that nobody uses, must not look as if it held."""
    monkeypatch.setenv("COLUMNS", "200")
    finished = command("quantize", DIGITS_MODEL, "--output", tmp_path / "q.onnx", *options)
    assert (finished.code, finished.out) == (2, "")
    assert expected in finished.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("quantize", DIGITS_MODEL, "--data-free", "--scheme", "best"), "--scheme: expected mse or symmetric or "),
        (
            ("quantize", DIGITS_MODEL, "--data-free", "--bits", "1.5"),
            "--bits: expected 2 to 8 with --data-free, got 1.5",
        ),
        (("quantize", DIGITS_MODEL, "--data-free", "--output", DIGITS_MODEL), "is also another file of this command"),
        (("quantize", "none.onnx", "--data-free"), "none.onnx: no such file"),
        (("inspect", DIGITS_MODEL, "--weights", "--bits", "9"), "--bits: expected 2 to 8"),
        (("inspect", "none.onnx", "--weights"), "none.onnx: no such file"),
    ],
)
def test_bad_settings_are_explained_in_a_line(command: Command, arguments: tuple[object, ...], expected: str) -> None:
    before = DIGITS_MODEL.read_bytes()
    finished = command(*arguments)
    assert (finished.code, finished.out, finished.err.count("\n")) == (1, "", 1)
    assert expected in finished.err
    assert DIGITS_MODEL.read_bytes() == before


@pytest.mark.parametrize("options", [(), ("--bits", "2", "--per-tensor")])
def test_inspect_shows_every_scheme_of_every_layer(command: Command, options: tuple[str, ...]) -> None:
    finished = command("inspect", DIGITS_MODEL, "--weights", *options)
    assert (finished.code, finished.err) == (0, "")
    found = layer_statistics(DIGITS_MODEL, 2 if options else 4, per_tensor=bool(options))
    expected = [
        [
            scheme,
            f"{s.range:.4g}",
            f"{100 * s.zero_share:.2f}",
            f"{100 * s.occupancy:.2f}",
            "-" if s.snr_db is None else f"{s.snr_db:.1f}",
        ]
        for schemes in found.values()
        for scheme, s in schemes.items()
    ]
    assert len(expected) == 4 * len(SCHEMES)
    assert [line.split()[-5:] for line in finished.out.splitlines()[1:-1]] == expected


@pytest.mark.parametrize("bits", [3.0, 4.5])
@pytest.mark.parametrize("scheme", DataFreeConfig.SCHEMES)
def test_packed_weights_are_the_same_and_smaller(scheme: str, bits: float) -> None:
    """A scheme's codes may lie on a grid of their own, or be positions in a table: each needs its own way back."""
    plain, packed = (
        quantize_without_data(DIGITS_MODEL, DataFreeConfig(bits, scheme, storage=storage))
        for storage in ("int8", "packed")
    )
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)}
    one, other = (Session(result.model).run(feeds) for result in (plain, packed))
    # The weights are the same to the last bit (that is checked before a file is written), the kernels are others.
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
    assert packed.bytes < plain.bytes - 0.5 * plain.layers.size * (1 - bits / 8)
