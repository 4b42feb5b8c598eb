"""What `debug` gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_cbq.pages import make_page
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.storage.files import write_text
from onnx_cbq.verification.kernel_use import Fallback

# A layer whose weights or outputs are larger or smaller than the float model's by more has a wrong scale, where that
# makes most of the noise: coarse grids make numbers smaller too.
_WRONG_GAIN, _MOST = 0.1, 0.75
# Ratios in dB beyond are those of float32 itself.
_FLOAT = 100.0
# Numbers beyond the ends of a grid, in percent, that are worth a word.
_CLIPPED = 0.5


@dataclass(frozen=True)
class LayerDebug:
    """A layer of the float model in the quantized file. Ratios of signal to noise are in dB, at most 110.

    Attributes:
        name: of the layer; `node` is that of the file.
        weight_type, input_type: of the codes that are multiplied, or float.
        integer: whether onnxruntime runs it on integers; `reason` says why not.
        pair_sum: the largest sum of two of its codes where that is more than 16 bits hold on x86 without VNNI.
        deviation: by how many codes onnxruntime's kernel is off on this processor, None where it is not.
        weight_snr: of the weight; `weight_gain` says how many times as large it is, by least squares.
        input_snr: of the rounded input; `clipped` are its numbers beyond the ends of the grid, in percent.
        weight_alone_snr, input_alone_snr, alone_snr: of the output behind the float model's own input, with the file's
            weight, with its rounding of the input, and with both.
        accumulated_snr: of the output in the file, behind all layers in front.
        gain: how many times as large the output is with the file's weight.
        divergence: of the float model's class scores with this layer alone as in the file, in nats.
        share: of the sum of that over all layers, in percent.
    """

    name: str
    node: str
    operator: str
    weight_type: str
    input_type: str
    integer: bool
    reason: str
    pair_sum: int | None
    deviation: int | None
    weight_snr: float | None
    weight_gain: float | None
    input_snr: float | None
    clipped: float
    weight_alone_snr: float | None
    input_alone_snr: float | None
    alone_snr: float | None
    accumulated_snr: float | None
    gain: float | None
    divergence: float | None
    share: float | None

    @property
    def cause(self) -> str:
        """What costs most here, in a word or two; "" where nothing does, or it is not known."""
        if self.deviation is not None:
            return f"saturates, {self.deviation} codes"
        if _is_wrong(self.weight_gain, self.weight_snr):
            return f"weights x {self.weight_gain:.2f}"
        if _is_wrong(self.gain, self.weight_alone_snr):
            return f"output x {self.gain:.2f}"
        by_weight, by_input = self.weight_alone_snr, self.input_alone_snr
        if by_weight is None or by_input is None or min(by_weight, by_input) > _FLOAT:
            return ""
        coarse = f"clips {self.clipped:.1f} %" if self.clipped > _CLIPPED else "input"
        return "weights" if by_weight <= by_input else coarse


def _is_wrong(gain: float | None, ratio: float | None) -> bool:
    """Whether most of the noise, of `ratio` dB, is that all is so many times as large: (gain - 1)^2 of the signal's."""
    if gain is None or ratio is None or abs(gain - 1) <= _WRONG_GAIN:
        return False
    return (gain - 1) ** 2 > _MOST * float(10 ** (-ratio / 10))


@dataclass(frozen=True)
class Deviating:
    """A tensor of codes that onnxruntime's kernels make something else of than the file says."""

    node: str
    tensor: str
    codes: int
    numbers: int


@dataclass(frozen=True)
class DebugResult:
    """A float model and a quantized file, layer by layer.

    Attributes:
        layers: in the order of the float model.
        unmatched, unmatched_in_file: layers of the one and products of the other that have no counterpart.
        divergence: of the file's class scores from the float model's, in nats.
        agreement: how often both answer the same, in percent.
        deviations: what onnxruntime computes otherwise on this processor, the first tensor first.
        fallbacks: nodes besides the layers that it runs in float between codes.
    """

    layers: tuple[LayerDebug, ...]
    unmatched: tuple[str, ...]
    unmatched_in_file: tuple[str, ...]
    divergence: float
    agreement: float
    samples: int
    deviations: tuple[Deviating, ...]
    fallbacks: tuple[Fallback, ...]
    processor: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def ranking(self) -> tuple[LayerDebug, ...]:
        """The layers, those first that cost most by themselves."""
        return tuple(sorted(self.layers, key=lambda layer: -(layer.divergence or 0.0)))

    def report(self, path: str | Path) -> None:
        """Write all of it as one page for a browser.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), make_page(json.loads(self.to_json())))

    def figures(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "layers": [{**asdict(layer), "cause": layer.cause} for layer in self.layers],
            "ranking": [layer.name for layer in self.ranking],
            "unmatched": list(self.unmatched),
            "unmatched_in_file": list(self.unmatched_in_file),
            "divergence": self.divergence,
            "agreement": self.agreement,
            "samples": self.samples,
            "deviations": [asdict(found) for found in self.deviations],
            "fallbacks": [asdict(found) for found in self.fallbacks],
            "processor": self.processor,
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    def to_json(self) -> str:
        """Everything as JSON."""
        return to_json_text("debug", self.figures())
