"""From a method to a plan: what searches are handed, which layers keep their bits, budgets that cannot be met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_cbq import CalibrationSet, ConfigError, QuantizeConfig, quantize
from onnx_cbq.calibration.samples import draw
from onnx_cbq.config import CbqConfig, DifferentiableConfig, RateDistortionConfig
from onnx_cbq.model import Array
from onnx_cbq.planning import Evidence, Planned, criteria, gather_evidence, kept_layers, make_measure, make_plan
from onnx_cbq.progress import silent
from onnx_cbq.records import Grouping, Layers, Plan
from onnx_cbq.workload import Workload, prepare
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

CLASSES = 10
NAMES = ["/0/Conv", "/3/Conv", "/7/Conv", "12"]
EVERYTHING = np.ones(CLASSES)


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


def gathered(work: Workload, **settings: Any) -> tuple[Evidence, Any]:
    """Evidence and measure, from the samples that settings would draw."""
    config = QuantizeConfig(**settings)
    train, held = draw(work.samples, work.class_names, config.samples, config.seed).split(config.held_back or 0.5)
    evidence = gather_evidence(work, train, Grouping.single(work.class_names), config, EVERYTHING, silent)
    return evidence, make_measure(work, held, evidence) if config.held_back else None


@pytest.fixture(scope="module")
def evidence(work: Workload) -> tuple[Evidence, Any]:
    return gathered(work)


def plan(work: Workload, found: tuple[Evidence, Any], weights: Array = EVERYTHING, **settings: Any) -> Planned:
    return make_plan(work, *found, QuantizeConfig(**settings), weights, silent)


def same(layers: Layers, bits: int) -> Plan:
    return Plan({layer.name: np.full(layer.channels, bits, np.int8) for layer in layers})


def test_each_method_gathers_only_what_it_looks_at(work: Workload) -> None:
    for settings, kinds in (
        ({"method": "uniform"}, set()),
        ({"method": "cbq", "rounding": "nearest"}, {"scores"}),
        ({"method": "differentiable"}, {"tables"}),
        ({"method": "differentiable", "rounding": "nearest"}, set()),
        ({"method": "cbq"}, {"scores", "tables"}),
        ({}, {"scores", "tables", "sensitivity"}),
    ):
        found, measure = gathered(work, **settings)
        assert {kind for kind in ("scores", "sensitivity", "tables") if getattr(found, kind) is not None} == kinds
        assert (measure is None) == (settings.get("method") in {"uniform", "differentiable"})


def test_criteria_are_losses_of_every_channel_at_every_width(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    found, channels = evidence[0], sum(layer.channels for layer in work.layers)
    predicted = criteria(work.layers.layers, found, EVERYTHING)
    assert set(predicted) == {"sensitivity", "noise", "saliency", "importance"}
    for losses in predicted.values():
        assert losses.shape == (channels, 9)
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()
        # More bits lose less, but for the last ones, which are lost in float32.
        assert (losses[:, 1:5].sum(axis=0) < losses[:, :4].sum(axis=0)).all()


def test_criteria_are_what_their_definitions_say(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    found = evidence[0]
    weights = np.arange(1.0, CLASSES + 1)
    predicted = criteria(work.layers.layers, found, weights)
    assert found.tables is not None
    assert found.sensitivity is not None
    assert found.scores is not None
    start = 0
    for layer in work.layers:
        table, score = found.tables[layer.name], found.scores.by_layer[layer.name]
        for channel in range(0, layer.channels, 5):
            for bits in (0, 2, 5):
                error = table.error[bits, channel]
                row = {name: losses[start + channel, bits] for name, losses in predicted.items()}
                share = weights / weights.sum()
                power = table.power[channel]
                wanted = {
                    "sensitivity": error / 2 * sum(share * found.sensitivity[layer.name][:, channel]),
                    "noise": error / table.power.sum(),
                    "saliency": error / power * sum(share * score.saliency[:, channel]),
                    "importance": error / power * sum(share * score.beta[:, channel]),
                }
                assert row == pytest.approx(wanted)
        start += layer.channels


def test_a_class_that_does_not_count_does_not_matter(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    """Its own scores may be anything."""
    found = evidence[0]
    weights = np.where(np.arange(CLASSES) == 3, 0.0, 1.0)
    before = criteria(work.layers.layers, found, weights)
    assert found.sensitivity is not None
    changed = {name: np.where(np.arange(CLASSES)[:, None] == 3, 1e6, s) for name, s in found.sensitivity.items()}
    after = criteria(work.layers.layers, Evidence(found.groups, found.scores, changed, found.tables), weights)
    for name, losses in before.items():
        np.testing.assert_array_equal(after[name], losses)


@pytest.mark.parametrize("bits", [0.1, 1.0, 2.5, 4.0, 7.9, 8.0])
def test_rate_distortion_meets_any_budget(work: Workload, evidence: tuple[Evidence, Any], bits: float) -> None:
    found = plan(work, evidence, bits=bits)
    assert bits - 0.05 < found.plan.average_bits(work.layers) <= bits
    assert found.search is not None
    assert len(found.search.measured) == 6
    assert found.search.criterion in found.search.measured
    assert found.search.loss <= min(found.search.measured.values())
    # The float-like plan, each layer alone, six criteria, and the trades.
    assert found.search.plans <= 1 + len(work.layers) + 6 + RateDistortionConfig().exchanges


def test_the_plan_found_is_better_than_the_same_bits_everywhere(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    measure = evidence[1]
    found = plan(work, evidence, bits=2)
    assert found.search is not None
    assert measure(found.plan).loss(EVERYTHING) == pytest.approx(found.search.loss)
    assert found.search.loss < 0.5 * measure(same(work.layers, 2)).loss(EVERYTHING)


def test_without_trades_fewer_plans_are_measured(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    found = plan(work, evidence, bits=3, search=RateDistortionConfig(exchanges=0))
    assert found.search is not None
    assert found.search.exchanges == 0
    assert found.search.plans <= 1 + len(work.layers) + 6
    assert found.search.loss == min(found.search.measured.values())


def test_names_and_patterns_keep_their_bits(work: Workload) -> None:
    assert [layer.name for layer in work.layers] == NAMES
    assert kept_layers(work.layers, [("12", 8)]) == {"12": 8}
    assert kept_layers(work.layers, [("*Conv", 4), ("/3*", 6)]) == {"/0/Conv": 4, "/3/Conv": 6, "/7/Conv": 4}
    assert kept_layers(work.layers, [("?2", 0)]) == {"12": 0}
    assert kept_layers(work.layers, []) == {}


@pytest.mark.parametrize(
    ("method", "bits"), [("uniform", 3), ("cbq", 3), ("rate-distortion", 3), ("rate-distortion", 1.5)]
)
def test_kept_layers_keep_their_bits_and_count(work: Workload, method: str, bits: float) -> None:
    keep = (("/0*", 8), ("12", 5))
    found = plan(work, gathered(work, method=method), method=method, bits=bits, keep=keep)
    assert set(found.plan.bits["/0/Conv"].tolist()) == {8}
    assert set(found.plan.bits["12"].tolist()) == {5}
    if method != "uniform":
        assert bits - 0.1 < found.plan.average_bits(work.layers) <= bits


def test_a_pattern_that_matches_nothing_names_the_layers(work: Workload) -> None:
    with pytest.raises(ConfigError, match=r"--keep conv\*=4: no layer has such a name; the layers are: /0/Conv, /3/"):
        kept_layers(work.layers, [("conv*", 4)])


@pytest.mark.parametrize("method", ["cbq", "rate-distortion"])
@pytest.mark.parametrize(
    ("keep", "bits"), [((("/7*", 8),), 4.0), ((("*", 4),), 4.0), ((("*Conv", 3),), 2.9)], ids=["most", "all", "three"]
)
def test_kept_layers_that_take_up_the_budget_are_an_error(
    work: Workload, evidence: tuple[Evidence, Any], method: str, keep: tuple[tuple[str, int], ...], bits: float
) -> None:
    with pytest.raises(ConfigError, match=rf"--bits {bits:g} cannot be met: the layers of --keep .*keep fewer layers"):
        plan(work, evidence, method=method, bits=bits, keep=keep)


@pytest.mark.parametrize("bits", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(
    ("method", "rounding"), [("cbq", "nearest"), ("cbq", "compensate"), ("rate-distortion", "compensate")]
)
def test_tiny_budgets_are_met(method: str, rounding: str, bits: float) -> None:
    """Nearly everything is pruned. Whole layers then see inputs that never vary, and no plan keeps the accuracy."""
    config = QuantizeConfig(bits=bits, method=method, rounding=rounding, samples=100)
    result = quantize(DIGITS_MODEL, CalibrationSet.from_card(DIGITS_CARD), config)
    assert bits - 0.1 < result.average_bits <= bits


@pytest.mark.parametrize("method", ["rate-distortion", "cbq", "uniform", "differentiable"])
@pytest.mark.parametrize("target", ["vitis", "qnn"])
def test_a_layer_of_one_scale_has_one_width(method: str, target: str) -> None:
    """Its channels could not use others: the codes of a narrower one would still be multiplied by the same scale."""
    quick = DifferentiableConfig(steps=5)
    config = QuantizeConfig(bits=5, method=method, target=target, samples=200, rounding="nearest", differentiable=quick)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    for layer in result.layers:
        if layer.rules.per_tensor:
            assert len(set(result.plan.bits[layer.name].tolist())) == 1, layer.name
    assert 4.5 < result.average_bits <= 5


def test_cbq_pins_the_ends_unless_they_are_most_of_the_net(work: Workload) -> None:
    found = gathered(work, method="cbq", rounding="nearest")
    pinned = plan(work, found, method="cbq", bits=4)
    assert set(pinned.plan.bits["/0/Conv"].tolist()) == set(pinned.plan.bits["12"].tolist()) == {8}
    free = plan(work, found, method="cbq", bits=4, cbq=CbqConfig(pin_ends=False))
    assert set(free.plan.bits["/0/Conv"].tolist()) != {8}
    low = plan(work, found, method="cbq", bits=0.2)
    assert low.plan.average_bits(work.layers) <= 0.2
    assert any("first and last layer are searched too" in note for note in low.notes)


def test_progress_reaches_the_end(work: Workload, evidence: tuple[Evidence, Any]) -> None:
    steps: list[tuple[str, int, int]] = []
    make_plan(work, *evidence, QuantizeConfig(bits=3), EVERYTHING, lambda *step: steps.append(step))
    assert {stage for stage, _, _ in steps} == {"search"}
    assert all(0 <= done <= total for _, done, total in steps)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
