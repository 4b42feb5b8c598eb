"""From a solution to a file that is proved: written, held against what it was made from and what it is for, and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_cbq.calibration.draw import Draw, everything
from onnx_cbq.errors import VerificationError
from onnx_cbq.evidence import Evidence
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.execution import ModelFile
from onnx_cbq.graph.load import load
from onnx_cbq.methods import Method
from onnx_cbq.model import Model
from onnx_cbq.records import Grouping, Layer, LayerWeights
from onnx_cbq.records.lanes import lanes
from onnx_cbq.runtime import Feeds, Session
from onnx_cbq.stages.activations import choose_grids
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.scene import Scene, SceneSettings
from onnx_cbq.stages.solution import Chosen, Solution, emit_solution, make_solution
from onnx_cbq.stages.written import write_solution
from onnx_cbq.storage import Dump, Int8
from onnx_cbq.storage.files import compressed_size, write_model
from onnx_cbq.system.processor import architecture, processor_kind
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.targets.lint import Violation, lint
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.targets.target import Target
from onnx_cbq.verification.comparison import Comparison, Fidelity, compare
from onnx_cbq.verification.kernels import Deviation, check_kernels, deviations
from onnx_cbq.verification.saturation import saturates
from onnx_cbq.verification.verify import check_equal, check_file, check_sizes

# Samples that the whole path is tried on, and that kernels are looked at on.
_TRIED, _LOOKED_AT = 3, 16
_LOOKED_AT_BYTES = 4 << 20
# Batches whose kernels are looked at where predictions differ.
_BATCHES_AGAIN = 4
# The width of the trial: its codes, up to 63, fit everywhere.
_TRIAL_BITS = 7
# A latency this many times that of the float model is slower.
_SLOWER = 1.05


@dataclass(frozen=True)
class Sizes:
    """Bytes of a quantized model.

    Attributes:
        ideal: what the weights' bits alone would take.
        file: the file.
        zstd: the file once compressed with zstandard.
        archive: the archive of it, and `coded_bits` what a weight takes there; None where none was asked for.
    """

    ideal: int
    file: int
    zstd: int
    archive: int | None = None
    coded_bits: float | None = None


@dataclass(frozen=True)
class Proof:
    """What was found out about a file.

    Attributes:
        model: as it is written.
        comparison: evaluations of the float model and of the file on all samples of the card.
        sizes: in bytes.
        dump: what is saved.
        notes: what a user should know.
    """

    model: Model
    comparison: Comparison
    sizes: Sizes
    dump: Dump
    notes: tuple[str, ...]


def attempt(work: Workload, method: Method, settings: SceneSettings, *, run_check: bool = True) -> None:
    """Go the whole way once with a handful of samples and weights rounded without care, before the long stages.

    Cost: a few runs, and a pass over the weights.

    Raises:
        VerificationError: what would be written cannot be loaded, or is not what it should be; or this processor
            cannot run what is for the target.
    """
    integers = max(settings.activations.widths) * bool(work.placement.measured)
    meets = lanes((2,), (1 << integers) - 1) is not None
    if run_check and work.target.needs == "vnni" and meets and saturates():
        raise VerificationError(
            f"--target {work.target.name}: the integer kernels of this processor ({processor_kind()}) saturate, so the "
            f"file cannot be run here as it will run there; use --target cpu, or say --no-run-check"
        )
    indices = np.arange(min(_TRIED, len(work.samples.labels)))
    few, ones = Draw((indices,)), np.ones(len(work.class_names))
    grids = choose_grids(work, work.placement.measured, few, settings.activations)
    scene = Scene(work, settings, few, ones, Evidence(work, few, few, ones, Grouping.single(work.class_names)), grids)
    weights = {layer.name: method.trial_weights(_trial_weights(layer, work.model)) for layer in work.layers}
    solution = make_solution(scene, Chosen(Rounded(weights, {}, ())))
    with temporary_folder() as folder:
        path = folder / "trial.onnx"
        write_model(write_solution(scene, method.label, solution), path)
        check_written(scene, solution, path, work.example.feeds, run_check=run_check)


def prove(scene: Scene, solution: Solution, output: Model, *, run_check: bool = True) -> Proof:
    """Check the file that the model becomes, and run it beside the float model on all samples of the card.

    Raises:
        VerificationError: it failed.
    """
    work, storage = scene.work, scene.settings.storage
    with temporary_folder() as folder:
        path = folder / "quantized.onnx"
        size = write_model(output, path)
        slow = check_written(scene, solution, path, _some_samples(work), run_check=run_check)
        plain_bytes = Int8()
        if storage != plain_bytes:
            check_equal(path, emit_solution(scene, solution, plain_bytes), work.example.feeds)
        ideal = math.ceil(solution.plan.average_bits(work.layers) * work.layers.size / 8)
        dump = storage.dump(output, path)
        coded = None if dump.code_bytes is None else 8 * dump.code_bytes / work.layers.size
        sizes = Sizes(ideal, size, compressed_size(path), dump.archive_bytes, coded)
        plain = ModelFile(path, float_weights=True)
        comparison = compare(
            [work.source, ModelFile(path) if run_check else plain],
            [work.source_bytes, size],
            (work.logits, work.samples, everything(work.samples, work.class_names)),
            plain if run_check else None,
            scene.progress,
            work.engine,
        )
        unlike = () if comparison.fidelity is None else _unlike(comparison.fidelity, path, work)
    notes = (*_notes(scene, comparison, sizes, run_check=run_check), *_slower_there(slow, work.target), *unlike)
    return Proof(output, comparison, sizes, dump, notes)


def check_written(
    scene: Scene, solution: Solution, path: Path, feeds: Feeds, *, run_check: bool = True
) -> list[Violation]:
    """Hold a written file against the solution, against its target, and its kernels against what it says.

    Returns what the target runs, but slowly, and what it found wrong in layers that stay as they came.

    Raises:
        VerificationError: something does not hold.
    """
    work = scene.work
    check_file(path, work.model, solution.written.layers, solution.written.weights, work.example.feeds)
    if not work.target.file.sizes:
        check_sizes(path, work.model, work.example.at_another_size(work.model))
    file = QdqFile(load(path))
    found = lint(file, work.target, Run(file, path))
    as_it_came = _kept_findings(work)
    broken = [one for one in found if one.effect != "slow" and _without_names(one) not in as_it_came]
    if broken:
        raise VerificationError(
            f"the file is not fit for --target {work.target.name}: {broken[0]}; give another --target, or report it"
        )
    if run_check:
        check_kernels(path, _cut(path, feeds))
    return [violation for violation in found if violation not in broken]


def _kept_findings(work: Workload) -> set[tuple[str, str, str]]:
    """What the target finds in layers that were quantized when they came, and stay so."""
    if not work.layers.kept:
        return set()
    file = QdqFile(work.model)
    with temporary_folder() as folder:
        path = folder / "as-it-came.onnx"
        write_model(work.model, path)
        return {_without_names(violation) for violation in lint(file, work.target, Run(file, path))}


def _without_names(violation: Violation) -> tuple[str, str, str]:
    """Names are others where a file was shortened."""
    return violation.finding.fact, violation.finding.expected, violation.finding.found


def _cut(path: Path, feeds: Feeds) -> Feeds:
    """As many samples as the file takes at a time."""
    return Session(path).fitting(feeds)


def _unlike(found: Fidelity, path: Path, work: Workload) -> tuple[str, ...]:
    """A note where the optimized graph and the plain one predict differently, though every kernel is right.

    A net may enlarge what rounding leaves of a number near the middle of two codes until predictions differ; then each
    layer still computes, from the codes in front of it, all but a few of the codes that the file says.

    Cost: nothing where predictions are alike; else a few runs of each graph.

    Raises:
        VerificationError: one is better than the other, or a layer is off by more than rounding explains.
    """
    if found.is_small and found.is_even:
        return ()
    differ = (
        f"the optimized graph and the plain one predict different classes for {found.differing} of {found.samples} "
        f"samples ({found.share:.2f} %; {found.gained} and {found.lost} of them rightly)"
    )
    off = _off_by_rounding(path, work)
    first = next((one for one in off if not one.is_rounding), None)
    if first is not None or not found.is_even:
        shown = first or next(iter(off), None)
        where = "" if shown is None else f"; the first layer that deviates, {shown}"
        raise VerificationError(
            f"{differ}, which rounding does not explain{where}; give another --target, or report it as a bug"
        )
    note = (
        f"{differ}, though each layer by itself is right: the model enlarges the last digit of what it computes, so "
        f"predictions will differ between processors as well"
    )
    return (note,)


def _off_by_rounding(path: Path, work: Workload) -> list[Deviation]:
    """Every deviation of codes, on several batches from all over the card."""
    model, feeds, step = load(path), _some_samples(work, _BATCHES_AGAIN), _fitting(work)
    count = len(next(iter(feeds.values())))
    parts = [{name: value[i : i + step] for name, value in feeds.items()} for i in range(0, count, step)]
    return [one for part in parts for one in deviations(model, _cut(path, part), most=0)]


def _some_samples(work: Workload, batches: int = 1) -> Feeds:
    """Samples from all over the card, in batches of as many as fit."""
    total, step = len(work.samples.labels), _fitting(work)
    count = step * batches if work.samples.fixed_batch else min(step * batches, total)
    return work.samples.read(np.linspace(0, total - 1, count).astype(np.int64))


def _fitting(work: Workload) -> int:
    """How many samples are looked at at once."""
    one = work.samples.read([0])
    fit = max(_LOOKED_AT_BYTES // max(sum(value.nbytes for value in one.values()), 1), 1)
    return work.samples.fixed_batch or min(fit, _LOOKED_AT)


def _trial_weights(layer: Layer, model: Model) -> LayerWeights:
    """A layer's weights on the nearest codes of 7 bits, the largest of each channel on the last."""
    rows, largest = layer.rows(model.weight(layer.weight)), (1 << (_TRIAL_BITS - 1)) - 1
    reach = np.abs(rows).max(axis=1) / largest
    reach = np.full_like(reach, reach.max()) if layer.rules.per_tensor else reach
    scale = np.maximum(reach, np.finfo(np.float32).tiny).astype(np.float32)
    scale = np.exp2(np.ceil(np.log2(scale))) if layer.rules.power_of_two else scale
    codes = layer.unrows(np.clip(np.rint(rows / scale[:, None]), -largest, largest).astype(np.int8))
    bits = np.full(layer.channels, _TRIAL_BITS, np.int8)
    return LayerWeights(codes, scale, bits)


