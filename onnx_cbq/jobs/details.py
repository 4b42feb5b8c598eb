"""What the page of a result shows of each layer: its weights, what it reads, and which classes need its channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnx_cbq.evidence import class_scores, width_tables
from onnx_cbq.model import Array
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.records import ActivationGrid, Evaluation, Layer, LayerScores
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, grids_of

BINS = 48
# Weights of a layer that its histograms are made of, and classes that are named for a channel.
_WEIGHTS, TOP_CLASSES = 200_000, 3


@dataclass(frozen=True)
class Bars:
    """How many numbers lie in each of equal parts between two ends."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class InputDetail:
    """What a layer reads, and the grid that it is rounded to.

    Attributes:
        low, high: the ends of the grid, of `bits`.
        outside: numbers beyond them by more than rounding, in percent.
        seen: the values on the calibration samples.
    """

    tensor: str
    low: float
    high: float
    bits: int
    outside: float
    seen: Bars


@dataclass(frozen=True)
class LayerDetail:
    """A layer as the page shows it.

    Attributes:
        weights: how many; `macs` are the multiplications with them for one sample.
        snr: predicted signal over noise of its output with the chosen widths, in dB; None where it was not estimated.
        before, after: its weights, and what they are rounded to.
        inputs: what it reads, if that is quantized.
        gamma: how many classes need each channel; empty where classes were not scored.
        needed: the classes that need each channel most, at most `TOP_CLASSES`.
        classes: how many channels each class needs: the sum of beta over the channels.
    """

    name: str
    operator: str
    weights: int
    macs: int
    snr: float | None
    before: Bars
    after: Bars
    inputs: tuple[InputDetail, ...]
    gamma: tuple[float, ...] = ()
    needed: tuple[tuple[int, ...], ...] = ()
    classes: tuple[float, ...] = ()

    def to_json(self, bits: Array) -> dict[str, Any]:
        """Everything; `bits` are those of its channels."""
        average = float(bits.mean(dtype=np.float64))
        return {**asdict(self), "channels": len(bits), "average_bits": average}


def describe(scene: Scene, solution: Solution) -> tuple[LayerDetail, ...]:
    """Every layer of a solution. Cost: about 50 ns for each of at most 200,000 weights of a layer."""
    scores = scene.evidence.known(class_scores)
    by_layer = {} if scores is None else scores.by_layer
    return tuple(_describe(scene, solution, layer, by_layer.get(layer.name)) for layer in scene.work.layers)


def _describe(scene: Scene, solution: Solution, layer: Layer, scores: LayerScores | None) -> LayerDetail:
    chosen = solution.rounded.weights[layer.name]
    plain = scene.work.model.weight(layer.weight).reshape(-1)
    step = -(-plain.size // _WEIGHTS)
    before, after = plain[::step], chosen.values(layer).reshape(-1)[::step]
    reach = float(max(np.abs(before).max(initial=0), np.abs(after).max(initial=0))) or 1.0
    grids = grids_of(scene, solution.rounded)
    names = dict.fromkeys(scene.work.placement.grid_of(use.activation) for use in layer.uses)
    inputs = tuple(
        _input(name, grids[name], scene.seen[name])
        for name in names
        if layer.kind == "product" and name in grids and name in scene.seen
    )
    detail = LayerDetail(
        layer.name,
        layer.operator,
        layer.size,
        layer.macs,
        _snr(scene, layer, chosen.bits),
        _bars(before, -reach, reach),
        _bars(after, -reach, reach),
        inputs,
    )
    return detail if scores is None else _with_needs(detail, scores)


def _with_needs(detail: LayerDetail, scores: LayerScores) -> LayerDetail:
    """Gamma, the classes that need each channel most, and how many channels each class needs."""
    top = np.argsort(-scores.beta, axis=0, kind="stable")[:TOP_CLASSES]
    needed = tuple(tuple(int(m) for m in column if scores.beta[m, channel] > 0) for channel, column in enumerate(top.T))
    gamma, classes = (
        tuple(round(float(value), 3) for value in part) for part in (scores.gamma, scores.beta.sum(axis=1))
    )
    return replace(detail, gamma=gamma, needed=needed, classes=classes)


def _snr(scene: Scene, layer: Layer, bits: Array) -> float | None:
    """10 log10(power / error) of the output, as the tables of widths have it."""
    tables: Mapping[str, Any] | None = scene.evidence.known(width_tables)
    if tables is None or layer.name not in tables:
        return None
    table = tables[layer.name]
    shares = np.ones(len(bits)) if table.shares is None else table.shares
    power, error = float(shares @ table.power), float(shares @ table.error[bits, np.arange(len(bits))])
    return 10 * float(np.log10(power / error)) if power > 0 and error > 0 else None


def _bars(values: Array, low: float, high: float) -> Bars:
    counts, _ = np.histogram(values, BINS, (low, high))
    return Bars(low, high, tuple(counts.tolist()))


def _input(tensor: str, grid: ActivationGrid, seen: Histogram) -> InputDetail:
    used = np.flatnonzero(seen.counts)
    # Values at an end lie in a bin whose middle may be beyond it.
    counts, centres = seen.counts[used], np.clip(seen.centres(used), seen.low, seen.high)
    low, high = (float(end) for end in grid.ends)
    beyond = (centres < low - grid.scale / 2) | (centres > high + grid.scale / 2)
    ends = min(low, seen.low, 0.0), max(high, seen.high, 0.0)
    ends = ends if ends[1] > ends[0] else (0.0, 1.0)
    bars, _ = np.histogram(centres, BINS, ends, weights=counts)
    total = max(int(counts.sum()), 1)
    return InputDetail(
        tensor, low, high, grid.bits, 100 * float(counts[beyond].sum()) / total, Bars(*ends, tuple(map(int, bars)))
    )


def confusions(before: Evaluation, after: Evaluation) -> dict[str, list[int]]:
    """What either model takes for something else: class, what it is taken for, and how often by each."""
    wrong = before.confusion + after.confusion > 0
    np.fill_diagonal(wrong, val=False)
    m, taken = np.nonzero(wrong)
    counts = (found.confusion[m, taken].tolist() for found in (before, after))
    return dict(zip(("class", "taken_for", "float", "quantized"), (m.tolist(), taken.tolist(), *counts), strict=True))
