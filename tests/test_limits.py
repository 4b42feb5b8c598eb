"""Limits on lost accuracy: what is searched and on which samples it is checked, by made-up losses and by real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnx_cbq import (
    QuantizeConfig,
    RateDistortionConfig,
    RoundingConfig,
    VerificationError,
    comparison,
    limits,
    quantize,
)
from onnx_cbq.calibration.samples import Draw
from onnx_cbq.limits import RESOLUTION, LimitCheck, Losses, meet_limits, too_much
from onnx_cbq.model import Array
from onnx_cbq.progress import Clock, silent
from onnx_cbq.runtime import Session, median_latency
from onnx_cbq.solving import Setting, emit_solution, make_setting, solve
from onnx_cbq.workload import Workload, prepare
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

CLASSES = 10
# Little is measured and nothing is refined, so that a solution takes a tenth of a second.
QUICK = QuantizeConfig(
    bits=2.0,
    samples=60,
    rounding="nearest",
    activation_bits=0,
    search=RateDistortionConfig(exchanges=2),
    compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
)


@pytest.fixture(autouse=True)
def _no_time_for_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "median_latency", partial(median_latency, seconds=0))


@pytest.fixture(scope="module")
def digits() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.fixture(scope="module")
def setting(digits: Workload) -> Setting:
    return make_setting(digits, QUICK, Clock(), silent)


LossOf = Callable[[Setting], Array]


class MadeUp:
    """Losses of classes that depend on nothing but what is asked for; remembers it."""

    notes = ()
    samples = "made-up samples"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loss_of: LossOf) -> None:
        self.asked: list[Setting] = []
        self._loss_of = loss_of
        monkeypatch.setattr(limits, "solve", self._solve)
        monkeypatch.setattr(limits, "LimitCheck", lambda _: self)

    def _solve(self, setting: Setting, *_: object) -> Any:
        self.asked.append(setting)
        return SimpleNamespace(setting=setting)

    def __call__(self, setting: Setting, solution: Any) -> Losses:
        assert solution.setting is setting
        losses = self._loss_of(setting)
        return Losses(float(np.nanmean(losses)), losses, np.full(CLASSES, 40.0))

    @property
    def bits(self) -> list[float]:
        return [setting.config.bits for setting in self.asked]


def below(bits: float, loss: float) -> LossOf:
    """Every class loses `loss` points below some average of bits, and nothing from there on."""
    return lambda setting: np.full(CLASSES, loss if setting.config.bits < bits else 0.0)


def meet(setting: Setting, **changes: Any) -> tuple[Any, tuple[str, ...]]:
    return meet_limits(replace(setting, config=replace(setting.config, **changes)), Clock(), silent)


@pytest.mark.parametrize("enough", [0.55, 1.3, 3.07, 7.99])
def test_the_fewest_bits_that_keep_the_limit_are_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, enough: float
) -> None:
    """To within a tenth of a bit, in as many solutions as bisection needs; layers trade bits in the last one only."""
    made_up = MadeUp(monkeypatch, below(enough, 1.01))
    solution, notes = meet(setting, max_drop=1.0)
    assert enough <= solution.setting.config.bits <= enough + RESOLUTION + 0.01
    assert len(made_up.asked) <= 9
    assert [s.config.search.exchanges for s in made_up.asked] == [0] * (len(made_up.asked) - 1) + [2]
    assert notes == (f"--max-drop 1: {solution.setting.config.bits:g} bits lose 0.00 points, on 400 made-up samples",)


def test_trades_that_break_the_limit_are_taken_back(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lower the divergence, which is not the accuracy that was asked for."""

    def loss(tried: Setting) -> Array:
        return below(3, 5)(tried) + 5 * bool(tried.config.search.exchanges)

    MadeUp(monkeypatch, loss)
    solution, _ = meet(setting, max_drop=1.0)
    assert solution.setting.config.search.exchanges == 0
    assert 3 <= solution.setting.config.bits <= 3.11


