"""How the pieces of evidence become arrays, and what each depends on.

A version is raised with every change of what is computed: in the last digit, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array, vstack

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence.cache import NO_CACHE, Cache, Kept
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.quantize.table import WIDTHS, Table
from onnx_cbq.records import FREE, Grouping, Layer, Layers, LayerScores, Plan, Scores
from onnx_cbq.system.store import Entry

SCORES, SENSITIVITY, TABLES, HISTOGRAMS, PLANS, ALONE = 2, 2, 3, 1, 4, 3
_FOR_CLASSES = ("beta", "saliency", "gradient_square")
_FOR_OUTPUTS = ("further_beta", "further_saliency")
_SPARSE = ("indices", "indptr")


def checked(value: Array, kind: str, shape: tuple[int, ...]) -> Array:
    """An array of this type and shape.

    Raises:
        ValueError: it is another.
    """
    if value.dtype != np.dtype(kind) or value.shape != shape:
        raise ValueError(f"{value.dtype} {value.shape}, expected {kind} {shape}")
    return value


def gradient_parts(work: Workload, train: Draw, groups: Grouping) -> list[object]:
    """What gradients at layer outputs depend on; not what the target demands of weights."""
    layers = [replace(layer, rules=FREE) for layer in work.layers]
    drawn = [work.cache.digests.samples(work.samples, part) for part in train.by_class]
    outputs = work.logits, work.further.counted
    return [work.cache.digests.model(work.model), layers, outputs, drawn, groups, batch_size(work.layers)]


def kept_scores(layers: Layers, groups: Grouping) -> Kept[Scores]:
    """Class scores of these layers and groups."""

    def pack(scores: Scores) -> Entry:
        kinds = (*_FOR_CLASSES, *_FOR_OUTPUTS)
        arrays = {f"{i}/{kind}": getattr(one, kind) for i, one in enumerate(scores.layers) for kind in kinds}
        return Entry(arrays, {"samples": list(scores.samples), "notes": list(scores.notes)})

    def unpack(entry: Entry) -> Scores:
        classes = len(groups.names)
        found = []
        for i, layer in enumerate(layers):
            outputs = len(entry.arrays[f"{i}/{_FOR_OUTPUTS[0]}"])
            sizes = dict.fromkeys(_FOR_CLASSES, classes) | dict.fromkeys(_FOR_OUTPUTS, outputs)
            arrays = {
                kind: checked(entry.arrays[f"{i}/{kind}"], "f8", (size, layer.channels)) for kind, size in sizes.items()
            }
            found.append(LayerScores(layer.name, **arrays))
        samples = tuple(int(count) for count in entry.facts["samples"])
        return Scores(tuple(found), groups.names, samples, tuple(map(str, entry.facts["notes"])))

    return Kept("class scores", SCORES, pack, unpack)


def kept_sensitivity(layers: Layers, groups: Grouping) -> Kept[Mapping[str, Array]]:
    """Mean squared gradients, [groups, channels] for each layer by name."""

    def pack(found: Mapping[str, Array]) -> Entry:
        return Entry({str(i): found[layer.name] for i, layer in enumerate(layers)})

    def unpack(entry: Entry) -> Mapping[str, Array]:
        shapes = {layer.name: (len(groups.names), layer.channels) for layer in layers}
        return {name: checked(entry.arrays[str(i)], "f8", shape) for i, (name, shape) in enumerate(shapes.items())}

    return Kept("sensitivity", SENSITIVITY, pack, unpack)


def kept_tables(layers: Sequence[Layer]) -> Kept[Mapping[str, Table]]:
    """Tables of some layers by name."""

    def pack(tables: Mapping[str, Table]) -> Entry:
        arrays: dict[str, Array] = {}
        for i, layer in enumerate(layers):
            table = tables[layer.name]
            arrays |= {f"{i}/{kind}": getattr(table, kind) for kind in ("codes", "scale", "error", "power")}
            arrays |= {f"{i}/shift/{use}": shift for use, shift in enumerate(table.shifts)}
            if table.shares is not None:
                arrays[f"{i}/shares"] = table.shares
        return Entry(arrays, {"shifts": [len(tables[layer.name].shifts) for layer in layers]})

    def unpack(entry: Entry) -> Mapping[str, Table]:
        tables = {}
        for i, (layer, uses) in enumerate(zip(layers, entry.facts["shifts"], strict=True)):
            by_channel, by_width = (layer.channels,), (WIDTHS, layer.channels)
            shares = entry.arrays.get(f"{i}/shares")
            tables[layer.name] = Table(
                codes=checked(entry.arrays[f"{i}/codes"], "i1", (*by_width, layer.weights_per_channel)),
                scale=checked(entry.arrays[f"{i}/scale"], "f4", by_width),
                error=checked(entry.arrays[f"{i}/error"], "f8", by_width),
                power=checked(entry.arrays[f"{i}/power"], "f8", by_channel),
                shifts=tuple(checked(entry.arrays[f"{i}/shift/{use}"], "f8", by_width) for use in range(uses)),
                shares=None if shares is None else checked(shares, "f8", by_channel),
            )
        return tables

    return Kept("tables", TABLES, pack, unpack)


def kept_histograms(tensors: Sequence[str]) -> Kept[Mapping[str, Histogram]]:
    """Histograms of some tensors by name."""

    def pack(found: Mapping[str, Histogram]) -> Entry:
        each = [found[name] for name in tensors]
        return Entry(
            {
                "counts": np.stack([one.counts for one in each]),
                "exponents": np.array([one.exponent for one in each], np.int64),
                "ends": np.array([(one.low, one.high) for one in each]),
            }
        )

    def unpack(entry: Entry) -> Mapping[str, Histogram]:
        bins = len(Histogram.empty().counts)
        counts = checked(entry.arrays["counts"], "i8", (len(tensors), bins))
        exponents = checked(entry.arrays["exponents"], "i8", (len(tensors),)).tolist()
        ends = checked(entry.arrays["ends"], "f8", (len(tensors), 2)).tolist()
        each = zip(counts, exponents, ends, strict=True)
        return dict(zip(tensors, (Histogram(*one, *both) for *one, both in each), strict=True))

    return Kept("activation histograms", HISTOGRAMS, pack, unpack)


@dataclass(frozen=True)
class Part:
    """What a plan does on one batch, as in `measure.Measured`."""

    answers: Array
    hits: Array
    divergences: csr_array
    further: Array


@dataclass(frozen=True)
class Measurement:
    """What a plan does on the first batches; whether those are all."""

    parts: tuple[Part, ...]
    complete: bool


def _pack_measurement(found: Measurement) -> Entry:
    divergences = vstack([part.divergences for part in found.parts], format="csr")
    arrays = {name: np.stack([getattr(part, name) for part in found.parts]) for name in ("answers", "hits")}
    arrays["further"] = np.concatenate([part.further for part in found.parts])
    arrays["sizes"] = np.array([len(part.further) for part in found.parts], np.int64)
    arrays["values"] = divergences.data
    arrays |= {name: getattr(divergences, name).astype(np.int64) for name in _SPARSE}
    return Entry(arrays, {"complete": found.complete, "classes": divergences.shape[1]})


def _unpack_measurement(entry: Entry) -> Measurement:
    arrays, classes = entry.arrays, int(entry.facts["classes"])
    sizes = arrays["sizes"]
    rows, shape = int(sizes.sum()), (len(sizes), classes)
    count = len(arrays["values"])
    values, further = checked(arrays["values"], "f8", (count,)), checked(arrays["further"], "f8", (rows,))
    ends = checked(arrays["indptr"], "i8", (rows + 1,))
    divergences = csr_array((values, checked(arrays["indices"], "i8", (count,)), ends), (rows, classes))
    divergences.check_format()
    edges = [0, *np.cumsum(sizes).tolist()]
    parts = zip(
        checked(arrays["answers"], "f8", shape),
        checked(arrays["hits"], "f8", shape),
        [divergences[first:last] for first, last in pairwise(edges)],
        np.split(further, edges[1:-1]),
        strict=True,
    )
    return Measurement(tuple(Part(*part) for part in parts), bool(entry.facts["complete"]))


KEPT_PLANS = Kept("plans", PLANS, _pack_measurement, _unpack_measurement)


@dataclass(frozen=True)
class Memory:
    """What plans were measured to do; `base` is the fingerprint of everything but the plan."""

    cache: Cache = NO_CACHE
    base: Callable[[], str] = str

    def find(self, plan: Plan) -> Measurement | None:
        """What is known of a plan."""
        return self.cache.find(KEPT_PLANS, lambda: [self.base(), plan.bits])

    def keep(self, plan: Plan, found: Measurement) -> None:
        """Keep what was measured."""
        self.cache.keep(KEPT_PLANS, lambda: [self.base(), plan.bits], found)


NO_MEMORY = Memory()


def kept_losses(count: int) -> Kept[Array]:
    """The losses of so many plans, float64 [count]."""

    def unpack(entry: Entry) -> Array:
        return checked(entry.arrays["losses"], "f8", (count,))

    return Kept("layers alone", ALONE, lambda losses: Entry({"losses": losses}), unpack)
