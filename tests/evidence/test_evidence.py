"""Pieces of evidence: each is computed once, and only when something asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, RateDistortionConfig, RoundingConfig
from onnx_cbq.calibration.draw import draw
from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.evidence import (
    Evidence,
    channel_costs,
    class_scores,
    measure_by_nearest,
    measure_by_tables,
    sensitivity,
    width_tables,
)
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.methods import PlanMethod
from onnx_cbq.methods.entropy import measured_spacings
from onnx_cbq.records import Grouping
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.stages.scene import Scene
from tests.conftest import DIGITS_CARD, DIGITS_MODEL, random_set
from tests.graphs import make_model, node
from tests.scenes import scene_of

PIECES = {
    "scores": class_scores,
    "sensitivity": sensitivity,
    "tables": width_tables,
    "by tables": measure_by_tables,
    "by nearest": measure_by_nearest,
    "spacings": measured_spacings,
}
QUICK: dict[str, Any] = {
    "samples": 40,
    "activation_bits": 0,
    "search": RateDistortionConfig(exchanges=0),
    "differentiable": DifferentiableConfig(updates=1, batch=16, bfloat16=False),
    "compensation": RoundingConfig(refits=0, sweeps=0, rows=1000, passes=1),
}


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.fixture
def evidence(work: Workload) -> Evidence:
    few, ones = draw(work.samples, work.class_names, 20, 0), np.ones(len(work.class_names))
    return Evidence(work, few, few, ones, Grouping.single(work.class_names))


@dataclass
class Counted:
    """A piece that remembers how often it was computed."""

    calls: int = 0

    def piece(self, evidence: Evidence) -> int:
        self.calls += 1
        return len(evidence.train.indices) + self.calls

    def failing(self, evidence: Evidence) -> int:
        self.calls += 1
        raise UnsupportedOperatorError("Hardmax")


def test_a_piece_is_computed_once_and_only_when_it_is_asked_for(evidence: Evidence) -> None:
    counted = Counted()
    piece = counted.piece
    assert evidence.known(piece) is None
    assert counted.calls == 0
    assert [evidence.of(piece), evidence.of(piece), evidence.known(piece)] == [21, 21, 21]
    assert counted.calls == 1


def test_evidence_of_other_samples_knows_nothing(work: Workload, evidence: Evidence) -> None:
    """What was said of some samples must not be taken for what others say."""
    counted = Counted()
    piece = counted.piece
    evidence.of(piece)
    other = replace(evidence, train=draw(work.samples, work.class_names, 40, 0))
    assert other.known(piece) is None
    assert other.of(piece) == 40 + 2


@dataclass(frozen=True)
class Scaled:
    """A piece that depends on something."""

    factor: int

    def __call__(self, evidence: Evidence) -> Mapping[str, int]:
        return {"samples": self.factor * len(evidence.train.indices)}


def test_pieces_that_are_equal_are_the_same_piece(evidence: Evidence) -> None:
    """Two scopes of a codebook share what their errors count; two rules do not."""
    first = evidence.of(Scaled(2))
    assert evidence.of(Scaled(2)) is first
    assert evidence.known(Scaled(2)) is first
    assert evidence.known(Scaled(3)) is None
    assert evidence.of(Scaled(3)) == {"samples": 60}


def test_a_piece_that_fails_is_not_known(evidence: Evidence) -> None:
    """Whoever asks again is told again."""
    counted = Counted()
    for _ in range(2):
        with pytest.raises(UnsupportedOperatorError, match="Hardmax"):
            evidence.of(counted.failing)
    assert evidence.known(counted.failing) is None
    assert counted.calls == 2


def test_its_time_counts_for_the_stage_that_is_named(evidence: Evidence) -> None:
    """And not for the search that happened to ask first; what is known takes no time of any stage."""
    with evidence.clock.stage("search"):
        evidence.of(Counted().piece)
        evidence.of(Scaled(1), "spacings")
        evidence.of(Scaled(1), "codebook")
    assert set(evidence.clock.seconds) == {"search", "statistics", "spacings"}


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"method": "uniform"}, set()),
        ({"method": "cbq", "rounding": "nearest"}, {"scores", "by nearest"}),
        ({"method": "cbq"}, {"scores", "tables", "by tables"}),
        ({"method": "differentiable"}, {"tables", "by tables"}),
        ({"method": "differentiable", "rounding": "nearest"}, {"by nearest"}),
        ({}, {"scores", "sensitivity", "tables", "by tables"}),
        ({"rounding": "nearest"}, {"scores", "sensitivity", "tables", "by tables"}),
        ({"storage": "archive"}, {"sensitivity", "by nearest", "spacings"}),
        ({"codebook": "kmeans"}, set()),
        ({"codebook": "kmeans", "storage": "archive"}, set()),
        ({"codebook": "hessian-kmeans"}, {"sensitivity"}),
        ({"codebook": "ecsq", "storage": "archive"}, {"sensitivity", "by nearest", "spacings"}),
        ({"codebook": "ecsq", "storage": "archive", "rounding": "nearest"}, {"sensitivity"}),
    ],
    ids=lambda given: " ".join(map(str, given.values())) or "default" if isinstance(given, dict) else "",
)
def test_each_method_gathers_only_what_it_looks_at(work: Workload, settings: dict[str, Any], asked: set[str]) -> None:
    """A piece takes minutes on a large net; gradients that nobody needs may not even exist."""
    config = QuantizeConfig(**{"bits": 3, **QUICK, **settings})
    scene, method = scene_of(work, config), config.choice.method
    assert known(scene) == set()
    if isinstance(method, PlanMethod):
        method.plan(scene, 3)
    else:
        method.choose(scene, 3)
    assert known(scene) == asked


def known(scene: Scene) -> set[str]:
    return {name for name, piece in PIECES.items() if scene.evidence.known(piece) is not None}


def test_measures_hold_samples_back_and_round_as_they_say(work: Workload) -> None:
    """A measure on the samples of the statistics would praise what fits these."""
    scene = scene_of(work, QuantizeConfig(**QUICK))
    evidence = scene.evidence
    for piece in (measure_by_tables, measure_by_nearest):
        found = evidence.of(piece).run({})
        assert len(found.further) == len(evidence.held.indices)
        np.testing.assert_allclose(found.divergences.data, 0, atol=1e-9)
    assert evidence.of(measure_by_tables) is not evidence.of(measure_by_nearest)


def test_costs_name_the_option_that_cannot_do_without_gradients() -> None:
    """The message tells what to leave out, whichever option asked."""
    weight = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    nodes = [node("Gemm", "x w", "a"), node("Hardmax", "a", "b"), node("Mul", "b a")]
    model = prepare(make_model(nodes, {"x": ["N", 6]}, ["y"], {"w": weight}), random_set((6,)))
    evidence = scene_of(model, QuantizeConfig(activation_bits=0)).evidence
    with pytest.raises(UnsupportedOperatorError, match="Hardmax has no gradient rule, and --codebook x chooses values"):
        channel_costs(evidence, np.ones(5), "--codebook x")


def test_costs_are_those_of_the_classes_that_count(evidence: Evidence) -> None:
    weights = np.where(np.arange(10) == 3, 2.0, 0.0)
    costs = channel_costs(evidence, weights, "--storage archive")
    for name, found in evidence.of(sensitivity).items():
        np.testing.assert_allclose(costs[name], found[3] / 2, rtol=1e-12)
