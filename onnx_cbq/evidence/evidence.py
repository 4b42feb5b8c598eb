"""What is known of a model from samples, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.evidence.statistics import Run
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Grouping
from onnx_cbq.system.progress import Clock, Progress, silent

_T = TypeVar("_T")


@dataclass(frozen=True)
class EvidenceSettings:
    """What pieces of evidence depend on beside the model and the samples.

    Attributes:
        scoring: when a neuron counts as critical.
        compensation: how tables of widths are rounded.
        seed: of the random labels that gradients are drawn by.
    """

    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    compensation: RoundingConfig = field(default_factory=RoundingConfig)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the float model says on samples. A piece that nobody asks for costs nothing.

    A piece is a function of the evidence, or an object that can be called with it and compared: `evidence.of(piece)`
    calls it once and keeps what it returns. So whoever adds a method writes the pieces that it needs beside it.

    Attributes:
        train, held: samples that statistics are taken from, and those that plans are measured on.
        class_weights: what a sample counts, by its class, [classes].
        groups: of classes; what counts is to tell them apart.
    """

    work: Workload
    train: Draw
    held: Draw
    class_weights: Array
    groups: Grouping
    settings: EvidenceSettings = field(default_factory=EvidenceSettings)
    clock: Clock = field(default_factory=Clock)
    progress: Progress = silent
    _known: dict[Callable[[Evidence], Any], Any] = field(default_factory=dict, init=False, repr=False)

    def of(self, piece: Callable[[Evidence], _T], stage: str = "statistics") -> _T:
        """What a piece says, computed at the first call; its time counts for `stage`.

        Raises:
            OnnxCbqError: what the piece raises.
        """
        if piece not in self._known:
            with self.clock.stage(stage):
                self._known[piece] = piece(self)
        found: _T = self._known[piece]
        return found

    def known(self, piece: Callable[[Evidence], _T]) -> _T | None:
        """What a piece said, if anyone has asked."""
        return self._known.get(piece)

    @property
    def run(self) -> Run:
        """The samples for statistics, in batches, for moments."""
        return run_of(self.work, self.train, self.settings.compensation, self.class_weights)
