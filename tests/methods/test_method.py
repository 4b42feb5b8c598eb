"""What holds of every method: layers that are kept keep their width, budgets are met, one scale has one width."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from onnx_cbq import CalibrationSet, ConfigError, QuantizeConfig, quantize
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.methods import CODEBOOKS, METHODS, Entropy, Method, PlanMethod
from onnx_cbq.methods.cbq import Cbq
from onnx_cbq.methods.rate_distortion import RateDistortion
from onnx_cbq.methods.uniform import Uniform
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.storage import STORAGES
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import scene_of


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.mark.parametrize("member", [*METHODS, *CODEBOOKS, Entropy], ids=lambda member: member.name)
def test_members_say_what_they_are_and_what_they_go_together_with(member: Any) -> None:
    """Settings are frozen and have defaults, so that a name alone makes a member; some storage must take its weights.

    A setting that is called like something that every method has would hide it.
    """
    assert member.__dataclass_params__.frozen
    made: Method = member()
    assert made == member()
    assert made.about
    assert made.option.startswith("--")
    assert made.label
    assert any(made.fit(storage()) is not None for storage in STORAGES)
    hidden = {field.name for field in fields(member)} & (vars(Method).keys() - {"held_back"})
    assert hidden == set()


@pytest.mark.parametrize(
    ("method", "bits"), [(Uniform(), 3), (Cbq(), 3), (RateDistortion(), 3), (RateDistortion(), 1.5)], ids=str
)
def test_kept_layers_keep_their_bits_and_count(work: Workload, method: PlanMethod, bits: float) -> None:
    config = QuantizeConfig(method=method, bits=bits, keep=(("/0*", 8), ("12", 5)), activation_bits=0)
    found = method.plan(scene_of(work, config), bits)
    assert set(found.plan.bits["/0/Conv"].tolist()) == {8}
    assert set(found.plan.bits["12"].tolist()) == {5}
    if method != Uniform():
        assert bits - 0.1 < found.plan.average_bits(work.layers) <= bits


@pytest.mark.parametrize("method", ["rate-distortion", "cbq", "uniform"])
def test_layers_that_are_kept_have_the_bits_that_were_asked_for(method: str) -> None:
    """By name or pattern, the last one counts; the others share what is left of the budget."""
    config = QuantizeConfig(
        method=method,
        bits=3.0 if method == "uniform" else 4.5,
        keep=(("/*", 5), ("/3/*", 2)),
        samples=60,
        search=RateDistortionConfig(exchanges=4),
        compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
    )
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert {name: set(bits.tolist()) for name, bits in result.plan.bits.items() if name != "12"} == {
        "/0/Conv": {5},
        "/3/Conv": {2},
        "/7/Conv": {5},
    }
    assert method != "uniform" or set(result.plan.bits["12"].tolist()) == {3}
    assert method == "uniform" or result.average_bits <= 4.5


@pytest.mark.parametrize("method", [Cbq(), RateDistortion()], ids=["cbq", "rate-distortion"])
@pytest.mark.parametrize(
    ("keep", "bits"), [((("/7*", 8),), 4.0), ((("*", 4),), 4.0), ((("*Conv", 3),), 2.9)], ids=["most", "all", "three"]
)
def test_kept_layers_that_take_up_the_budget_are_an_error(
    work: Workload, method: PlanMethod, keep: tuple[tuple[str, int], ...], bits: float
) -> None:
    config = QuantizeConfig(method=method, bits=bits, keep=keep, activation_bits=0, samples=40)
    scene = scene_of(work, config)
    with pytest.raises(ConfigError, match=rf"--bits {bits:g} cannot be met: the layers of --keep .*keep fewer layers"):
        method.plan(scene, bits)


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
    quick = DifferentiableConfig(updates=5)
    config = QuantizeConfig(bits=5, method=method, target=target, samples=200, rounding="nearest", differentiable=quick)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    for layer in result.layers:
        if layer.rules.per_tensor:
            assert len(set(result.plan.bits[layer.name].tolist())) == 1, layer.name
    assert 4.5 < result.average_bits <= 5
