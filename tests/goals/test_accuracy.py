"""Limits on lost accuracy: what is searched, by made-up losses, and that what is promised holds for the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, RateDistortionConfig, RoundingConfig, VerificationError, quantize
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.goals import Accuracy, accuracy, losses
from onnx_cbq.goals.goal import Met, solve
from onnx_cbq.goals.losses import Losses
from onnx_cbq.methods import Method, RateDistortion
from onnx_cbq.model import Array
from onnx_cbq.stages.scene import Scene
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.goals.hits import hits
from tests.scenes import scene_of

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
METHOD = RateDistortion(exchanges=2)


@pytest.fixture(scope="module")
def digits() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.fixture(scope="module")
def scene(digits: Workload) -> Scene:
    return scene_of(digits, QUICK)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a solution was asked for, in place of the solution."""

    scene: Scene
    bits: float


LossOf = Callable[[Asked], Array]


class MadeUp:
    """Losses of classes that depend on nothing but what is asked for; remembers it."""

    notes = ()
    samples = "made-up samples"
    blindness = ""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loss_of: LossOf) -> None:
        self.asked: list[Asked] = []
        self._loss_of = loss_of
        monkeypatch.setattr(accuracy, "solve", self._solve)
        monkeypatch.setattr(accuracy, "LimitCheck", lambda _: self)

    def _solve(self, scene: Scene, method: Method, bits: float) -> Any:
        assert method is METHOD
        self.asked.append(Asked(scene, bits))
        return self.asked[-1]

    def __call__(self, scene: Scene, solution: Any) -> Losses:
        assert solution.scene is scene
        found = self._loss_of(solution)
        return Losses(float(np.nanmean(found)), found, np.full(CLASSES, 40.0))

    @property
    def bits(self) -> list[float]:
        return [asked.bits for asked in self.asked]


def below(bits: float, loss: float) -> LossOf:
    """Every class loses `loss` points below some average of bits, and nothing from there on."""
    return lambda asked: np.full(CLASSES, loss if asked.bits < bits else 0.0)


def meet(scene: Scene, **limits: Any) -> tuple[Asked, Met]:
    """What was taken of all that was asked for, and what is said of it."""
    met = Accuracy(**{"average": 2.0, **limits}).meet(scene, METHOD)
    taken: Any = met.solution
    return taken, met


def test_a_limit_that_cannot_be_measured_leaves_the_usual_bits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no plan loses anything the fewest bits would be next to none; where the usual ones do, more are found."""
    for loss, bits in ((0.0, 4.0), (3.0, 5.0)):
        made_up = MadeUp(monkeypatch, below(5.0, loss))
        made_up.blindness = "every answer is the same"
        taken, met = meet(scene, max_drop=1.0)
        assert taken.bits == pytest.approx(bits, abs=accuracy.RESOLUTION)
        assert met.bits == taken.bits
        assert any("could not be measured: every answer is the same" in note for note in met.notes) == (loss == 0)


@pytest.mark.parametrize("enough", [0.55, 1.3, 3.07, 7.99])
def test_the_fewest_bits_that_keep_the_limit_are_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, enough: float
) -> None:
    """To within a tenth of a bit, in as many solutions as bisection needs; layers trade bits in the last one only."""
    made_up = MadeUp(monkeypatch, below(enough, 1.01))
    taken, met = meet(scene, max_drop=1.0)
    assert enough <= taken.bits <= enough + accuracy.RESOLUTION + 0.01
    assert len(made_up.asked) <= 9
    assert [asked.scene.hasty for asked in made_up.asked] == [True] * (len(made_up.asked) - 1) + [False]
    assert met.bits == taken.bits
    assert met.notes == (f"--max-drop 1: {taken.bits:g} bits lose 0.00 points, on 400 made-up samples",)


def test_trades_that_break_the_limit_are_taken_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lower the divergence, which is not the accuracy that was asked for."""

    def loss(asked: Asked) -> Array:
        return below(3, 5)(asked) + 5 * (not asked.scene.hasty)

    MadeUp(monkeypatch, loss)
    taken, met = meet(scene, max_drop=1.0)
    assert taken.scene.hasty
    assert 3 <= taken.bits == met.bits <= 3.11


