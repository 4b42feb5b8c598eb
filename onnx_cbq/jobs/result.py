"""What the commands give back: records with everything about a result, saved as a model and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from onnx import ModelProto

from onnx_cbq.jobs.debug_result import DebugResult
from onnx_cbq.jobs.details import LayerDetail, confusions
from onnx_cbq.jobs.frames import make_frame
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.jobs.written_settings import as_options
from onnx_cbq.model import Model
from onnx_cbq.pages import make_page
from onnx_cbq.records import Evaluation, Grouping, Layers, Plan, Removal, Scores
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.stages.solution import MethodReport
from onnx_cbq.storage import Dump
from onnx_cbq.storage.files import write_text
from onnx_cbq.targets.lint import Violation
from onnx_cbq.targets.target import Target
from onnx_cbq.verification.comparison import Fidelity
from onnx_cbq.verification.counts import OutputDistance
from onnx_cbq.verification.prove import Sizes

# What is always asked for, and says nothing of a limit.
BITS = "--bits"
# It has scripts of its own, and nothing of the notebook's.
_FRAME = Markup('<iframe sandbox="allow-scripts" title="onnx-cbq" width="100%" height="600" srcdoc="{}"></iframe>')


@dataclass(frozen=True)
class CurvePoint:
    """One budget of a trade-off curve.

    Attributes:
        bits: the average asked for; `average_bits` what it came to.
        ideal_bytes: what the weights' bits alone would take.
        evaluation: on all samples of the card.
    """

    bits: float
    average_bits: float
    ideal_bytes: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Result:
    """A quantized model that passed its check, and what it does beside the float one.

    Attributes:
        model: the quantized model.
        dump: the bytes that were verified, which `save` writes.
        plan: bits of every channel.
        layers: the layers, and what was left float.
        scores: class scores, if the method needs them.
        method: how the method chose.
        curve: other budgets, if they were asked for.
        groups: classes that were taken together; each alone if that was not asked for.
        reference, quantized: the float and the quantized model on all samples of the card.
        agreement: share of samples on which both predict the same class, in percent.
        sizes: of the quantized model.
        fidelity: what its fused graph predicts beside the plain one; None if it was not run.
        left_float: share of the float model's weights that are in no layer, in percent; biases count.
        processor: the kind of processor that accuracy and latency were measured on.
        removal: channels that were cut out of the quantized model.
        class_names: in the order of the labels.
        calibration_samples: how many samples were used for statistics and search.
        seconds: per stage.
        notes: what a user should know: samples missing, passes refused, what the search found.
        versions: of onnx-cbq and of the packages that decide the result.
        config: the settings.
        outputs: how far the outputs beside the class scores are from those of the float model.
        details: each layer, as the page shows it.
        name: of the float model's file, "" for none.
        alone: what each layer costs by itself, if that was measured.
    """

    model: Model
    dump: Dump
    plan: Plan
    layers: Layers
    scores: Scores | None
    method: MethodReport
    curve: tuple[CurvePoint, ...]
    groups: Grouping
    reference: Evaluation
    quantized: Evaluation
    agreement: float
    sizes: Sizes
    fidelity: Fidelity | None
    left_float: float
    processor: str
    removal: Removal
    class_names: tuple[str, ...]
    calibration_samples: int
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    config: QuantizeConfig
    outputs: tuple[OutputDistance, ...] = ()
    details: tuple[LayerDetail, ...] = ()
    name: str = ""
    alone: DebugResult | None = None

    @property
    def average_bits(self) -> float:
        """Average bits per weight over all layers."""
        return self.plan.average_bits(self.layers)

    @property
    def asked(self) -> tuple[str, ...]:
        """What the notes say of a limit that was asked for, and whether it is met."""
        option = self.config.choice.goal.option
        return tuple(note for note in self.notes if option != BITS and note.startswith(option))

    def swaps(self, most: int = 5) -> list[tuple[int, int, int]]:
        """Which classes the quantized model takes for which more often than the float one, those most often first.

        Each as (class, class it is taken for, how many more samples).
        """
        found = self.quantized.confusion
        if self.quantized.has_several:
            return []
        # Of thousands of classes nearly all pairs are empty.
        taken_for = np.nonzero(found)
        more = found[taken_for] - self.reference.confusion[taken_for]
        more[taken_for[0] == taken_for[1]] = 0
        order = np.argsort(-more, kind="stable")[:most].tolist()
        return [(int(taken_for[0][i]), int(taken_for[1][i]), int(more[i])) for i in order if more[i] > 0]

    @property
    def proto(self) -> ModelProto:
        """The quantized model as one protobuf message."""
        return self.model.to_proto()

    def save(self, path: str | Path) -> int:
        """Write the model, with storage "archive" its archive, whole or not at all; returns the bytes of the file.

        Raises:
            OutputError: it cannot be written.
        """
        return self.dump.save(Path(path))

    def report(self, path: str | Path, alone: DebugResult | None = None) -> None:
        """Write all of it as one page for a browser.

        Args:
            path: of the page.
            alone: what `onnx_cbq.debug` says of the saved file, for the part on layers.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), _page(self if alone is None else replace(self, alone=alone)))

    def _repr_html_(self) -> str:
        """The page, in a frame of its own, for notebooks."""
        return Markup(
            '<iframe sandbox="allow-scripts" title="onnx-cbq" width="100%" height="600" srcdoc="{}"></iframe>'
        ).format(_page(self))

    def to_json(self) -> str:
        """Everything but the model, as JSON; accuracies are in percent."""
        return to_json_text(
            "quantize",
            {
                "model": self.name,
                "asked": list(self.asked),
                "average_bits": self.average_bits,
                "bits": {name: bits.tolist() for name, bits in self.plan.bits.items()},
                "float": evaluation_json(self.reference, self.class_names),
                "quantized": evaluation_json(self.quantized, self.class_names),
                "agreement": self.agreement,
                "outputs": outputs_json(self.outputs, self.config.ignore_outputs),
                "sizes": asdict(self.sizes),
                "target": self.config.choice.target.name,
                "processor": self.processor,
                "fused_against_plain": None if self.fidelity is None else asdict(self.fidelity),
                "weights_left_float": self.left_float,
                "removed": {name: len(channels) for name, channels in self.removal.removed.items()},
                "kept_zero": [asdict(entry) for entry in self.removal.kept_zero],
                "macs": dict(zip(("float", "quantized"), self.removal.macs, strict=True)),
                "swaps": [
                    {"class": self.class_names[m], "taken_for": self.class_names[taken], "more": more}
                    for m, taken, more in self.swaps()
                ],
                "confusions": None if self.quantized.has_several else confusions(self.reference, self.quantized),
                "layers": [detail.to_json(self.plan.bits[detail.name]) for detail in self.details],
                "groups": None if self.groups.is_trivial else self._groups_json(),
                "class_names": list(self.class_names),
                "method": {"name": self.config.choice.method.name, **self.method.to_json()},
                "alone": None if self.alone is None else self.alone.figures(),
                "curve": [
                    {
                        "average_bits": point.average_bits,
                        "ideal_bytes": point.ideal_bytes,
                        **evaluation_json(point.evaluation, self.class_names),
                    }
                    for point in self.curve
                ],
                "calibration_samples": self.calibration_samples,
                "left_float": [asdict(entry) for entry in self.layers.left_float],
                "notes": list(self.notes),
                "seconds": dict(self.seconds),
                "versions": dict(self.versions),
                "settings": as_options(self.config),
            },
        )

    def to_frame(self) -> Any:
        """A data frame of pandas, or else of polars, with a row per layer: what it is, and its bits.

        Columns: `layer`, `operator`, `channels`, `weights`, `macs` (for one sample, of the float model), and of the
        channels' bits `average_bits`, `least_bits` and `most_bits`.

        Raises:
            ConfigError: neither library is installed.
        """
        bits = [self.plan.bits[layer.name] for layer in self.layers]
        return make_frame(
            {
                "layer": [layer.name for layer in self.layers],
                "operator": [layer.operator for layer in self.layers],
                "channels": [layer.channels for layer in self.layers],
                "weights": [layer.size for layer in self.layers],
                "macs": [layer.macs for layer in self.layers],
                "average_bits": [float(found.mean()) for found in bits],
                "least_bits": [int(found.min()) for found in bits],
                "most_bits": [int(found.max()) for found in bits],
            }
        )

    def _groups_json(self) -> dict[str, Any]:
        """The groups of classes, and the accuracy that counts them."""
        compared = (("float", self.reference), ("quantized", self.quantized))
        return {
            "names": list(self.groups.names),
            "top1": {name: self.groups.accuracy(found.confusion) for name, found in compared},
        }


