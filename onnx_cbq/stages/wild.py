"""Leave samples out of the calibration that would decide everything by themselves; see `quantize.wild`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.cache import Kept
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tensors import Sizes, collect_sizes
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.quantize.wild import wild
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.system.store import Entry

# So many are named.
_NAMED = 3
# Samples are compared with so many at most, from everywhere, so that memory has a bound.
_TOGETHER = 1 << 15


def without_wild(work: Workload, indices: Indices, progress: Progress = silent) -> Workload:
    """`work` with the wild ones among the samples `indices` set aside, and a note that names them.

    They are looked for in what layers read. Models are still evaluated on them. Cost: a forward pass.

    Raises:
        ModelError: what a layer reads is not finite.
    """
    digests, size = work.cache.digests, batch_size(work.layers)
    worst = work.cache.of(
        _KEPT,
        lambda: [digests.model(work.model), work.layers.products, digests.samples(work.samples, indices), size],
        lambda: _worst(work, indices, size, progress),
    )
    if not worst:
        return work
    found = sorted(worst.items(), key=lambda entry: -entry[1][0])
    describe = work.samples.data.source.describe
    named = [
        f"{describe(int(indices[position]))} ({times:,.4g} times as large as usual in {name!r})"
        for position, (times, name) in found[:_NAMED]
    ]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    aside = frozenset(int(indices[position]) for position in worst)
    samples = replace(work.samples, set_aside=work.samples.set_aside | aside)
    note = f"left out of the calibration, because they outweigh all other samples: {', '.join(named)}{more}"
    return replace(work, samples=samples, notes=(*work.notes, note))


def _worst(work: Workload, indices: Indices, size: int, progress: Progress) -> dict[int, tuple[float, str]]:
    """The wild samples by position: how many times as large as usual, and in which tensor."""
    worst: dict[int, tuple[float, str]] = {}
    blocks = -(-len(indices) // _TOGETHER)
    for first in range(blocks):
        block = indices[first::blocks]
        tell = partial(_tell, progress, first * _TOGETHER, len(indices))
        sizes = collect_sizes(work.model, work.layers, work.samples, block, size, tell, work.engine)
        worst |= {first + blocks * place: why for place, why in _worst_of(sizes).items()}
    return worst


def _tell(progress: Progress, before: int, total: int, what: str, done: int, _of: int) -> None:
    progress(what, min(before + done, total), total)


def _worst_of(sizes: Mapping[str, Sizes]) -> dict[int, tuple[float, str]]:
    """The same of some samples."""
    worst: dict[int, tuple[float, str]] = {}
    for name, size in sizes.items():
        usual = float(np.median(size.peaks))
        for position in wild(size.energies).tolist():
            times = float(size.peaks[position]) / max(usual, float(np.finfo(np.float32).tiny))
            worst[position] = max(worst.get(position, (0.0, "")), (times, name))
    return worst


def _pack(worst: Mapping[int, tuple[float, str]]) -> Entry:
    return Entry(facts={"worst": [[position, *why] for position, why in worst.items()]})


def _unpack(entry: Entry) -> dict[int, tuple[float, str]]:
    return {int(position): (float(times), str(name)) for position, times, name in entry.facts["worst"]}


_KEPT = Kept("wild samples", 1, _pack, _unpack)