def test_a_limit_that_8_bits_do_not_keep_exits_3(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUp(monkeypatch, below(9, 2.5))
    with pytest.raises(
        VerificationError, match=r"--max-drop 1: even 8 bits lose 2.50 points.*--activation-bits 0"
    ) as e:
        meet(scene, max_drop=1.0)
    assert e.value.exit_code == 3


def test_both_limits_at_once_must_hold(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class loses too much below 5 bits while all together lose little; the message names the one that fails."""

    def loss(asked: Asked) -> Array:
        return np.where(np.arange(CLASSES) == 3, below(5, 9)(asked), 0.0)

    MadeUp(monkeypatch, loss)
    taken, _ = meet(scene, max_drop=1.0, max_class_drop=2.0)
    assert 5 <= taken.bits <= 5.11
    MadeUp(monkeypatch, lambda _: np.where(np.arange(CLASSES) == 3, 9.0, 0.0))
    with pytest.raises(VerificationError, match=r"--max-class-drop 2: even with 8 bits 3 loses 9.00 \(of 40 samples\)"):
        meet(scene, max_drop=1.0, max_class_drop=2.0)


def test_the_search_asks_for_no_less_than_the_layers_that_are_kept_take(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average that cannot be met was an error about --bits, which nobody had given."""
    largest = max(scene.work.layers, key=lambda layer: layer.size)
    taken = 4 * largest.size / scene.work.layers.size
    made_up = MadeUp(monkeypatch, below(0, 0))
    keeping = replace(scene, settings=replace(scene.settings, keep=((largest.name, 4),)))
    meet(keeping, max_drop=1.0)
    assert taken < min(made_up.bits) <= taken + accuracy.RESOLUTION + 0.01
    solve(made_up.asked[-1].scene, METHOD, min(made_up.bits))


def test_weights_of_classes_that_lose_too_much_are_raised_until_they_do_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled each time, those of no other class; the note tells the factors."""
    needs = np.zeros(CLASSES)
    needs[[3, 7]] = 10, 6
    start = np.linspace(0.5, 1, CLASSES)
    made_up = MadeUp(monkeypatch, lambda asked: needs * start / asked.scene.class_weights)
    taken, met = meet(scene.weighing(start), max_class_drop=3.0)
    raised = np.ones(CLASSES)
    raised[[3, 7]] = 4, 2
    np.testing.assert_allclose(taken.scene.class_weights, start * raised)
    assert made_up.bits == [2.0] * 3
    assert met.bits == 2.0
    assert met.notes == (
        "--max-class-drop 3: '7' loses most, 3.00 points; weights raised: 3 x4, 7 x2, on 400 made-up samples",
    )


@pytest.mark.parametrize(("enough", "advice"), [(3.2, "--bits 3.5 would do"), (9, "no budget up to 8 bits would do")])
def test_a_limit_on_classes_that_cannot_be_met_says_what_would_do(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, enough: float, advice: str
) -> None:
    classes = np.isin(np.arange(CLASSES), [3, 7])
    MadeUp(monkeypatch, lambda asked: np.where(classes, below(enough, 10)(asked), 0.0))
    with pytest.raises(VerificationError) as caught:
        meet(scene, max_class_drop=3.0)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "--max-class-drop 3 cannot be met with --bits 2: 3 loses 10.00 (of 40 samples), 7 loses 10.00 (of 40 samples); "
        + advice
    )


def test_classes_that_do_not_count_break_no_limit() -> None:
    lost = Losses(0.5, np.array([np.nan, 2.0, 3.0]), np.array([0, 40, 40]))
    found = [Accuracy(max_class_drop=limit).too_much(lost).tolist() for limit in (1.9, 2.0, 3.0)]
    assert found == [[False, True, True], [False, False, True], [False, False, False]]
    assert Accuracy(max_drop=0.4).too_much(lost).all()
    assert not Accuracy(max_drop=0.5).too_much(lost).any()


def test_what_a_limit_promises_holds_for_the_file(digits: Workload) -> None:
    """Checked by hand on the samples that were not drawn."""
    config = replace(QUICK, max_drop=1.0, activation_bits=8)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert result.average_bits < 3
    indices = losses.limit_samples(scene_of(digits, config))[0].indices
    before, after = (hits(model, digits, indices).mean() for model in (digits.source, result.model))
    assert 100 * (before - after) <= 1.0
    assert any(note.endswith(f"on {len(indices)} samples that nothing else used") for note in result.notes)


def test_a_limit_that_is_not_met_exits_3_and_writes_nothing(tmp_path: Path, command: Command) -> None:
    options = ("--activation-bits", "2", "--activation-range", "minmax", "--samples", "60", "--max-drop", "0")
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", *options)
    assert (finished.code, finished.out, finished.err.count("\n")) == (3, "", 1)
    assert finished.err.startswith("onnx-cbq: --max-drop 0: even 8 bits lose ")
    assert not list(tmp_path.iterdir())
