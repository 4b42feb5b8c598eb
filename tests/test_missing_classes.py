"""Classes without samples: every command works with those that have some, and says which have none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console, RenderableType

from onnx_cbq import CalibrationSet, QuantizeConfig, evaluate, quantize, score
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.report.text import evaluation_table, result_table

NOTE = "no samples of 22 classes, the first of them '0'; the model has 30"


def net(classes: int = 30) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.3, shape).astype(np.float32) for shape in ((8, 16), (16, classes))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(value, name) for name, value in zip("wv", weights, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def some(labels: Any) -> CalibrationSet:
    x = np.random.default_rng(1).normal(size=(len(labels), 8)).astype(np.float32)
    return CalibrationSet.from_arrays(x, labels)


def rendered(table: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


LAST = 22 + np.arange(64) % 8


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "cbq"},
        {"method": "uniform"},
        {"rounding": "nearest"},
        {"clusters": 5},
        {"classes": ("25", "29")},
        {"class_weights": (("25", 4.0),)},
        {"max_class_drop": 100.0},
        {"codebook": "hessian-kmeans"},
        {"storage": "archive"},
    ],
)
def test_quantizing_takes_the_classes_that_there_are(settings: dict[str, Any]) -> None:
    result = quantize(net(), some(LAST), QuantizeConfig(**settings))
    assert NOTE in result.notes
    assert result.quantized.samples == 64
    assert (set(range(22)) & {m for m, found in enumerate(result.quantized.per_class) if found is not None}) == set()
    unknown = [note for note in result.notes if "cannot be known" in note]
    assert len(unknown) == (settings.keys() & {"max_class_drop"} != set()) + (settings.get("method") == "cbq")


def test_scoring_and_evaluating_take_the_classes_that_there_are() -> None:
    _, scores = score(net(), some(LAST))
    assert NOTE in scores.notes
    assert [count > 0 for count in scores.samples] == [m >= 22 for m in range(30)]
    found = evaluate(net(), some(LAST))
    assert found.notes == (NOTE,)
    assert found.model.worst_class >= 22


def test_tables_list_the_classes_that_have_samples() -> None:
    """Of many classes only twenty are listed; those without samples would take all the places."""
    result = quantize(net(), some(LAST), QuantizeConfig(method="uniform"))
    for table in (
        rendered(result_table(result, Path("q.onnx"))),
        rendered(evaluation_table(evaluate(net(), some(LAST)))),
    ):
        listed = {line.split()[0] for line in table.splitlines() if line.strip()[:2].isdecimal()}
        assert {str(m) for m in range(22, 30)} <= listed
        assert "0" not in listed


@pytest.mark.parametrize("labels", [np.arange(30), np.arange(2)])
def test_one_sample_of_each_class_is_enough(labels: Any) -> None:
    assert quantize(net(), some(labels)).quantized.samples == len(labels)


def test_a_single_class_is_refused_with_one_true_line() -> None:
    for call in (quantize, score):
        with pytest.raises(CalibrationError, match="all samples are of class '7'; expected samples of at least two"):
            call(net(), some(np.full(9, 7)))


def test_a_class_without_samples_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="--classes '3': there are no samples of this class"):
        quantize(net(), some(LAST), QuantizeConfig(classes=("3", "29")))
