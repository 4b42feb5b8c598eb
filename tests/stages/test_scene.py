"""One scene gives any number of solutions: what was gathered is shared, whatever the budget and the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_cbq import QuantizeConfig, RateDistortionConfig, RoundingConfig
from onnx_cbq.evidence import class_scores, measure_by_tables, sensitivity, width_tables
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.goals.goal import solve
from onnx_cbq.stages.scene import make_scene
from onnx_cbq.system.progress import Clock
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import aim, gather

QUICK = QuantizeConfig(
    bits=0.5,
    samples=60,
    rounding="nearest",
    search=RateDistortionConfig(exchanges=4),
    compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
)
PIECES = (class_scores, sensitivity, width_tables, measure_by_tables)


def test_a_scene_in_haste_or_with_other_weights_shares_all_that_was_gathered() -> None:
    scene, choice = gather(DIGITS_MODEL, DIGITS_CARD, QUICK)
    weights = np.arange(10.0)
    other = scene.weighing(weights).in_haste()
    assert (scene.hasty, other.hasty) == (False, True)
    assert other.class_weights is weights
    np.testing.assert_array_equal(scene.class_weights, np.ones(10))
    assert replace(other, class_weights=scene.class_weights, hasty=False).__dict__ == scene.__dict__
    coarse = solve(scene, choice.method, 0.5)
    gathered = [scene.evidence.known(piece) for piece in PIECES]
    fine = solve(other, choice.method, 3.5)
    assert None not in gathered
    assert all(other.evidence.known(piece) is known for piece, known in zip(PIECES, gathered, strict=True))
    averages = [found.plan.average_bits(scene.work.layers) for found in (coarse, fine)]
    assert averages[0] <= 0.5 + 1e-9
    assert 3.4 < averages[1] <= 3.5 + 1e-9


def test_a_scene_is_made_without_what_nobody_has_asked_for() -> None:
    """Samples are drawn and activations get their grids; everything else waits."""
    work, clock = aim(prepare(DIGITS_MODEL, DIGITS_CARD), QUICK), Clock()
    scene = make_scene(work, QUICK.choice.scene, clock)
    assert set(clock.seconds) == {"statistics", "activations"}
    assert [scene.evidence.known(piece) for piece in PIECES] == [None] * 4
    assert scene.grids.keys() == set(work.placement.measured)
    assert scene.simulated is not None
    plain = make_scene(prepare(DIGITS_MODEL, DIGITS_CARD), replace(QUICK, activation_bits=0).choice.scene)
    assert (plain.grids, plain.simulated) == ({}, None)


def test_plans_are_measured_on_samples_that_no_statistics_have_seen() -> None:
    """The share is the method's; where none is held back, statistics and measures share all of them."""
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, replace(QUICK, search=RateDistortionConfig(held_back=0.5)))
    train, held, drawn = (
        set(part.indices.tolist()) for part in (scene.evidence.train, scene.evidence.held, scene.drawn)
    )
    assert (len(train), len(held)) == (30, 30)
    assert train | held == drawn
    whole, _ = gather(DIGITS_MODEL, DIGITS_CARD, replace(QUICK, method="uniform", bits=3))
    assert whole.evidence.train is whole.evidence.held is whole.drawn
