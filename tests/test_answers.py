"""Models that answer in other ways than with one score per class and sample: measured, evaluated and quantized."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import CalibrationSet, QuantizeConfig, StepConfig, evaluate, make_steps, quantize, score
from onnx_cbq.errors import CalibrationError, ConfigError, ModelError, VerificationError
from onnx_cbq.evidence import bench, measure_by_tables
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.jobs.refine import Refinement, refine
from onnx_cbq.methods.cbq import deciding_layers
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.runtime import Session
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.training.settings import RefineConfig
from tests.graphs import make_model, node
from tests.scenes import gather, scene_of, solved

RANDOM = np.random.default_rng(0)
SAMPLES, FEATURES, HIDDEN, CLASSES, TOKENS = 60, 6, 12, 4, 3
QUICK = QuantizeConfig(
    bits=5,
    equalize=False,
    search=RateDistortionConfig(exchanges=2),
    compensation=RoundingConfig(refits=0, sweeps=0, passes=1),
)


def weight(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "w": weight(FEATURES, HIDDEN),
    "v": weight(HIDDEN, CLASSES),
    "one": weight(HIDDEN, 1),
    "flat": np.array([-1]),
    "far": np.array([2, 3]),
}
FLAT_X, TOKEN_X = weight(SAMPLES, FEATURES), weight(SAMPLES, TOKENS, FEATURES)
BODY = [node("MatMul", "x w", "a"), node("Relu", "a", "h")]


@dataclass(frozen=True)
class Answering:
    """A model, and how its answers become right labels: `label` takes the first output."""

    nodes: list[onnx.NodeProto]
    label: Callable[[Array], Array]
    x: Array = field(default_factory=lambda: FLAT_X)
    outputs: tuple[str, ...] = ("y",)

    def proto(self) -> onnx.ModelProto:
        used = {name for n in self.nodes for name in n.input}
        constants = {name: value for name, value in CONSTANTS.items() if name in used}
        return make_model(self.nodes, {"x": ["N", *self.x.shape[1:]]}, list(self.outputs), constants)

    def labels(self) -> Array:
        return self.label(Session(Model.from_proto(self.proto())).run({"x": self.x})[self.outputs[0]])


def ignoring_some(labels: Array) -> Array:
    labels = labels.copy()
    labels[::3, 0] = -100
    return labels


CASES = {
    "one-sigmoid": Answering(
        [*BODY, node("MatMul", "h one", "z"), node("Sigmoid", "z")], lambda y: (y[:, 0] > 0.5).astype(np.int64)
    ),
    "one-flat-sigmoid": Answering(
        [*BODY, node("MatMul", "h one", "z"), node("Sigmoid", "z", "p"), node("Reshape", "p flat")],
        lambda y: (y > 0.5).astype(np.int64),
    ),
    "one-logit": Answering([*BODY, node("MatMul", "h one")], lambda y: (y > 0).astype(np.int64)),
    "several-sigmoids": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Sigmoid", "z")], lambda y: (y > 0.5).astype(np.int64)
    ),
    "several-logits": Answering([*BODY, node("MatMul", "h v")], lambda y: y > 0),
    "sigmoids-of-one-label": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Sigmoid", "z")], lambda y: y.argmax(axis=1)
    ),
    "one-hot": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Softmax", "z")],
        lambda y: np.eye(CLASSES, dtype=np.int64)[y.argmax(axis=1)],
    ),
    "images": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Unsqueeze", "z far")], lambda y: y[:, :, 0, 0].argmax(axis=1)
    ),
    "classes-first": Answering([*BODY, node("MatMul", "h v", "z"), node("Transpose", "z")], lambda y: y.argmax(axis=0)),
    "tokens": Answering([*BODY, node("MatMul", "h v")], lambda y: ignoring_some(y.argmax(axis=2)), TOKEN_X),
    "tokens-classes-second": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Transpose", "z", perm=[0, 2, 1])],
        lambda y: ignoring_some(y.argmax(axis=1)),
        TOKEN_X,
    ),
    "names": Answering(
        [*BODY, node("MatMul", "h v")], lambda y: np.array(["ant", "bee", "cat", "dog"])[y.argmax(axis=1)]
    ),
}
IMAGE_X = weight(SAMPLES, 2, 5, 5)
CONVS = [node("Conv", "x k", "c"), node("Relu", "c", "r"), node("Conv", "r q", "s")]
CONSTANTS |= {
    "k": weight(8, 2, 3, 3),
    "q": weight(CLASSES, 8, 1, 1),
    "temperature": np.array(2, np.float32),
    "mask": np.array([0, 0, 0, -np.inf], np.float32),
    "two": np.array([-1, CLASSES]),
}
# No layer stands right in front of these scores: pooled as in SqueezeNet, moved, scaled, added or masked behind it.
BEHIND = {
    "pooled": Answering(
        [*CONVS, node("GlobalAveragePool", "s", "a"), node("Flatten", "a")], lambda y: y.argmax(axis=1), IMAGE_X
    ),
    "mean": Answering([*CONVS, node("ReduceMean", "s far", keepdims=0)], lambda y: y.argmax(axis=1), IMAGE_X),
    "reshaped-softmax-identity": Answering(
        [
            *(*CONVS, node("GlobalMaxPool", "s", "a"), node("Reshape", "a two", "l")),
            *(node("Softmax", "l", "p", axis=1), node("Identity", "p")),
        ],
        lambda y: y.argmax(axis=1),
        IMAGE_X,
    ),
    "temperature": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Div", "z temperature")], lambda y: y.argmax(axis=1)
    ),
    "two-heads": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("MatMul", "x direct", "d"), node("Add", "z d")],
        lambda y: y.argmax(axis=1),
    ),
    "masked": Answering([*BODY, node("MatMul", "h v", "z"), node("Add", "z mask")], lambda y: y.argmax(axis=1)),
    "masked-by-bias": Answering([*BODY, node("Gemm", "h v mask")], lambda y: y.argmax(axis=1)),
    "masked-log-softmax": Answering(
        [*BODY, node("MatMul", "h v", "z"), node("Add", "z mask", "m"), node("LogSoftmax", "m", axis=1)],
        lambda y: y.argmax(axis=1),
    ),
}
CONSTANTS["direct"] = weight(FEATURES, CLASSES)
CASES |= BEHIND
# One of each kind of probability and label.
KINDS = ("one-sigmoid", "several-sigmoids", "tokens")


def data_of(case: Answering) -> CalibrationSet:
    return CalibrationSet.from_arrays(case.x, case.labels())


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_right_about_its_own_answers(name: str) -> None:
    """Labels are what the model answers: read from the wrong axis or threshold, or with ignored ones, it would err."""
    case = CASES[name]
    found = evaluate(case.proto(), data_of(case)).model
    assert found.top1 == 100
    assert all(share in (100, None) for share in found.per_class)
    wrong = CalibrationSet.from_arrays(case.x, np.roll(case.labels(), 1, axis=0))
    assert evaluate(case.proto(), wrong).model.top1 < 90


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "rate-distortion") for name in CASES),
        *itertools.product(KINDS, ("cbq", "archive", "uniform")),
        *itertools.product(("pooled", "masked"), ("cbq", "archive")),
    ],
)
def test_it_is_quantized_by_every_method(name: str, method: str) -> None:
    changes: dict[str, Any] = {"storage": method} if method == "archive" else {"method": method}
    case = CASES[name]
    found = quantize(case.proto(), data_of(case), replace(QUICK, **changes))
    assert found.reference.top1 == 100
    assert found.quantized.top1 > 80


@pytest.mark.parametrize("bits", [6, 7])
def test_more_bits_than_few_weights_can_take_do_not_cut_them_off(bits: float) -> None:
    """A coder spends little on 144 weights however fine they are; spacings shrank until all codes were the last one."""
    case = CASES["tokens"]
    found = quantize(case.proto(), data_of(case), replace(QUICK, storage="archive", bits=bits))
    assert found.quantized.top1 > 95


@pytest.mark.parametrize("name", KINDS)
def test_channels_are_scored(name: str) -> None:
    """A channel of the last layer is needed for its own class alone; a single one for both classes."""
    case = CASES[name]
    found = score(case.proto(), data_of(case))[1]
    needed = found.layers[-1].beta > 0
    np.testing.assert_array_equal(needed, np.ones((2, 1)) if name == "one-sigmoid" else np.eye(CLASSES))


@pytest.mark.parametrize("name", KINDS)
def test_limits_count_the_same_answers(name: str) -> None:
    case = CASES[name]
    found = quantize(case.proto(), data_of(case), replace(QUICK, max_drop=15.0, samples=30))
    assert found.reference.top1 - found.quantized.top1 < 25
    assert any(note.startswith("--max-drop 15: ") for note in found.notes)


@pytest.mark.parametrize("name", [*KINDS, "masked"])
def test_training_lowers_its_loss(name: str) -> None:
    """At 2 bits a little training gains something; NaN of a masked class, or a wrong label, would keep the start."""
    pytest.importorskip("torch")
    case = CASES[name]
    training = RefineConfig(updates=40, check_every=10, held_back=0.4)
    config = replace(QUICK, method="uniform", bits=2)
    scene, choice = gather(case.proto(), data_of(case), config)
    _, _, notes = refine(scene, choice.method, solved(scene, config), Refinement(training))
    before, after = (float(loss) for loss in re.findall(r"([0-9.]+), [0-9.]+ % (?:before|kept)", notes[0]))
    assert 0 < after < before


def test_widths_are_learned_for_every_kind() -> None:
    pytest.importorskip("torch")
    for name in KINDS:
        case, learned = CASES[name], DifferentiableConfig(updates=5)
        found = quantize(case.proto(), data_of(case), replace(QUICK, method="differentiable", differentiable=learned))
        assert found.quantized.top1 > 80


def test_steps_refuse_at_once_what_they_do_not_know() -> None:
    pytest.importorskip("torch")
    for name in KINDS:
        with pytest.raises(ConfigError, match="steps are made of models that give each sample one score per class"):
            make_steps(CASES[name].proto(), data_of(CASES[name]), StepConfig(updates=1))


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("tokens", np.full((SAMPLES, TOKENS), CLASSES), r"label 4 of sample 0 is outside 0..3, or -100 where none"),
        ("several-sigmoids", np.full((SAMPLES, CLASSES), 2), "label 2 of sample 0 is outside 0 or 1 for each class"),
        (
            "several-sigmoids",
            np.zeros((SAMPLES, 3), int),
            r"no output of shape \(samples, classes, 3\) or \(samples, 3",
        ),
        ("names", np.array(["ant"] * SAMPLES), "the labels are 1 different names; the model has 4 classes: list their"),
    ],
)
def test_labels_that_do_not_fit_are_explained(name: str, labels: Array, message: str) -> None:
    case = CASES[name]
    with pytest.raises((CalibrationError, ModelError), match=message):
        evaluate(case.proto(), CalibrationSet.from_arrays(case.x, labels))


def test_groups_of_classes_need_exclusive_ones() -> None:
    case = CASES["several-sigmoids"]
    with pytest.raises(ConfigError, match="--clusters: each class of this model has a probability of its own"):
        quantize(case.proto(), data_of(case), replace(QUICK, clusters=2))


@pytest.mark.parametrize("name", ["pooled", "reshaped-softmax-identity", "two-heads"])
def test_the_layers_that_make_the_scores_are_needed_by_every_class(name: str) -> None:
    """However their outputs come to the end: the decision compares all scores, so none may lose its bits."""
    case = CASES[name]
    work = prepare(case.proto(), data_of(case))
    assert deciding_layers(work) == ({"v", "direct"} if name == "two-heads" else {"q"})


def test_a_model_alone_may_mask_a_class_and_its_copy_may_not_mask_another() -> None:
    case = CASES["masked"]
    other = case.proto()
    for tensor in other.graph.initializer:
        if tensor.name == "mask":
            tensor.CopyFrom(numpy_helper.from_array(np.array([-np.inf, 0, 0, -np.inf], np.float32), "mask"))
    with pytest.raises(VerificationError, match="output 'y' holds -inf for class 0, where the float model never does"):
        evaluate(other, data_of(case), case.proto())
    assert evaluate(case.proto(), data_of(case), other).model.top1 == 100


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", ["one-sigmoid", "several-sigmoids", "tokens", "classes-first"])
def test_a_fixed_batch_answers_as_a_dynamic_one(name: str, batch: int) -> None:
    """The last batch is filled up, and with one sample every axis of size 1 could be that of the samples."""
    case = CASES[name]
    proto = case.proto()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    found = quantize(proto, data_of(case), QUICK)
    assert found.reference.top1 == 100
    assert found.quantized.top1 > 80


def test_of_many_positions_plans_are_measured_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of every pixel would take gigabytes."""
    case = CASES["tokens"]
    work = prepare(case.proto(), data_of(case))
    monkeypatch.setattr(bench, "MOST_POSITIONS", 2)
    found = scene_of(work, QUICK).evidence.of(measure_by_tables).run({})
    held = found.divergences.shape[0]
    labels = work.samples.truth
    assert held < found.answers.sum() <= 2 * held
    assert found.accuracy == 1
    assert (labels == -100).any()
