"""Channels of 0 bits are cut out, and the model computes what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.placement import NO_ACTIVATIONS
from onnx_cbq.graph.shapes import Example
from onnx_cbq.jobs.inspect import inspect
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.weights import quantize_layer
from onnx_cbq.records import Removal, Written
from onnx_cbq.runtime import Optimization, Session
from onnx_cbq.stages import removal
from onnx_cbq.stages.removal import Run, remove_channels
from onnx_cbq.storage import Int8, Packed, Storage
from onnx_cbq.storage.qdq import emit_qdq
from onnx_cbq.verification.verify import check_file
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.storage.emitted import Emitted, distance, emitted, simulate

# Only float32 sums in another order; one activation on the neighbouring level would move an output by 1e-4 or more.
TOLERANCE = 1e-5
PAD = [1, 1, 1, 1]


def normal(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)


def bias(count: int, value: float = 1.0, seed: int = 7) -> Array:
    """Random, the first of `value` and the second of half of it."""
    found = normal(count, seed=seed)
    found[:2] = value, value / 2
    return found


@dataclass(frozen=True)
class Case:
    """A net with channels of 0 bits, and what should become of them.

    `kept` maps a layer to a part of the reason why it keeps all of its zeros.
    """

    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, Array]
    zeros: Mapping[str, Sequence[int]]
    removed: Mapping[str, Sequence[int]]
    kept: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ("y",)
    shape: Sequence[int | str] = ("N", 3, 6, 6)

    def proto(self) -> onnx.ModelProto:
        proto = make_model(list(self.nodes), {"x": self.shape}, self.outputs, self.constants)
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]))
        return proto


def head(source: str, channels: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """From a feature map to scores: a convolution of 1x1, pooling, a Gemm."""
    nodes = [
        node("Conv", f"{source} h hb", "h1"),
        node("Relu", "h1", "h2"),
        node("GlobalAveragePool", "h2", "h3"),
        node("Flatten", "h3", "h4"),
        node("Gemm", "h4 g gb", "y", transB=1),
    ]
    constants = {"h": normal(4, channels, 1, 1, seed=1), "hb": normal(4, seed=2), "g": normal(5, 4), "gb": normal(5)}
    return nodes, constants


def net(
    body: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    channels: int = 4,
    first: float = 1.0,
    **expected: object,
) -> Case:
    """Conv w of 4 channels and a Relu to `r`, then `body` to `m`, then the head; the first two channels have 0 bits."""
    stem = [node("Conv", "x w b", "a", pads=PAD), node("Relu", "a", "r")]
    nodes, more = head("m", channels)
    zeros = {"w": [0, 1]}
    return Case(
        [*stem, *body, *nodes],
        {"w": normal(4, 3, 3, 3), "b": bias(4, first), **constants, **more},
        **{"zeros": zeros, "removed": zeros, **expected},  # type: ignore[arg-type]
    )


def conv(source: str, output: str, weight: str = "v", **attrs: object) -> onnx.NodeProto:
    return node("Conv", f"{source} {weight} {weight}b", output, **attrs)


def pair(weight: str, *shape: int, value: float = 1.0) -> dict[str, Array]:
    return {weight: normal(*shape, seed=3), f"{weight}b": bias(shape[0], value)}


SQUARE = pair("v", 4, 4, 3, 3)
DEPTHWISE = pair("v", 4, 1, 3, 3)
NORM = {
    "s": 1 + normal(4) / 4,
    "o": normal(4, seed=4),
    "e": normal(4, seed=5),
    "q": np.linspace(0.5, 2, 4, dtype=np.float32),
}
BORDER = "numbers at the borders, where zeros were padded"
CASES: dict[str, Case] = {
    "zero-constant-padded": net([conv("r", "m", pads=PAD)], SQUARE, first=-1),
    "constant-padded": net(
        [conv("r", "m", pads=PAD)], SQUARE, removed={}, kept={"w": "Conv Conv_m pads it with zeros, and it is not 0"}
    ),
    "constant-unpadded": net([conv("r", "m")], SQUARE),
    "strides-that-need-no-padding": net([conv("r", "m", strides=[3, 3])], SQUARE),
    "max-pool": net([node("MaxPool", "r", "m", kernel_shape=[3, 3], pads=PAD, strides=[2, 2])], {}),
    "average-pool": net([node("AveragePool", "r", "m", kernel_shape=[3, 3], pads=PAD, strides=[2, 2])], {}),
    "average-pool-with-padding": net(
        [node("AveragePool", "r", "m", kernel_shape=[3, 3], pads=PAD, count_include_pad=1)],
        {},
        removed={},
        kept={"w": BORDER},
    ),
    "padded": net(
        [node("Pad", "r pads", "m")],
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        removed={},
        kept={"w": BORDER},
    ),
    "padded-along-the-channels": net(
        [node("Pad", "r pads", "m")],
        {"pads": np.array([0, 1, 0, 0, 0, 0, 0, 0])},
        5,
        removed={},
        kept={"w": "Pad Pad_m cannot do without it"},
    ),
    "clip": net([node("Clip", "r low high", "m")], {"low": np.array(0, np.float32), "high": np.array(0.8, np.float32)}),
    "sigmoid-and-leaky": net([node("Sigmoid", "r", "t"), node("LeakyRelu", "t", "m")], {}),
    "hard-swish": net([node("HardSigmoid", "r", "t"), node("Mul", "r t", "m")], {}),
    "batch-norm": net([node("BatchNormalization", "r s o e q", "m")], NORM),
    "scaled": net(
        [node("Mul", "s4 r", "t"), node("PRelu", "t p", "m")], {"s4": normal(1, 4, 1, 1), "p": normal(4, 1, 1)}
    ),
    "position": net([node("Add", "r p", "m")], {"p": normal(4, 6, 6)}, removed={}, kept={"w": BORDER}),
    "depthwise": net([conv("r", "m", group=4)], DEPTHWISE, removed={"w": [0, 1], "v": [0, 1]}),
    "depthwise-on-zero": net(
        [conv("r", "m", group=4, pads=PAD)], DEPTHWISE, first=-1, removed={"w": [0, 1], "v": [0, 1]}
    ),
    "depthwise-padded": net([conv("r", "m", group=4, pads=PAD)], DEPTHWISE, removed={}, kept={"w": BORDER}),
    "depthwise-zeros-alone": net(
        [conv("r", "m", group=4, pads=PAD)], DEPTHWISE, zeros={"v": [1, 3]}, removed={"w": [1, 3], "v": [1, 3]}
    ),
    "groups": net(
        [conv("r", "m", group=2)],
        pair("v", 4, 2, 3, 3),
        zeros={"w": [0, 2], "v": [0, 1]},
        removed={"v": [0, 1], "w": [0, 1]},
        kept={"w": "keeps its group"},
    ),
    "group-in-part": net(
        [conv("r", "m", group=2)],
        pair("v", 6, 2, 3, 3),
        6,
        zeros={"v": [0, 1]},
        removed={},
        kept={"v": "keeps its group"},
    ),
    "concat": net(
        [conv("r", "t"), conv("r", "u", "z"), node("Concat", "t u t", "m", axis=1)],
        {**SQUARE, **pair("z", 3, 4, 3, 3)},
        11,
        zeros={"w": [1], "v": [1, 2], "z": [0]},
        removed={"w": [1], "v": [1, 2], "z": [0]},
    ),
    "residual": net(
        [conv("r", "t", pads=PAD), node("Add", "r t", "m")],
        SQUARE,
        zeros={"v": [1, 2], "w": [0]},
        removed={},
        kept={"v": "Add Add_m joins it with a channel that is not constant", "w": "Add Add_m joins it"},
    ),
    "residual-on-both-sides": net(
        [conv("r", "t", pads=PAD), node("Add", "r t", "m")],
        SQUARE,
        first=-1,
        zeros={"v": [1, 2], "w": [1]},
        removed={"v": [1], "w": [1]},
        kept={"v": "Add Add_m joins it"},
    ),
    "gate": net(
        [node("GlobalAveragePool", "r", "t"), conv("t", "u"), node("Sigmoid", "u", "k"), node("Mul", "r k", "m")],
        pair("v", 4, 4, 1, 1),
        zeros={"v": [0, 3], "w": [0, 1]},
        removed={"v": [0], "w": [0]},
        kept={"w": "joins it", "v": "joins it"},
    ),
    "all-channels": net(
        [conv("r", "m")],
        SQUARE,
        zeros={"w": range(4)},
        removed={"w": [1, 2, 3], "v": [1, 2, 3], "h": [1, 2, 3]},
        kept={"w": "all channels of the layer would go"},
    ),
    "instance-norm": net(
        [node("InstanceNormalization", "r s o", "m")],
        NORM,
        removed={},
        kept={"w": "InstanceNormalization_m cannot do without it"},
    ),
    "output-of-the-model": replace(
        net([node("Sigmoid", "r", "m")], {}, removed={}, kept={"w": "input or output of the model"}), outputs=("y", "m")
    ),
    "transposed": net(
        [node("ConvTranspose", "r v vb", "m", strides=[2, 2])],
        {"v": normal(4, 3, 2, 2), "vb": bias(3)},
        3,
        zeros={"w": [0], "v": [1]},
        removed={"v": [1]},
        kept={"w": "ConvTranspose_m spreads it unevenly"},
    ),
    "unread": net(
        [conv("r", "m")],
        {"v": SQUARE["v"] * (np.arange(4) != 2)[:, None, None].astype(np.float32), "vb": bias(4)},
        zeros={"v": [0]},
        removed={"v": [0], "w": [2]},
    ),
    "same-weight-twice": net(
        [conv("r", "t"), node("Relu", "t", "k"), conv("k", "m")],
        pair("v", 4, 4, 1, 1),
        zeros={"v": [0, 2], "w": [0]},
        removed={"v": [0], "w": [0]},
        kept={"v": "needs its value"},
    ),
}


def flat_case(
    middle: Sequence[onnx.NodeProto], columns: int, constants: Mapping[str, Array], **expected: object
) -> Case:
    """A Conv whose channels end as columns of a Gemm."""
    zeros = {"w": [0, 2]}
    return Case(
        [
            node("Conv", "x w b", "a"),
            node("Relu", "a", "r"),
            *middle,
            node("Gemm", "f v u", "k", transB=1),
            node("Relu", "k", "l"),
            node("Gemm", "l g gb", "y"),
        ],
        {
            "w": normal(4, 3, 3, 3),
            "b": bias(4),
            "v": normal(7, columns),
            "u": bias(7),
            "g": normal(7, 5),
            "gb": normal(5),
            **constants,
        },
        **{"zeros": zeros, "removed": zeros, **expected},  # type: ignore[arg-type]
    )


CASES |= {
    "flatten": flat_case(
        [node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Flatten", "p", "f")],
        16,
        {},
        zeros={"w": [0, 2], "v": [1, 6]},
        removed={"w": [0, 2], "v": [1, 6]},
    ),
    "reshape": flat_case([node("Reshape", "r shape", "f")], 64, {"shape": np.array([-1, 64])}),
    "transposed-flatten": flat_case(
        [node("Transpose", "r", "t", perm=[0, 3, 2, 1]), node("Flatten", "t", "f")], 64, {}
    ),
    "squeezed": flat_case(
        [node("GlobalAveragePool", "r", "t"), node("Squeeze", "t axes", "f")], 4, {"axes": np.array([2, 3])}
    ),
    "border-flattened": flat_case(
        [conv("r", "t", "z", group=4, pads=PAD), node("Flatten", "t", "f")],
        64,
        pair("z", 4, 1, 3, 3),
        removed={"w": [0, 2], "z": [0, 2]},
    ),
    "reshaped-otherwise": flat_case(
        [node("Reshape", "r shape", "t"), node("Softmax", "t", "s", axis=1), node("Flatten", "s", "f")],
        64,
        {"shape": np.array([-1, 8, 8])},
        removed={},
        kept={"w": "Reshape Reshape_t cannot do without it"},
    ),
    "scores": Case(
        [node("Flatten", "x", "f"), node("Gemm", "f w b", "y", transB=1)],
        {"w": normal(5, 108), "b": bias(5)},
        {"w": [0, 3]},
        {},
        {"w": "output of the model"},
    ),
    "no-bias": Case(
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("MatMul", "t w", "a"),
            node("Sigmoid", "a", "r"),
            node("MatMul", "r v", "k"),
            node("Transpose", "k", "l", perm=[1, 0, 2]),
            node("Flatten", "l", "f"),
            node("Gemm", "f g gb", "y"),
        ],
        {"w": normal(4, 7), "v": normal(7, 3), "g": normal(18, 5), "gb": normal(5)},
        {"w": [0, 3], "v": [1]},
        {"v": [1]},
        {"w": "MatMul_k has no bias to take it up"},
        shape=("N", 6, 4),
    ),
    "zero-without-bias": Case(
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("MatMul", "t w", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r v", "k"),
            node("Transpose", "k", "l", perm=[1, 0, 2]),
            node("Flatten", "l", "f"),
            node("Gemm", "f g gb", "y"),
        ],
        {"w": normal(4, 7), "v": normal(7, 3), "g": normal(18, 5), "gb": normal(5)},
        {"w": [0, 3], "v": [1]},
        {"w": [0, 3], "v": [1]},
        shape=("N", 6, 4),
    ),
}
CASES["fixed-batch"] = replace(CASES["reshape"], shape=(3, 3, 6, 6))


@pytest.fixture(autouse=True)
def _channels_go_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else small nets would keep most."""
    monkeypatch.setattr(removal, "INTEGER_BLOCKS", ())
    monkeypatch.setattr(removal, "FLOAT_BLOCKS", ())


