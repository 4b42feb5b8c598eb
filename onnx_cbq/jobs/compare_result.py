"""What `compare` gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from onnx_cbq.jobs.frames import make_frame
from onnx_cbq.jobs.result import evaluation_json
from onnx_cbq.pages import make_page
from onnx_cbq.records import Evaluation
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.storage.files import write_text


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a run of `batch` samples, and its standard error; `threads` is 0 for one per core."""

    batch: int
    threads: int
    milliseconds: float
    error: float = 0.0


@dataclass(frozen=True)
class Compared:
    """One of the models.

    Attributes:
        label: its path, and of a folder of steps which.
        evaluation: on all samples; its latency is that of one sample, all threads.
        error: standard error of the accuracy by the number of samples, in points.
        compressed: bytes by zstandard.
        agreement: how often it answers as the first, in percent.
        gained, lost: samples that it answers better and worse than the first.
        chance: of a difference as large if there were none (McNemar's exact test); None where samples have several
            answers, which are not independent of each other.
        timings: of runs, the models taking turns; a model that takes a fixed number of samples has those of that.
        memory: bytes that its session takes beside the interpreter and the libraries, once it has run one sample.
    """

    label: str
    evaluation: Evaluation
    error: float
    compressed: int
    agreement: float
    gained: int
    lost: int
    chance: float | None
    timings: tuple[Timing, ...]
    memory: int


@dataclass(frozen=True)
class Disagreement:
    """A sample that a model answers unlike the first.

    Attributes:
        model: which one, from 1 on; the first is 0.
        sample: its position on the card; `where` is what messages call it.
        label: its class; None where it has several.
        answers: of each model the class and the probability of it; None where a sample has several answers.
        divergence: of that model from the first, in nats.
        thumbnail: the sample as a small picture, a `data:` URL; None where it is no image.
    """

    model: int
    sample: int
    where: str
    label: str | None
    answers: tuple[tuple[str | None, float], ...]
    divergence: float
    thumbnail: str | None = None


@dataclass(frozen=True)
class CompareResult:
    """Several models on the same samples; the others are held against the first."""

    models: tuple[Compared, ...]
    disagreements: tuple[Disagreement, ...]
    class_names: tuple[str, ...]
    processor: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def report(self, path: str | Path) -> None:
        """Write all of it as one page for a browser.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), make_page(json.loads(self.to_json())))

    def to_json(self) -> str:
        """Everything as JSON; accuracies are in percent."""
        return to_json_text(
            "compare",
            {
                "models": [
                    {
                        "label": model.label,
                        **evaluation_json(model.evaluation, self.class_names),
                        "standard_error": model.error,
                        "compressed": model.compressed,
                        "agreement": model.agreement,
                        "gained": model.gained,
                        "lost": model.lost,
                        "chance": model.chance,
                        "timings": [asdict(timing) for timing in model.timings],
                        "memory": model.memory,
                    }
                    for model in self.models
                ],
                "disagreements": [
                    {
                        **asdict(found),
                        "answers": [{"class": name, "confidence": share} for name, share in found.answers],
                    }
                    for found in self.disagreements
                ],
                "class_names": list(self.class_names),
                "processor": self.processor,
                "notes": list(self.notes),
                "versions": dict(self.versions),
            },
        )

    def to_frame(self) -> Any:
        """A data frame of pandas, or else of polars, with a row per model; accuracies are in percent.

        Columns: `label`, `top1`, `standard_error`, `worst_class` and its accuracy `worst_top1`, `agreement`, `gained`,
        `lost`, `chance`, `bytes`, `compressed`, `memory`, and the milliseconds of each kind of run that was timed,
        `ms_batch_1_threads_all` for instance; a model that takes no such batch has none there.

        Raises:
            ConfigError: neither library is installed.
        """
        found = [model.evaluation for model in self.models]
        timings = [{_column(timing): timing.milliseconds for timing in model.timings} for model in self.models]
        return make_frame(
            {
                "label": [model.label for model in self.models],
                "top1": [evaluation.top1 for evaluation in found],
                "standard_error": [model.error for model in self.models],
                "worst_class": [self.class_names[evaluation.worst_class] for evaluation in found],
                "worst_top1": [evaluation.per_class[evaluation.worst_class] for evaluation in found],
                "agreement": [model.agreement for model in self.models],
                "gained": [model.gained for model in self.models],
                "lost": [model.lost for model in self.models],
                "chance": [model.chance for model in self.models],
                "bytes": [evaluation.bytes for evaluation in found],
                "compressed": [model.compressed for model in self.models],
                "memory": [model.memory for model in self.models],
                **{name: [row.get(name) for row in timings] for name in dict.fromkeys(chain(*timings))},
            }
        )


def _column(timing: Timing) -> str:
    return f"ms_batch_{timing.batch}_threads_{timing.threads or 'all'}"
