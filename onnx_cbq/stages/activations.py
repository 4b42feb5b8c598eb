"""Grids for activations, from histograms over the samples drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence.kept import kept_histograms
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tensors import collect_histograms
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.responses import find_response
from onnx_cbq.quantize.activations import RANGES, Histogram, choose_grid, join_grids
from onnx_cbq.records import ActivationGrid, ActivationRules
from onnx_cbq.settings import MOST_BITS, check, check_kinds, either
from onnx_cbq.system.progress import Progress, silent

_WIDTHS = tuple(range(2, MOST_BITS + 1))
_AUTO = "auto"


@dataclass(frozen=True)
class AutoBits:
    """A width for each activation, by what it costs there: see `stages.activation_widths`.

    Attributes:
        average: bits of what is multiplied, a multiplication counting as much as any other.
        widths: those that may be chosen, in rising order.
    """

    average: float
    widths: tuple[int, ...] = _WIDTHS

    def __post_init__(self) -> None:
        check_kinds(self)
        known = bool(self.widths) and set(self.widths) <= set(_WIDTHS) and list(self.widths) == sorted(set(self.widths))
        check(known, "--activation-bits auto", "widths from 2 to 8, in rising order", self.widths)
        low, high = self.widths[0], self.widths[-1]
        expected = f"an average from {low} to {high}"
        check(low <= self.average <= high, "--activation-bits auto", expected, self.average)

    def __str__(self) -> str:
        """As on the command line."""
        widths = "" if self.widths == _WIDTHS else f":{','.join(map(str, self.widths))}"
        return f"{_AUTO}:{float(self.average)!r}".removesuffix(".0") + widths

    @property
    def even(self) -> int:
        """The widest that all activations can have alike."""
        return max(width for width in self.widths if width <= self.average)


def read_bits(text: str | int) -> int | AutoBits:
    """A width for all activations, or `auto:AVERAGE` for one for each, or `auto:AVERAGE:4,8` for some alone.

    Raises:
        ConfigError: it is something else.
    """
    kind, _, numbers = str(text).partition(":")
    whole = isinstance(text, (str, int)) and not isinstance(text, bool)
    average, given, widths = numbers.partition(":")
    try:
        if kind != _AUTO:
            return int(text if whole else "")
        return AutoBits(float(average), tuple(map(int, widths.split(","))) if given else _WIDTHS)
    except ValueError:
        expected = "2 to 8, 0 for float, auto:6 for an average, or auto:6:4,8 for some widths alone"
        raise ConfigError(f"--activation-bits: expected {expected}, got {text}") from None


@dataclass(frozen=True)
class ActivationSettings:
    """How activations are quantized.

    Attributes:
        bits: 2 to 8, or 0 to leave them float; with `auto` what is done before widths are chosen has this.
        auto: chooses widths; None for one for all.
        range: "mse" (least squared error), "percentile" (99.99 % of the values) or "minmax".
    """

    bits: int = MOST_BITS
    range: str = "mse"
    auto: AutoBits | None = None

    @staticmethod
    def of(bits: int | AutoBits, range_: str) -> ActivationSettings:
        """One width, or widths around an average."""
        if isinstance(bits, AutoBits):
            return ActivationSettings(round(bits.average), range_, bits)
        return ActivationSettings(bits, range_)

    @property
    def widths(self) -> tuple[int, ...]:
        """Those that activations may have."""
        return (self.bits,) if self.auto is None else self.auto.widths

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.bits in (0, *_WIDTHS), "--activation-bits", "2 to 8, or 0 for float", self.bits)
        check(self.range in RANGES, "--activation-range", either(tuple(RANGES)), self.range)


def choose_grids(
    work: Workload, tensors: Sequence[str], drawn: Draw, settings: ActivationSettings, progress: Progress = silent
) -> Mapping[str, ActivationGrid]:
    """Grids for some of the tensors that `work.placement` measures, from the samples drawn."""
    return grids_for(work, see_activations(work, tensors, drawn, progress), work.widths(settings.bits), settings.range)


def see_activations(
    work: Workload, tensors: Sequence[str], drawn: Draw, progress: Progress = silent
) -> Mapping[str, Histogram]:
    """The values of some tensors over the samples drawn."""
    if not tensors:
        return {}
    digests, size = work.cache.digests, batch_size(work.layers)
    return work.cache.of(
        kept_histograms(tensors),
        lambda: [digests.model(work.model), tensors, digests.samples(work.samples, drawn.indices), size],
        lambda: collect_histograms(work.model, tensors, work.samples, drawn, size, progress, work.engine),
    )


def grids_for(
    work: Workload, histograms: Mapping[str, Histogram], widths: Mapping[str, int], criterion: str
) -> Mapping[str, ActivationGrid]:
    """Grids of these widths for tensors with these values; `criterion` is one of `RANGES`."""
    rules = work.target.activation
    grids = {
        name: choose_grid(histogram, widths[name], criterion, rules, find_response(work.model, name))
        for name, histogram in histograms.items()
    }
    for group in work.placement.alike:
        grids |= _joined({name: grids[name] for name in sorted(group) if name in grids}, work, rules)
    return grids


def _joined(grids: Mapping[str, ActivationGrid], work: Workload, rules: ActivationRules) -> dict[str, ActivationGrid]:
    """One grid for tensors that are to be alike.

    Where it reaches below 0, those behind a Relu stay out: their lowest code stands for the Relu, so it has to be 0.
    The runtime then converts them.
    """
    if not grids:
        return {}
    shared = join_grids(list(grids.values()), rules)
    cut = grids.keys() & work.placement.saturated
    if rules.symmetric or not cut or shared.zero_point == shared.bottom:
        return dict.fromkeys(grids, shared)
    others = {name: grid for name, grid in grids.items() if name not in cut}
    return dict.fromkeys(others, join_grids(list(others.values()), rules)) if others else {}
