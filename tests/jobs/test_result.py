"""What a result says about itself, in JSON and on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import OutputError
from onnx_cbq.goals import Accuracy
from onnx_cbq.jobs.result import CurvePoint, EvaluationResult, Result, evaluation_json
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.methods.differentiable import WidthReport
from onnx_cbq.methods.rate_distortion import LayerLosses, SearchReport
from onnx_cbq.model import Model
from onnx_cbq.records import Evaluation, Grouping, KeptZero, Layer, Layers, LeftFloat, Plan, Removal, Use
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.widths import LayerWidths, Moment
from onnx_cbq.stages.solution import NoReport
from onnx_cbq.storage.storage import ModelDump
from onnx_cbq.verification.comparison import Fidelity
from onnx_cbq.verification.prove import Sizes
from tests.graphs import make_model, node

NAMES = ("cat", "dog", "übel")
FLOAT = Evaluation(75.0, None, (50.0, 100.0, None), np.array([[1, 1, 0], [0, 2, 0], [0, 0, 0]]), 4000, 0.5, 0.125)
QUANTIZED = Evaluation(50.0, None, (0.0, 100.0, None), np.array([[0, 2, 0], [0, 2, 0], [0, 0, 0]]), 1000, 0.25)
WEIGHT = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)


def result() -> Result:
    layers = [
        Layer(name, "Gemm", name, (count, size), 0, 1, (Use("z", "x", 1, None, 1, 0, (2, count)),), 2)
        for name, count, size in (("first", 2, 3), ("second", 3, 4))
    ]
    model = Model.from_proto(make_model([node("MatMul", "x w")], {"x": ["N", 20]}, ["y"], {"w": WEIGHT}))
    return Result(
        model=model,
        dump=ModelDump(model),
        plan=Plan({"first": np.array([8, 1], np.int8), "second": np.array([0, 2, 4], np.int8)}),
        layers=Layers(tuple(layers), (LeftFloat("odd", "MatMul", "its weight is computed", 12),)),
        scores=None,
        method=SearchReport(
            "noise", {"noise": 0.5, "saliency": 0.75}, 0.25, 3, 20, {"first": LayerLosses(0.125, 0.0, 0.5, 0.375)}
        ),
        curve=(CurvePoint(2.0, 1.99, 5, QUANTIZED),),
        groups=Grouping.of(NAMES, np.array([0, 1, 0])),
        reference=FLOAT,
        quantized=QUANTIZED,
        agreement=75.0,
        sizes=Sizes(7, 1000, 900),
        fidelity=Fidelity(40, 1, 1, 0),
        left_float=0.75,
        processor="avx2",
        removal=Removal({"second": (0, 2)}, (KeptZero("first", 1, "it is an output"),), (30, 24)),
        class_names=NAMES,
        calibration_samples=12,
        seconds={"load": 0.25, "search": 1.0},
        notes=("a note",),
        versions={"onnx-cbq": "1"},
        config=QuantizeConfig(bits=3.5, search=RateDistortionConfig(certainty=3.0)),
        name="cats.onnx",
    )


def test_average_bits_weigh_channels_by_their_weights() -> None:
    # (8 + 1) x 3 weights and (0 + 2 + 4) x 4 weights, of 6 + 12 weights.
    assert result().average_bits == pytest.approx((9 * 3 + 6 * 4) / 18)


def test_swaps_are_what_the_quantized_model_takes_for_another_class_more_often() -> None:
    assert result().swaps() == [(0, 1, 1)]
    assert json.loads(result().to_json())["swaps"] == [{"class": "cat", "taken_for": "dog", "more": 1}]
    assert replace(result(), quantized=FLOAT).swaps() == []


def test_the_json_holds_all_that_was_promised() -> None:
    """Programs read it: a key that is missing or renamed breaks them."""
    found = json.loads(result().to_json())
    assert found["average_bits"] == pytest.approx(51 / 18)
    assert found["bits"] == {"first": [8, 1], "second": [0, 2, 4]}
    assert found["float"] == {
        "top1": 75.0,
        "top5": None,
        "per_class": {"cat": 50.0, "dog": 100.0, "übel": None},
        "worst_class": "cat",
        "samples": 4,
        "class_samples": [2, 2, 0],
        "bytes": 4000,
        "latency_ms": 0.5,
        "latency_error_ms": 0.125,
    }
    assert (found["quantized"]["top1"], found["quantized"]["bytes"]) == (50.0, 1000)
    assert found["method"] == {
        "name": "rate-distortion",
        "criterion": "noise",
        "measured": {"noise": 0.5, "saliency": 0.75},
        "loss": 0.25,
        "exchanges": 3,
        "plans": 20,
        "layers": {"first": {"plan": 0.125, "finest": 0.0, "coarse": 0.5, "coarse_predicted": 0.375}},
    }
    assert (found["model"], found["asked"], found["alone"]) == ("cats.onnx", [], None)
    # Only "dog" for "cat" is wrong: once by the float model, twice by the other.
    assert found["confusions"] == {"class": [0], "taken_for": [1], "float": [1], "quantized": [2]}
    assert found["curve"] == [{"average_bits": 1.99, "ideal_bytes": 5, **found["quantized"]}]
    assert found["groups"] == {"names": ["cat+übel", "dog"], "top1": {"float": 75.0, "quantized": 50.0}}
    assert found["removed"] == {"second": 2}
    assert found["kept_zero"] == [{"layer": "first", "channels": 1, "reason": "it is an output"}]
    assert found["macs"] == {"float": 30, "quantized": 24}
    assert found["agreement"] == 75.0
    assert found["seconds"] == {"load": 0.25, "search": 1.0}
    assert found["versions"] == {"onnx-cbq": "1"}
    assert found["settings"] == {"bits": 3.5, "search": {"certainty": 3.0}}
    assert found["left_float"] == [
        {"name": "odd", "operator": "MatMul", "reason": "its weight is computed", "weights": 12}
    ]
    assert (found["class_names"], found["calibration_samples"], found["notes"]) == (list(NAMES), 12, ["a note"])


def test_what_was_asked_for_is_told_apart_from_other_notes() -> None:
    """Bits are always asked for; a limit says in a note whether it is met."""
    notes = ("--max-drop 1: 3 bits lose 0.50 points", "a note", "--max-class-drop: cannot be known")
    limited = replace(result(), notes=notes, config=QuantizeConfig(goal=Accuracy(max_drop=1.0)))
    assert json.loads(limited.to_json())["asked"] == [notes[0]]
    assert replace(limited, config=QuantizeConfig(bits=3.0), notes=("--bits 3 is little", *notes)).asked == ()


def test_a_method_reports_in_its_own_words() -> None:
    """How widths moved, of one that learns them; its name alone, of one with nothing to say."""
    widths = LayerWidths(3.0, 2.5, 4.5, (0, 1, 0, 0, 0, 0, 0, 0, 1))
    learned = replace(result(), method=WidthReport({"first": widths}, (Moment(9, 0.1, 0.2, 2.0),), 64, 0.2, 0.3))
    found = json.loads(replace(learned, config=QuantizeConfig(method="differentiable")).to_json())["method"]
    assert found["name"] == "differentiable"
    assert found["trace"] == [{"updates": 9, "loss": 0.1, "price": 0.2, "average": 2.0}]
    assert (found["batch"], found["divergence"], found["even"]) == (64, 0.2, 0.3)
    assert found["layers"]["first"]["channels"] == [0, 1, 0, 0, 0, 0, 0, 0, 1]
    plain = replace(result(), method=NoReport(), config=QuantizeConfig(method="uniform"))
    assert json.loads(plain.to_json())["method"] == {"name": "uniform"}


@pytest.mark.parametrize("reference", [None, FLOAT], ids=["alone", "with-reference"])
def test_an_evaluation_is_the_same_object_wherever_it_stands(reference: Evaluation | None) -> None:
    agreement = None if reference is None else 75.0
    found = json.loads(EvaluationResult(QUANTIZED, reference, agreement, NAMES, (), {"onnx": "1"}).to_json())
    expected = evaluation_json(QUANTIZED, NAMES)
    assert {key: found[key] for key in expected} == expected
    assert found["reference"] == (None if reference is None else evaluation_json(FLOAT, NAMES))
    assert found["agreement"] == agreement


def test_the_saved_file_and_the_proto_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert result().save(str(path)) == path.stat().st_size
    assert onnx.load(path) == result().proto
    (weight,) = onnx.load(path).graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), WEIGHT)


def test_a_result_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist; create it first"):
        result().save(tmp_path / "no" / "model.onnx")
