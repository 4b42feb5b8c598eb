"""Bits where they lower the predicted loss most: budgets are met, plans beat uniform ones, trades can be left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.evidence import measure_by_tables
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.methods.criteria import Sensitivity, predicted_losses
from onnx_cbq.methods.method import Planned
from onnx_cbq.methods.rate_distortion import RateDistortion, SearchReport
from onnx_cbq.records import Layers, Plan
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.stages.scene import Scene
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather, scene_of

EVERYTHING = np.ones(10)
FLOAT = QuantizeConfig(activation_bits=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return gather(DIGITS_MODEL, DIGITS_CARD, FLOAT)[0]


def report_of(planned: Planned) -> SearchReport:
    assert isinstance(planned.report, SearchReport)
    return planned.report


def same(layers: Layers, bits: int) -> Plan:
    return Plan({layer.name: np.full(layer.channels, bits, np.int8) for layer in layers})


@pytest.mark.parametrize("bits", [0.1, 1.0, 2.5, 4.0, 7.9, 8.0])
def test_rate_distortion_meets_any_budget(scene: Scene, bits: float) -> None:
    found = RateDistortion().plan(scene, bits)
    report = report_of(found)
    assert bits - 0.05 < found.plan.average_bits(scene.work.layers) <= bits
    assert len(report.measured) == 6
    assert report.criterion in report.measured
    assert report.loss <= min(report.measured.values())
    # The float-like plan, each layer alone, six criteria, and the trades.
    assert report.plans <= 1 + len(scene.work.layers) + 6 + RateDistortionConfig().exchanges


def test_the_plan_found_is_better_than_the_same_bits_everywhere(scene: Scene) -> None:
    found = RateDistortion().plan(scene, 2)
    measure, loss = scene.evidence.of(measure_by_tables), report_of(found).loss
    assert measure(found.plan).loss(EVERYTHING) == pytest.approx(loss)
    assert loss < 0.5 * measure(same(scene.work.layers, 2)).loss(EVERYTHING)


def test_without_trades_fewer_plans_are_measured(scene: Scene) -> None:
    found = report_of(RateDistortion(exchanges=0).plan(scene, 3))
    assert found.exchanges == 0
    assert found.plans <= 1 + len(scene.work.layers) + 6
    assert found.loss == min(found.measured.values())


def test_losses_of_layers_are_measured_one_by_one_and_predictions_scaled_to_them(scene: Scene) -> None:
    """What the page says of a layer: against plans measured here, and against the criterion's own numbers."""
    found = RateDistortion().plan(scene, 3)
    measure, layers = scene.evidence.of(measure_by_tables), scene.work.layers
    fine = same(layers, 8)
    base, shown = measure(fine).loss(EVERYTHING), report_of(found).layers
    assert list(shown) == [layer.name for layer in layers]
    for layer in layers:
        alone = Plan({**fine.bits, layer.name: np.full(layer.channels, 2, np.int8)})
        losses = predicted_losses(Sensitivity(), [layer], scene.evidence, EVERYTHING)
        mine, channels = shown[layer.name], np.arange(layer.channels)
        assert mine.coarse == pytest.approx(measure(alone).loss(EVERYTHING) - base, abs=1e-9)
        assert mine.coarse_predicted == pytest.approx(losses[:, 2].sum())
        factor = mine.coarse / mine.coarse_predicted
        assert factor > 0
        assert mine.plan == pytest.approx(factor * losses[channels, found.plan.bits[layer.name]].sum())
        assert mine.finest == pytest.approx(factor * losses[:, 8].sum())


def test_layers_that_keep_their_width_are_not_among_them(scene: Scene) -> None:
    kept = replace(scene, settings=replace(scene.settings, keep=(("12", 8),)))
    shown = report_of(RateDistortion().plan(kept, 3)).layers
    assert shown.keys() == {layer.name for layer in scene.work.layers} - {"12"}


def test_in_haste_layers_do_not_trade(scene: Scene) -> None:
    """Goals that try many budgets would take hours otherwise; the scene itself stays as it was."""
    eager = RateDistortion(certainty=0, enough=0)
    hasty, careful = (eager.plan(tried, 3) for tried in (scene.in_haste(), scene))
    assert report_of(hasty) == report_of(RateDistortion(exchanges=0).plan(scene, 3))
    assert report_of(careful).exchanges > 0


def test_progress_never_goes_back() -> None:
    steps: list[tuple[str, int, int]] = []
    scene = scene_of(prepare(DIGITS_MODEL, DIGITS_CARD), FLOAT, lambda *step: steps.append(step))
    RateDistortion().plan(scene, 3)
    found = [step for step in steps if step[0] == "search"]
    assert {stage for stage, _, _ in steps} == {"scoring", "sensitivity", "tables", "search"}
    assert all(0 <= done <= total for _, done, total in found)
    assert [done for _, done, _ in found] == sorted(done for _, done, _ in found)


def test_the_report_says_which_criterion_made_the_plan() -> None:
    """Beside what the others got, the best first; programs get all of it."""
    report = SearchReport("noise", {"saliency": 0.75, "noise": 0.5}, 0.25, 3, 20)
    assert report.lines() == [
        "plan: noise, divergence 0.2500 nats after 3 trades between layers",
        "criteria before trading: noise 0.5000, saliency 0.7500",
    ]
    assert report.table() == []
    assert report.to_json() == {
        "criterion": "noise",
        "measured": {"saliency": 0.75, "noise": 0.5},
        "loss": 0.25,
        "exchanges": 3,
        "plans": 20,
        "layers": {},
    }
