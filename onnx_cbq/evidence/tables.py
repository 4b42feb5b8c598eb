"""Every layer at every width, by the moments of what it reads in the float model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from onnx_cbq.calibration.draw import Draw
from onnx_cbq.evidence.kept import kept_tables
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.statistics import Run, collect_moments
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.quantize.moments import Moments, part_slices
from onnx_cbq.quantize.patches import has_rows
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.quantize.table import Table, make_table
from onnx_cbq.records import Layer, Layers
from onnx_cbq.system.progress import Progress, silent

# Moments that are held at once.
MOMENT_BYTES = 512 << 20


def run_of(work: Workload, drawn: Draw, config: RoundingConfig, class_weights: Array) -> Run:
    """The samples drawn, in batches that fit, for moments."""
    return Run(work.samples, drawn.indices, batch_size(work.layers), config, class_weights)


def make_tables(work: Workload, run: Run, config: RoundingConfig, progress: Progress = silent) -> dict[str, Table]:
    """Every layer at every width, by the moments of the float model; as many layers at once as `MOMENT_BYTES` allow."""
    tables: dict[str, Table] = {}

    def make(chunk: Sequence[Layer]) -> Mapping[str, Table]:
        moments = collect_moments(work.model, None, chunk, run, work.engine)
        made: dict[str, Table] = {}
        for layer in chunk:
            rows = layer.rows(work.model.weight(layer.weight))
            made[layer.name] = make_table(rows, moments[layer.name], config, layer)
            progress("tables", len(tables) + len(made), len(work.layers))
        return made

    for chunk in _chunks(work.layers):
        found: Mapping[str, Table] = work.cache.of(
            kept_tables(chunk), partial(table_parts, work, run, chunk), partial(make, chunk)
        )
        tables |= found
    return tables


def table_parts(work: Workload, run: Run, layers: Sequence[Layer]) -> list[object]:
    """What tables of some layers depend on; which layers are run together decides the last digits, too."""
    digests = work.cache.digests
    drawn = digests.samples(run.samples, run.indices)
    return [digests.model(work.model), list(layers), drawn, run.size, run.config, run.class_weights]


def chunks_of_moments(work: Workload, run: Run) -> Iterator[Mapping[str, Moments]]:
    """The moments of the float model by layer, as many layers at once as `MOMENT_BYTES` allow."""
    for chunk in _chunks(work.layers):
        yield collect_moments(work.model, None, chunk, run, work.engine)


def _chunks(layers: Layers) -> Iterator[Sequence[Layer]]:
    """As many layers at once as `MOMENT_BYTES` allow."""
    pending = list(layers)
    while pending:
        sizes = np.cumsum([_moment_bytes(layer) for layer in pending])
        count = max(int(np.searchsorted(sizes, MOMENT_BYTES, side="right")), 1)
        yield pending[:count]
        pending = pending[count:]


def _moment_bytes(layer: Layer) -> int:
    groups = layer.groups if has_rows(layer) else 1
    first, *others = ((s.stop - s.start) ** 2 for s in part_slices(layer.weights_per_channel))
    # The first part has moments of the samples held back beside it, and rows that wait, of float32.
    return int(8 * groups * (2 * first + sum(others)) + 4 * layer.weights_per_channel * first**0.5 * groups)
