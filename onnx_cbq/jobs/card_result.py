"""What was tried to find a card: every candidate with its figures, the verdict, and the card as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_cbq.calibration.candidates import Candidate
from onnx_cbq.calibration.written import card_text, keys_of
from onnx_cbq.errors import VerificationError
from onnx_cbq.evidence.trials import Outcome
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.settings import SAMPLES, changed_options, check, check_kinds, option

# Level of the test that tells two candidates apart.
TIED = 0.05


@dataclass(frozen=True)
class CardConfig:
    """How a first card is looked for.

    Attributes:
        samples: samples that are tried, drawn evenly from the classes.
        seed: decides which samples are drawn.
        logits: name of the output that holds the class scores; the only one that fits if it is left out.
        size: height and width of images, or the length of sounds, for a model that takes any; if it is left out, the
            images' own if they are alike, else 224; of sounds the longest.
    """

    samples: int = option(300, SAMPLES, "N")
    seed: int = option(0, SAMPLES, "N")
    logits: str | None = option(None, SAMPLES, "NAME", shown="the only one that fits")
    size: int | None = option(None, SAMPLES, "N", shown="the files' own, else 224; the longest sound")

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.samples >= 20, "--samples", "20 or more", self.samples)
        check(self.size is None or self.size > 0, "--size", "a whole number above 0", self.size)


@dataclass(frozen=True)
class Tried:
    """A candidate and what came of it; `tied` if the most accurate is not plainly ahead of it on the same samples."""

    candidate: Candidate
    outcome: Outcome
    tied: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; accuracy and confidence in percent."""
        outcome, ran = self.outcome, self.outcome.failure is None
        return {
            "name": self.candidate.name,
            "keys": keys_of(self.candidate.card),
            "samples": outcome.samples,
            "accuracy": 100 * outcome.accuracy if ran else None,
            "confidence": 100 * float(outcome.confidence.mean()) if ran else None,
            "loss": float(outcome.loss.mean()) if ran else None,
            "tied": self.tied,
            "failure": outcome.failure,
        }


@dataclass(frozen=True)
class CardResult:
    """What was tried, best first, and what speaks against the best.

    Attributes:
        rows: the candidates by accuracy, behind the one to take: of those that are tied with the most accurate the one
            whose right answers are likeliest.
        guessing: accuracy of the best constant answer, in [0, 1].
        refusal: why the best is no card to go on with, or None.
        notes: what a user should know.
        seconds: per stage.
    """

    rows: tuple[Tried, ...]
    guessing: float
    refusal: str | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    config: CardConfig

    @property
    def best(self) -> Tried:
        """The best candidate."""
        return self.rows[0]

    @property
    def tied(self) -> tuple[Tried, ...]:
        """The others that the samples do not tell from the best."""
        return tuple(row for row in self.rows[1:] if row.tied)

    def name(self, row: Tried) -> str:
        """What a candidate is called, with its layout where several were tried."""
        several = len({other.candidate.card.layout for other in self.rows}) > 1
        return f"{row.candidate.card.layout or 'as stored'}, {row.candidate.name}" if several else row.candidate.name

    def verdict(self) -> list[str]:
        """The best in words, and its ties."""
        outcome, others = self.best.outcome, [self.name(row) for row in self.tied]
        right = f"{100 * outcome.accuracy:.1f} % right of {outcome.samples} samples"
        best = f"best: {self.name(self.best)}: {right}, mean confidence {100 * float(outcome.confidence.mean()):.1f} %"
        if not others:
            return [best]
        told = (
            f"{outcome.samples} samples do not tell its accuracy from {len(others)} more (sign test, {100 * TIED:g} %)"
        )
        return [best, f"a tie, which the loss decided: {told}: {'; '.join(others)}"]

    def text(self, folder: Path) -> str:
        """The card, for a file in `folder`, with its figures as comments.

        Raises:
            VerificationError: the best is no card to go on with.
        """
        if self.refusal is not None:
            raise VerificationError(self.refusal)
        comments = [*self.verdict(), "Compare the accuracy with the one that the model is known for."]
        return card_text(self.best.candidate.card, folder, comments)

    def to_json(self) -> str:
        """The result as JSON."""
        return to_json_text(
            "card",
            {
                "tried": [row.to_json() for row in self.rows],
                "guessing": 100 * self.guessing,
                "refusal": self.refusal,
                "notes": list(self.notes),
                "seconds": dict(self.seconds),
                "versions": dict(self.versions),
                "settings": changed_options(self.config),
            },
        )