def test_a_limit_that_8_bits_do_not_keep_exits_3(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUp(monkeypatch, below(9, 2.5))
    with pytest.raises(
        VerificationError, match=r"--max-drop 1: even 8 bits lose 2.50 points.*--activation-bits 0"
    ) as e:
        meet(setting, max_drop=1.0)
    assert e.value.exit_code == 3


def test_both_limits_at_once_must_hold(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class loses too much below 5 bits while all together lose little; the message names the one that fails."""

    def loss(tried: Setting) -> Array:
        return np.where(np.arange(CLASSES) == 3, below(5, 9)(tried), 0.0)

    MadeUp(monkeypatch, loss)
    solution, _ = meet(setting, max_drop=1.0, max_class_drop=2.0)
    assert 5 <= solution.setting.config.bits <= 5.11
    MadeUp(monkeypatch, lambda _: np.where(np.arange(CLASSES) == 3, 9.0, 0.0))
    with pytest.raises(VerificationError, match=r"--max-class-drop 2: even with 8 bits 3 loses 9.00 \(of 40 samples\)"):
        meet(setting, max_drop=1.0, max_class_drop=2.0)


def test_the_search_asks_for_no_less_than_the_layers_that_are_kept_take(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average that cannot be met was an error about --bits, which nobody had given."""
    largest = max(setting.work.layers, key=lambda layer: layer.size)
    taken = 4 * largest.size / setting.work.layers.size
    made_up = MadeUp(monkeypatch, below(0, 0))
    meet(setting, max_drop=1.0, keep=((largest.name, 4),))
    assert taken < min(made_up.bits) <= taken + RESOLUTION + 0.01
    solve(
        replace(made_up.asked[-1], config=replace(QUICK, bits=min(made_up.bits), keep=((largest.name, 4),))),
        Clock(),
        silent,
    )


def test_weights_of_classes_that_lose_too_much_are_raised_until_they_do_not(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled each time, those of no other class; the note tells the factors."""
    needs = np.zeros(CLASSES)
    needs[[3, 7]] = 10, 6
    start = np.linspace(0.5, 1, CLASSES)
    made_up = MadeUp(monkeypatch, lambda tried: needs * start / tried.class_weights)
    solution, notes = meet(replace(setting, class_weights=start), max_class_drop=3.0)
    raised = np.ones(CLASSES)
    raised[[3, 7]] = 4, 2
    np.testing.assert_allclose(solution.setting.class_weights, start * raised)
    assert made_up.bits == [2.0] * 3
    assert notes == (
        "--max-class-drop 3: '7' loses most, 3.00 points; weights raised: 3 x4, 7 x2, on 400 made-up samples",
    )


@pytest.mark.parametrize(("enough", "advice"), [(3.2, "--bits 3.5 would do"), (9, "no budget up to 8 bits would do")])
def test_a_limit_on_classes_that_cannot_be_met_says_what_would_do(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, enough: float, advice: str
) -> None:
    classes = np.isin(np.arange(CLASSES), [3, 7])
    MadeUp(monkeypatch, lambda tried: np.where(classes, below(enough, 10)(tried), 0.0))
    with pytest.raises(VerificationError) as caught:
        meet(setting, max_class_drop=3.0)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "--max-class-drop 3 cannot be met with --bits 2: 3 loses 10.00 (of 40 samples), 7 loses 10.00 (of 40 samples); "
        + advice
    )


def test_classes_that_do_not_count_break_no_limit() -> None:
    losses = Losses(0.5, np.array([np.nan, 2.0, 3.0]), np.array([0, 40, 40]))
    found = [too_much(losses, QuantizeConfig(max_class_drop=limit)).tolist() for limit in (1.9, 2.0, 3.0)]
    assert found == [[False, True, True], [False, False, True], [False, False, False]]
    assert too_much(losses, QuantizeConfig(max_drop=0.4)).all()
    assert not too_much(losses, QuantizeConfig(max_drop=0.5)).any()


@pytest.mark.parametrize("most", [2000, 50, 3])
@pytest.mark.parametrize("classes", [None, ("3", "8")], ids=["all", "two"])
def test_limits_are_checked_on_samples_that_nothing_else_has_seen(
    digits: Workload, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...] | None, most: int
) -> None:
    monkeypatch.setattr(limits, "LIMIT_SAMPLES", most)
    config = QuantizeConfig(samples=60, method="uniform", classes=classes, activation_bits=0)
    setting = make_setting(digits, config, Clock(), silent)
    chosen, _, notes = limits._limit_samples(setting)
    assert notes == ()
    assert not set(chosen.indices.tolist()) & set(setting.drawn.indices.tolist())
    counted = [3, 8] if classes else list(range(CLASSES))
    counts = np.bincount(digits.samples.labels[chosen.indices], minlength=CLASSES)
    left = 50 - 60 // len(counted)  # of the 50 digits of each class
    assert counts[counted].tolist() == [max(min(most // len(counted), left), 1)] * len(counted)
    assert counts.sum() == counts[counted].sum()


def test_without_other_samples_the_limits_are_checked_on_the_calibration_samples(
    digits: Workload,
) -> None:
    """Which is said, and never called samples that nothing else used."""
    setting = make_setting(digits, replace(QUICK, samples=None), Clock(), silent)
    chosen, _, _ = limits._limit_samples(setting)
    np.testing.assert_array_equal(chosen.indices, setting.drawn.indices)
    _, notes = meet_limits(replace(setting, config=replace(setting.config, max_class_drop=100.0)), Clock(), silent)
    assert notes[0].startswith("the limits are checked on the calibration samples themselves")
    assert notes[1].endswith("on 500 calibration samples")


def test_a_class_without_other_samples_is_checked_on_its_calibration_samples_alone(digits: Workload) -> None:
    """One small class of many must not take the other samples of all the others away."""
    setting = make_setting(digits, QUICK, Clock(), silent)
    drawn = list(setting.drawn.by_class)
    drawn[4] = np.flatnonzero(digits.samples.labels == 4)
    small = replace(setting, drawn=Draw(tuple(drawn)))
    chosen, name, notes = limits._limit_samples(small)
    np.testing.assert_array_equal(np.sort(chosen.by_class[4]), drawn[4])
    for m in set(range(CLASSES)) - {4}:
        assert len(chosen.by_class[m])
        assert not set(chosen.by_class[m].tolist()) & set(drawn[m].tolist())
    assert name == "samples"
    assert notes[0].startswith("the limits are checked on calibration samples of 1 classes, the first of them '4'")


def hits(model: Any, work: Workload, indices: Array) -> Array:
    """Which of the samples a model predicts right, in one batch."""
    output = Session(model).run(work.samples.read(indices))[work.logits.output]
    return np.asarray(output.argmax(axis=1) == work.samples.labels[indices])


@pytest.mark.parametrize("activation_bits", [0, 2])
def test_losses_are_those_of_the_whole_quantized_model_against_the_float_one(
    digits: Workload, activation_bits: int
) -> None:
    """What quantized activations cost was once left out, and so was that biases are quantized with them."""
    config = replace(QUICK, method="uniform", bits=2.0, activation_bits=activation_bits, class_weights=(("3", 3.0),))
    setting = make_setting(digits, config, Clock(), silent)
    solution = solve(setting, Clock(), silent)
    found = LimitCheck(setting)(setting, solution)
    indices = limits._limit_samples(setting)[0].indices
    labels = digits.samples.labels[indices]
    lost = 100.0 * (
        hits(digits.source, digits, indices).astype(int) - hits(emit_solution(setting, solution), digits, indices)
    )
    weights = np.where(labels == 3, 3.0, 1.0)
    assert found.overall == pytest.approx((weights * lost).sum() / weights.sum(), abs=1e-9)
    for m in range(CLASSES):
        assert found.per_class[m] == pytest.approx(lost[labels == m].mean())
        assert found.samples[m] == np.sum(labels == m)
    if activation_bits:
        assert found.overall > 2


def test_what_a_limit_promises_holds_for_the_file(digits: Workload) -> None:
    """Checked by hand on the samples that were not drawn."""
    config = replace(QUICK, max_drop=1.0, activation_bits=8)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert result.average_bits < 3
    setting = make_setting(digits, replace(config, method="uniform", max_drop=None), Clock(), silent)
    indices = limits._limit_samples(setting)[0].indices
    before, after = (hits(model, digits, indices).mean() for model in (digits.source, result.model))
    assert 100 * (before - after) <= 1.0
    assert any(note.endswith(f"on {len(indices)} samples that nothing else used") for note in result.notes)


def test_a_limit_that_is_not_met_exits_3_and_writes_nothing(tmp_path: Path, command: Command) -> None:
    options = ("--activation-bits", "2", "--activation-range", "minmax", "--samples", "60", "--max-drop", "0")
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", *options)
    assert (finished.code, finished.out, finished.err.count("\n")) == (3, "", 1)
    assert finished.err.startswith("onnx-cbq: --max-drop 0: even 8 bits lose ")
    assert not list(tmp_path.iterdir())
