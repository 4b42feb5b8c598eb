"""Which classes count, and which samples are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.records.names import class_indices
from onnx_cbq.settings import check, check_kinds


@dataclass(frozen=True)
class SampleSettings:
    """Which samples count, and what.

    Attributes:
        classes: names of the only classes that matter; None for all.
        class_weights: (name, weight) pairs: what the samples of a class count beside those of others.
        samples: how many are drawn, evenly from the classes that have any; None for all, "auto" for 1,000, or two of
            each class if that is more.
        seed: decides which.
        held_back: share of each class that plans are measured on, and nothing else; 0 where none are measured.
    """

    classes: tuple[str, ...] | None = None
    class_weights: tuple[tuple[str, float], ...] = ()
    samples: int | Literal["auto"] | None = "auto"
    seed: int = 0
    held_back: float = 0.0

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, weight in self.class_weights:
            check(0 <= weight < float("inf"), f"--class-weight {name}", "a number of at least 0", weight)
        counted = self.samples is None or self.samples == "auto" or self.samples > 0
        check(counted, "--samples", "a number above 0", self.samples)
        check(self.seed >= 0, "--seed", "a number of at least 0", self.seed)


def draw_samples(work: Workload, settings: SampleSettings, weights: Array) -> Draw:
    """The calibration samples, from the classes that matter.

    Raises:
        CalibrationError: fewer samples than classes are asked for, or there are too few to hold some back.
    """
    counted = np.flatnonzero(weights).tolist()
    drawn = draw(work.samples, work.class_names, settings.samples, settings.seed, counted)
    if settings.held_back and len(drawn.indices) < 2:
        raise CalibrationError(
            f"{work.samples.data.source.label}: a single sample, expected two: one to score channels and one to "
            f"measure plans; give more samples, or use --method uniform"
        )
    return drawn


def weights_of(work: Workload, settings: SampleSettings) -> Array:
    """The class weights of the settings for these samples, [classes]."""
    return class_weights(work.class_names, settings, work.samples.empty_classes(work.class_names).tolist())


def class_weights(names: Sequence[str], settings: SampleSettings, empty: Sequence[int] = ()) -> Array:
    """What a sample of each class counts: 1, unless the settings say otherwise; 0 for the `empty`, without samples.

    Raises:
        ConfigError: a class that the settings name is unknown, or has no samples.
    """
    weights = np.full(len(names), float(settings.classes is None))
    named = [(m, "--classes", 1.0) for m in class_indices(names, settings.classes or (), "--classes")]
    for name, weight in settings.class_weights:
        named += [(m, "--class-weight", weight) for m in class_indices(names, (name,), "--class-weight")]
    for m, option, weight in named:
        if m in empty:
            raise ConfigError(
                f"{option} {names[m]!r}: there are no samples of this class, so nothing is known of it; leave it out, "
                f"or give samples of it"
            )
        weights[m] = weight if option == "--classes" else weights[m] * weight
    weights[list(empty)] = 0
    if not weights.any():
        raise ConfigError("--class-weight: every class that counts has weight 0; give one a weight above 0")
    return weights