def run(case: Emitted) -> tuple[Written, Removal]:
    example = Example(case.feeds)
    settings = Run(case.placement, case.grids, example.shapes(case.original), example)
    return remove_channels(Written(case.original, case.layers, case.weights), settings)


def written(found: Written, case: Emitted, storage: Storage | None = None) -> Model:
    storage = storage or Int8()
    model = emit_qdq(found.model, found.layers, found.weights, case.placement, case.grids, storage.codes())
    return storage.finish(model)


@pytest.mark.parametrize("activation_bits", [0, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_what_is_removed_changes_nothing(name: str, activation_bits: int, tmp_path: Path) -> None:
    """Beside the model with all channels, and beside a simulation that knows of none of this."""
    net = CASES[name]
    case = emitted(
        net.proto(), 6, activations=activation_bits > 0, activation_bits=activation_bits or 8, zeros=net.zeros
    )
    found, report = run(case)
    assert report.notes == ()
    assert {layer: list(channels) for layer, channels in report.removed.items()} == {
        layer: list(channels) for layer, channels in net.removed.items()
    }
    assert {entry.layer for entry in report.kept_zero} == net.kept.keys()
    assert all(net.kept[entry.layer] in entry.reason for entry in report.kept_zero), report.kept_zero
    smaller = written(found, case)
    optimization: Optimization = "all" if activation_bits else "off"
    before, after = (Session(model, optimization).run(case.feeds) for model in (case.model, smaller))
    for output in net.outputs:
        if activation_bits:
            np.testing.assert_array_equal(after[output], before[output])
        assert distance(after[output], before[output]) < TOLERANCE
    plain = Session(smaller, "off").run(case.feeds)
    for output, value in simulate(case).items():
        assert distance(plain[output], value) < TOLERANCE
    packed = Session(written(found, case, Packed()), optimization).run(case.feeds)["y"]
    np.testing.assert_array_equal(packed, after["y"])
    path = replace(case, model=smaller).save(tmp_path)
    check_file(path, case.original, found.layers, found.weights, case.feeds)


@pytest.mark.parametrize("name", CASES)
def test_counts_add_up(name: str) -> None:
    net = CASES[name]
    case = emitted(net.proto(), 6, zeros=net.zeros)
    found, report = run(case)
    assert report.macs == (case.layers.macs, found.layers.macs)
    assert (report.macs[1] < report.macs[0]) == bool(net.removed)
    zeros = {layer.name: set(np.flatnonzero(case.weights[layer.name].bits == 0)) for layer in case.layers}
    kept = dict.fromkeys(zeros, 0)
    for entry in report.kept_zero:
        kept[entry.layer] += entry.channels
    for layer, smaller in zip(case.layers, found.layers, strict=True):
        removed = set(report.removed.get(layer.name, ()))
        assert len(zeros[layer.name]) == len(zeros[layer.name] & removed) + kept[layer.name]
        assert smaller.channels == layer.channels - len(removed) > 0
        weights = found.weights[smaller.name]
        assert weights.codes.shape == found.model.weight(smaller.weight).shape == smaller.weight_shape
        assert weights.scale.shape == weights.bits.shape == (smaller.channels,)


@pytest.mark.parametrize("activations", [True, False], ids=["integers", "float-activations"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(("name", "least"), [("depthwise", 9), ("vit", 0), ("signal", 2), ("residual", 4)])
def test_exported_nets_with_zeros_anywhere_compute_the_same(
    exported: Callable[..., onnx.ModelProto], name: str, least: int, dynamo: bool, activations: bool
) -> None:
    """A third of all channels, at random; by how the nets are built, some of these can go."""
    proto = exported(name, dynamo=dynamo)
    layers = emitted(proto, 6).layers
    random = np.random.default_rng(1)
    zeros = {layer.name: np.flatnonzero(random.random(layer.channels) < 1 / 3).tolist() for layer in layers}
    case = emitted(proto, 6, activations=activations, zeros=zeros)
    found, report = run(case)
    assert report.notes == ()
    assert sum(map(len, report.removed.values())) >= least
    optimization: Optimization = "all" if activations else "off"
    before, after = (Session(m, optimization).run(case.feeds)["logits"] for m in (case.model, written(found, case)))
    assert distance(after, before) < TOLERANCE
    assert activations is False or np.array_equal(after, before)


def test_a_removal_that_would_change_an_output_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check decides, and the report says so."""
    net = CASES["constant-unpadded"]
    monkeypatch.setattr(removal, "_uniform", lambda value, _: 0 * value.max(axis=(0, *range(2, value.ndim))))
    for activations in (True, False):
        case = emitted(net.proto(), 6, activations=activations, zeros=net.zeros)
        found, report = run(case)
        assert found.layers == case.layers
        assert found.model is case.original
        assert (report.removed, report.macs) == ({}, (case.layers.macs,) * 2)
        (entry,) = report.kept_zero
        assert (entry.layer, entry.channels) == ("w", 2)
        assert entry.reason.startswith("it would change an output by ")
        assert report.notes == (f"no channels were removed: {entry.reason}",)


def test_a_bias_that_int32_cannot_hold_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    net = CASES["constant-unpadded"]
    case = emitted(net.proto(), 6, zeros=net.zeros)
    monkeypatch.setattr(removal, "_LARGEST_INT32", 100)
    found, report = run(case)
    assert found.model is case.original
    assert report.notes == ("no channels were removed: the bias of layer 'v' would leave the range of int32",)


def test_a_bias_is_a_whole_multiple_of_its_scale_however_large() -> None:
    """In float32 one of 2^30 is only known to 64 of them."""
    net = CASES["constant-unpadded"]
    large = {**net.constants, "vb": np.array([1e6, -1e6, 3e5, 1e7], np.float32)}
    case = emitted(replace(net, constants=large).proto(), 6, zeros=net.zeros)
    found, _ = run(case)
    before, after = (
        next(value for name, value in integers(model).items() if name.startswith("vb"))
        for model in (case.model, written(found, case))
    )
    grid = case.grids["r"]
    constants = np.rint(np.clip(large["b"][:2] / np.float32(grid.scale), 0, 255))
    added = case.weights["v"].codes[:, :2].astype(np.int64).sum(axis=(2, 3)) @ constants.astype(np.int64)
    np.testing.assert_array_equal(after.astype(np.int64), before + added)
    assert np.abs(before).max() > 2**24


def integers(model: Model) -> dict[str, Array]:
    """Constants of type int32."""
    values = {tensor.name: model.weight(tensor.name) for tensor in model.skeleton.graph.initializer}
    return {name: value for name, value in values.items() if value.dtype == np.int32}


def test_a_graph_inside_a_node_may_read_anything() -> None:
    """What its branches read is among the inputs of the sealed node, of which nothing else is known."""
    inner = helper.make_graph([node("Identity", "r", "i")], "inner", [], [helper.make_empty_tensor_value_info("i")])
    branch = helper.make_node("If", ["flag"], ["t"], name="If_t", then_branch=inner, else_branch=inner)
    net_with = net(
        [branch, node("ReduceMax", "t", "k", keepdims=1), node("Mul", "r k", "m")], {"flag": np.ones((), np.bool_)}
    )
    model = load(net_with.proto())
    example = Example({"x": normal(3, 3, 6, 6)})
    shapes = example.shapes(model)
    layers = find_layers(model, shapes)
    weights = {
        layer.name: quantize_layer(
            layer, model.weight(layer.weight), np.full(layer.channels, 0 if layer.name == "w" else 4)
        )
        for layer in layers
    }
    _, report = remove_channels(Written(model, layers, weights), Run(NO_ACTIVATIONS, {}, shapes, example))
    assert report.removed == {}
    assert report.kept_zero[0].reason.endswith("cannot do without it")


@pytest.mark.parametrize("activations", [True, False], ids=["integers", "float-activations"])
def test_channels_of_convolutions_go_in_blocks(activations: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers in fours, floats in sixteens, which leaves all here; also where a depthwise Conv ties two layers.

    Gemms, and layers of another number of channels, lose any number.
    """
    monkeypatch.setattr(removal, "INTEGER_BLOCKS", (4,))
    monkeypatch.setattr(removal, "FLOAT_BLOCKS", (16, 8))
    nodes = [
        conv("x", "a", "w"),
        node("Relu", "a", "r"),
        conv("r", "d", group=16),
        conv("d", "k", "z"),
        node("GlobalAveragePool", "k", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f q qb", "t", transB=1),
        node("Gemm", "t g gb", "y", transB=1),
    ]
    constants = {
        **pair("w", 16, 3, 3, 3),
        **pair("v", 16, 1, 3, 3),
        **pair("z", 6, 16, 1, 1),
        **pair("q", 8, 6),
        **pair("g", 5, 8),
    }
    net = Case(nodes, constants, {"w": [0, 3, 4, 9, 11, 15], "v": [1], "z": [2], "q": [0, 1, 7]}, {})
    case = emitted(net.proto(), 6, activations=activations, zeros=net.zeros)
    found, report = run(case)
    counts = {name: len(channels) for name, channels in report.removed.items()}
    assert counts == {**({"w": 4, "v": 4} if activations else {}), "z": 1, "q": 3}
    assert report.kept_zero
    assert all(f"{4 if activations else 16} at a time" in entry.reason for entry in report.kept_zero)
    before, after = (Session(model).run(case.feeds)["y"] for model in (case.model, written(found, case)))
    assert distance(after, before) < TOLERANCE or not activations


def test_without_zeros_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    case = emitted(CASES["depthwise"].proto(), 6)
    monkeypatch.setattr(removal, "Session", None)
    found, report = run(case)
    assert found.model is case.original
    assert report == Removal({}, (), (case.layers.macs,) * 2)


def test_macs_are_counted_per_sample() -> None:
    """By hand: positions x outputs x inputs per group x kernel."""
    net = CASES["depthwise"]
    macs = {layer.name: layer.macs for layer in emitted(net.proto(), 6).layers}
    assert macs == {"w": 36 * 4 * 3 * 9, "v": 16 * 4 * 9, "h": 16 * 4 * 4, "g": 4 * 5}
    transposed = {layer.name: layer.macs for layer in emitted(CASES["transposed"].proto(), 6).layers}
    assert transposed["v"] == 36 * 4 * 3 * 4
    steps = {layer.name: layer.macs for layer in emitted(CASES["no-bias"].proto(), 6).layers}
    assert steps == {"w": 6 * 4 * 7, "v": 6 * 7 * 3, "g": 18 * 5}


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_the_command_reports_what_was_removed(storage: str, tmp_path: Path, command: Command) -> None:
    """The plan keeps the digits of all channels, in the JSON and in the file, whose weights are smaller."""
    target = ("--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json")
    options = ("--bits", "0.5", "--samples", "60", "--rounding", "nearest", "--method", "cbq", "--storage", storage)
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *target, *options)
    assert (finished.code, finished.err) == (0, "")
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["removed"]
    assert found["macs"]["quantized"] < found["macs"]["float"]
    plan = inspect(tmp_path / "q.onnx").plan
    assert plan is not None
    assert {name: layer.bits.tolist() for name, layer in plan.layers.items()} == found["bits"]
    for name, layer in plan.layers.items():
        gone = len(found["bits"][name]) - found["removed"].get(name, 0)
        assert gone in layer.shape
    zeros = sum(bits.count(0) for bits in found["bits"].values())
    left = sum(entry["channels"] for entry in found["kept_zero"])
    assert zeros - left <= sum(found["removed"].values())
    lines = finished.out.splitlines()
    first = next(iter(found["removed"]))
    assert any(
        line.startswith(f"channels removed: {first} {found['removed'][first]} of {len(found['bits'][first])}")
        for line in lines
    )
    for entry in found["kept_zero"]:
        assert f"kept as zeros: {entry['channels']} of {entry['layer']}: {entry['reason']}" in lines
    again = command("evaluate", tmp_path / "q.onnx", "--data", DIGITS_CARD, "--json", tmp_path / "e.json")
    assert again.code == 0
    assert json.loads((tmp_path / "e.json").read_text())["top1"] == found["quantized"]["top1"]
    assert command("inspect", tmp_path / "q.onnx").code == 0


def test_a_product_whose_axes_are_not_followed_takes_nothing_up() -> None:
    """A weight of three axes: the size of another axis was taken for its channels, and the command broke."""
    nodes = [node("MatMul", "x t", "m"), node("MatMul", "m w", "n"), node("ReduceMax", "n a", "p", keepdims=0)]
    nodes += [node("Relu", "p", "r"), node("MatMul", "r v", "s"), node("Relu", "s", "u"), node("MatMul", "u g", "y")]
    constants = {"t": normal(1, 7, 8), "w": normal(8, 6), "a": np.array([1]), "v": normal(6, 4), "g": normal(4, 5)}
    proto = make_model(nodes, {"x": ["N", 3, 7]}, ["y"], constants)
    case = emitted(proto, 6, activations=True, activation_bits=8, zeros={"v": [0, 1]})
    found, report = run(case)
    assert report.notes == ()
    smaller = written(found, case)
    before, after = (Session(model).run(case.feeds)["y"] for model in (case.model, smaller))
    np.testing.assert_array_equal(after, before)