def _slower_there(found: Sequence[Violation], target: Target) -> tuple[str, ...]:
    """What the target computes in float, or elsewhere, though the file has integers; and wrong in layers kept."""
    slow, kept = ([one for one in found if (one.effect == "slow") == is_slow] for is_slow in (True, False))
    texts = (
        (slow, "runs a part of the file in float or elsewhere"),
        (kept, "is not what the layers that stay as they are were made for"),
    )
    return tuple(
        f"{target.name} {text}: {some[0]}{f' and {len(some) - 1} more' if some[1:] else ''}; check lists them"
        for some, text in texts
        if some
    )


def _notes(scene: Scene, comparison: Comparison, sizes: Sizes, *, run_check: bool) -> tuple[str, ...]:
    """What a user should know of the file: where it is no better than the float model, and what stayed float."""
    before, after = comparison.evaluations
    notes = []
    smallest = sizes.file if sizes.archive is None else sizes.archive
    if smallest >= before.bytes:
        notes.append(f"the file is not smaller than the float model: {smallest:,} bytes, float {before.bytes:,}")
    target = scene.work.target
    if architecture() not in target.machines:
        notes.append(f"accuracy and latency are those of onnxruntime's CPU provider here, not of {target.what}")
    elif run_check and after.latency_ms > _SLOWER * before.latency_ms:
        ratio = after.latency_ms / before.latency_ms
        notes.append(
            f"slower than the float model on this processor ({processor_kind()}): {ratio:.2f} times its latency"
        )
    folds = scene.settings.storage.folds
    if not scene.grids and not folds and comparison.plain_latency_ms is not None:
        notes.append(
            f"weights only: onnxruntime makes them float on every run; with the session option "
            f"session.disable_quant_qdq=1 it does so once: {comparison.plain_latency_ms:.3f} ms here; "
            f"--storage packed needs no option"
        )
    if not run_check:
        notes.append(
            "--no-run-check: accuracy and latency are those of the plain graph in float; integer kernels were not run"
        )
    return tuple(notes)