def _page(result: Result) -> str:
    return make_page(json.loads(result.to_json()))


@dataclass(frozen=True)
class CheckResult:
    """A file beside what its target needs.

    Attributes:
        violations: in the order of what comes of them: refused, wrong, slow.
        products: how many nodes multiply a constant weight; `integers` of them integers, by what the file says.
        fused: how many onnxruntime's CPU provider runs on integers.
        pair_safe: whether no two codes can overflow where kernels add in 16 bits.
    """

    target: Target
    violations: tuple[Violation, ...]
    products: int
    integers: int
    fused: int
    pair_safe: bool

    def to_json(self) -> str:
        """The result as JSON."""
        return to_json_text(
            "check",
            {
                "target": self.target.name,
                "violations": [
                    {"effect": violation.effect, **asdict(violation.finding), "source": violation.demand.source}
                    for violation in self.violations
                ],
                "products": self.products,
                "integers": self.integers,
                "fused": self.fused,
                "pair_safe": self.pair_safe,
            },
        )


@dataclass(frozen=True)
class EvaluationResult:
    """A model on labelled samples, and how often it agrees with a reference (percent; None without one)."""

    model: Evaluation
    reference: Evaluation | None
    agreement: float | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    outputs: tuple[OutputDistance, ...] = ()

    def to_json(self) -> str:
        """The result as JSON; accuracies are in percent."""
        reference = None if self.reference is None else evaluation_json(self.reference, self.class_names)
        return to_json_text(
            "evaluate",
            {
                **evaluation_json(self.model, self.class_names),
                "reference": reference,
                "agreement": self.agreement,
                "outputs": outputs_json(self.outputs),
                "notes": list(self.notes),
                "versions": dict(self.versions),
            },
        )


def evaluation_json(evaluation: Evaluation, names: tuple[str, ...]) -> dict[str, Any]:
    """One evaluation as a JSON object."""
    return {
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "per_class": dict(zip(names, evaluation.per_class, strict=True)),
        "worst_class": names[evaluation.worst_class],
        "samples": evaluation.samples,
        "class_samples": evaluation.counts.tolist(),
        "bytes": evaluation.bytes,
        "latency_ms": evaluation.latency_ms,
        "latency_error_ms": evaluation.latency_error_ms,
    }


def outputs_json(outputs: tuple[OutputDistance, ...], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """The outputs beside the class scores by name, as a JSON object."""
    return {
        found.output: {
            "relative_distance": found.relative,
            "differing": found.differing,
            "ignored": found.output in ignored,
        }
        for found in outputs
    }
