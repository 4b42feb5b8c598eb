"""The net that learns: what it answers is what the file would, and its gradients are those of the divergence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.learned.student import make_student
from onnx_cbq.learned.teacher import Lesson, Teacher
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping
from onnx_cbq.runtime import Session
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather

CONFIG = QuantizeConfig(bits=3, method="uniform", samples=40)


def constants_of(lesson: Lesson) -> dict[str, Array]:
    work, random = lesson.work, np.random.default_rng(0)
    names = [layer.weight for layer in work.layers]
    names += [str(use.bias) for layer in work.layers for use in layer.uses if use.bias]
    return {
        name: (value * random.uniform(0.0, 2.0, value.shape)).astype(np.float32)
        for name in names
        for value in (work.model.weight(name),)
    }


def lesson_of(bits: int, groups: Grouping | None = None) -> Lesson:
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, replace(CONFIG, activation_bits=bits))
    indices = scene.drawn.indices
    weights = np.linspace(0.5, 2, len(scene.work.class_names))
    return Lesson(scene.work, scene.grids, indices, indices[:20], weights, groups or scene.evidence.groups)


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_answers_are_those_of_the_simulated_net(bits: int) -> None:
    """Activations are on the grids of the file, in the same places."""
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, replace(CONFIG, activation_bits=bits))
    lesson = lesson_of(bits)
    constants = constants_of(lesson)
    work, logits = scene.work, scene.work.logits.tensor
    student = make_student(work, scene.grids, lesson.groups, list(constants))
    assert student.gradients.keys() == constants.keys() | student.scales.keys()
    assert len(student.scales) == (3 if bits == 4 else 0)
    feeds = work.samples.read(scene.drawn.indices[:8])
    made = student.of(constants)
    name = made.name(logits)
    found = Session(made.model.with_graph(outputs=[name])).run(feeds)[name]
    seen = scene.simulated
    model = work.model if seen is None else seen.model
    name = logits if seen is None else seen.name(logits)
    expected = Session(model.with_constants(constants).with_graph(outputs=[name])).run(feeds)[name]
    # An activation at the edge of two codes may fall to either side by the last digit of a sum.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if not bits else 0.05 * np.abs(expected).max())


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_are_those_of_the_divergence(grouped: bool) -> None:
    """Central differences of the loss along the signs of each gradient, by class weights and for groups of classes."""
    names = tuple(str(m) for m in range(10))
    groups = Grouping(("low", "high"), np.array([0] * 5 + [1] * 5)) if grouped else None
    lesson = lesson_of(0, groups)
    assert lesson.work.class_names == names
    constants = constants_of(lesson)
    student = make_student(lesson.work, {}, lesson.groups, list(constants))
    batch, taught = next(Teacher.of(lesson, len(lesson.learned)).endless())
    work, held = lesson.work, (lesson.work.samples, lesson.learned, len(lesson.learned))
    measure = PlanMeasure(work.model, work.layers, held, (work.logits, lesson.groups, ()), None)

    def loss(name: str, value: Array) -> float:
        return measure.run_instead(student.of({**constants, name: value})).loss(lesson.class_weights)

    gradients = student.differentiate(batch.feeds, constants, taught)
    step = 2e-3
    for name, value in constants.items():
        direction = (np.sign(gradients[name]) * np.abs(value).mean()).astype(np.float32)
        ends = [loss(name, value + sign * step * direction) for sign in (1, -1)]
        along = float((gradients[name] * direction).sum())
        assert along > 0.01
        # The loss is that of float32 logits, 1e-6 each; a few of the samples pass a kink of a Relu.
        np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * step), rtol=0.05)
