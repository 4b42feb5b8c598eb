"""Grids for activations, from histograms over the samples drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence.kept import kept_histograms
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tensors import collect_histograms
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.responses import find_response
from onnx_cbq.quantize.activations import RANGES, Histogram, choose_grid, join_grids
from onnx_cbq.records import ActivationGrid, ActivationRules
from onnx_cbq.settings import MOST_BITS, check, check_kinds, either
from onnx_cbq.system.progress import Progress, silent


@dataclass(frozen=True)
class ActivationSettings:
    """How activations are quantized.

    Attributes:
        bits: 2 to 8, or 0 to leave them float.
        range: "mse" (least squared error), "percentile" (99.99 % of the values) or "minmax".
    """

    bits: int = MOST_BITS
    range: str = "mse"

    def __post_init__(self) -> None:
        check_kinds(self)
        widths = (0, *range(2, MOST_BITS + 1))
        check(self.bits in widths, "--activation-bits", "2 to 8, or 0 for float", self.bits)
        check(self.range in RANGES, "--activation-range", either(tuple(RANGES)), self.range)


def choose_grids(
    work: Workload, tensors: Sequence[str], drawn: Draw, settings: ActivationSettings, progress: Progress = silent
) -> Mapping[str, ActivationGrid]:
    """Grids for some of the tensors that `work.placement` measures, from the samples drawn."""
    return grids_for(work, see_activations(work, tensors, drawn, progress), settings)


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
    work: Workload, histograms: Mapping[str, Histogram], settings: ActivationSettings
) -> Mapping[str, ActivationGrid]:
    """Grids for tensors with these values."""
    widths, rules = work.widths(settings.bits), work.target.activation
    grids = {
        name: choose_grid(histogram, widths[name], settings.range, rules, find_response(work.model, name))
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
