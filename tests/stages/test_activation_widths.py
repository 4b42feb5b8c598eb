"""A width for each activation: within the average, by what each costs, by measurement never worse than one for all."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnx_cbq import AutoBits, CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.stages.activation_widths import choose_widths
from onnx_cbq.stages.activations import read_bits
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.scenes import aim

CONFIG = QuantizeConfig(bits=4, method="uniform", rounding="nearest", samples=200, activation_bits=AutoBits(4.0))


def chosen(model: Path | ModelProto, data: Path | CalibrationSet, config: QuantizeConfig) -> Workload:
    return choose_widths(aim(prepare(model, data), config), config.choice.scene)


def average(work: Workload) -> float:
    """Bits of what is multiplied, by definition: each multiplication reads an activation."""
    widths = work.widths(0)
    read = [
        (layer.macs, widths[name])
        for layer in work.layers.products
        for name in (work.placement.grid_of(layer.uses[0].activation),)
        if name in work.narrow
    ]
    macs, bits = np.array(read, np.float64).T
    return float(macs @ bits / macs.sum())


def figures(work: Workload) -> tuple[float, float]:
    """The measured divergences in the note: as chosen, and with one width for all."""
    (note,) = [note for note in work.notes if note.startswith("--activation-bits auto")]
    found = re.search(r"float weights (\S+), (\S+) at \d bits each", note)
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("bits", [AutoBits(2.5), AutoBits(4.0), AutoBits(6.0, (4, 8))])
def test_widths_stay_within_the_average(bits: AutoBits) -> None:
    """And among those that may be chosen; inputs of the model keep 8 bits."""
    work = chosen(DIGITS_MODEL, DIGITS_CARD, replace(CONFIG, activation_bits=bits))
    assert set(work.chosen_widths) == work.narrow
    assert set(work.chosen_widths.values()) <= set(bits.widths)
    assert bits.average - 1.5 < average(work) <= bits.average + 1e-9
    loss, alike = figures(work)
    assert loss <= alike
    assert all(work.widths(0)[spec.name] == 8 for spec in work.model.inputs if spec.name in work.placement.measured)


def test_weights_follow_the_widths_that_they_meet() -> None:
    """Codes that meet wide activations in 16-bit lanes have bounds of their own."""
    work = chosen(DIGITS_MODEL, DIGITS_CARD, replace(CONFIG, activation_bits=AutoBits(6.0, (4, 8))))
    for layer in work.layers.products:
        widths = work.widths(0)[work.placement.grid_of(layer.uses[0].activation)]
        assert layer.rules.top == 2**widths - 1
    assert {layer.rules.top for layer in work.layers.products} == {15, 255}


def test_a_single_sample_has_one_width_and_a_note() -> None:
    """Nothing can be measured then; it was once an unforeseen error."""
    config = replace(CONFIG, samples=1, classes=("3",), activation_bits=AutoBits(4.5))
    work = chosen(DIGITS_MODEL, DIGITS_CARD, config)
    assert set(work.chosen_widths.values()) == {4}
    assert "--activation-bits auto:4.5: a single sample, so nothing can be measured; 4 bits each" in work.notes


def data() -> CalibrationSet:
    random = np.random.default_rng(8)
    labels = np.arange(160) % 3
    x = random.normal(size=(160, 6)) + 1.5 * np.eye(6)[labels]
    return CalibrationSet.from_arrays(x.astype(np.float32), labels)


def test_a_net_without_hidden_activations_says_so() -> None:
    """Its input keeps 8 bits, and there is nothing else."""
    weight = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)
    work = chosen(make_model([node("MatMul", "x w", "y")], {"x": ["N", 6]}, ["y"], {"w": weight}), data(), CONFIG)
    assert work.chosen_widths == {}
    assert "--activation-bits auto:4: no activation has a width to choose" in work.notes


def two_ways() -> ModelProto:
    """Two hidden layers of the same size; what the class scores take from the second is next to nothing."""
    random = np.random.default_rng(9)
    inside = random.normal(size=(2, 6, 16)) / 2
    head = random.normal(size=(2, 16, 3)) * np.array([1.0, 0.001])[:, None, None]
    constants = {"a": inside[0], "b": inside[1], "c": head[0], "d": head[1]}
    nodes = [node("MatMul", "x a", "p"), node("Relu", "p", "u"), node("MatMul", "u c", "s")]
    nodes += [node("MatMul", "x b", "q"), node("Relu", "q", "v"), node("MatMul", "v d", "t"), node("Add", "s t", "y")]
    floats: dict[str, Array] = {name: value.astype(np.float32) for name, value in constants.items()}
    return make_model(nodes, {"x": ["N", 6]}, ["y"], floats)


def test_bits_go_where_they_count() -> None:
    """Both hold the same numbers, so no histogram tells them apart; measuring does."""
    work = chosen(two_ways(), data(), replace(CONFIG, activation_bits=AutoBits(4.0)))
    assert work.chosen_widths == {"u": 6, "v": 2}
    loss, alike = figures(work)
    assert loss < alike / 4


def grids_of(proto: ModelProto) -> dict[str, int]:
    """Of the activations in a file: name -> the largest value that its clip or its codes let through, in steps."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    ends = {n.output[0]: float(constants[n.input[2]]) for n in proto.graph.node if n.op_type == "Clip"}
    found = {}
    for one in proto.graph.node:
        if one.op_type == "QuantizeLinear" and one.input[0] in ends:
            found[one.input[0]] = round(ends[one.input[0]] / float(constants[one.input[1]]))
    return found


def test_a_file_has_the_widths_that_were_chosen(tmp_path: Path) -> None:
    """And a second run takes them from the cache, to the same bytes."""
    first, second = (quantize(DIGITS_MODEL, DIGITS_CARD, CONFIG, cache=tmp_path) for _ in range(2))
    assert first.proto.SerializeToString() == second.proto.SerializeToString()
    assert any("activation widths" in note for note in second.notes if note.startswith("from the cache"))
    widths = {detail.bits for layer in first.details for detail in layer.inputs}
    assert len(widths - {8}) > 1
    onnx.checker.check_model(first.proto)
    steps = set(grids_of(first.proto).values())
    assert steps == {2**width - 1 for width in widths - {8}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4), (0, 0), ("auto:6", AutoBits(6.0)), ("auto:5.5:4,8", AutoBits(5.5, (4, 8)))]
    + [(str(AutoBits(13 / 3)), AutoBits(13 / 3))],
)
def test_texts_are_read_as_they_are_written(text: Any, expected: object) -> None:
    """What `--json` writes `--config` takes back."""
    found = read_bits(text)
    assert found == expected
    assert str(found) == str(text)


@pytest.mark.parametrize(
    "text",
    ["auto", "auto:", "auto:x", "auto:9", "auto:1", "auto:6:9", "auto:6:8,4", "auto:3:4,8", "x", 4.7, True, None],
)
def test_what_means_nothing_is_refused(text: Any) -> None:
    """In one line that names the option."""
    with pytest.raises(ConfigError, match=r"^--activation-bits") as caught:
        read_bits(text)
    assert "\n" not in str(caught.value)


def test_targets_without_such_widths_refuse_them() -> None:
    """Before anything runs."""
    with pytest.raises(
        ConfigError, match="--activation-bits auto:A:4,8 cannot be had with --target qnn: activations there have 8"
    ):
        QuantizeConfig(activation_bits=AutoBits(6.0, (4, 8)), target="qnn")
