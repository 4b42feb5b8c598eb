"""From a solution to a file that is proved: written, held against what it was made from and what it is for, and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from onnx_cbq.calibration.samples import Draw, everything
from onnx_cbq.comparison import Comparison, Fidelity, compare
from onnx_cbq.config import QuantizeConfig
from onnx_cbq.emit.archive import archive, restore
from onnx_cbq.emit.files import compressed_size, write_model
from onnx_cbq.emit.fixing import fix_sizes
from onnx_cbq.emit.metadata import with_metadata
from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.load import load
from onnx_cbq.kernels import check_kernels, deviations
from onnx_cbq.model import Model
from onnx_cbq.planning import Evidence, Planned
from onnx_cbq.processor import architecture, processor_kind
from onnx_cbq.progress import Progress, silent
from onnx_cbq.records import Grouping, Layer, LayerWeights, Plan
from onnx_cbq.records.lanes import lanes
from onnx_cbq.result import Sizes
from onnx_cbq.rounding import Rounded
from onnx_cbq.runtime import Feeds, Session, saturates
from onnx_cbq.solving import Setting, Solution, choose_grids, emit_solution, make_solution, with_room
from onnx_cbq.targets.lint import Violation, lint
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.targets.target import Target
from onnx_cbq.temporary import temporary_folder
from onnx_cbq.verify import check_equal, check_file, check_sizes
from onnx_cbq.workload import Workload

# Samples that the whole path is tried on, and that kernels are looked at on.
_TRIED, _LOOKED_AT = 3, 16
_LOOKED_AT_BYTES = 4 << 20
# The width of the trial: its codes, up to 63, fit everywhere.
_TRIAL_BITS = 7
# A latency this many times that of the float model is slower.
_SLOWER = 1.05


@dataclass(frozen=True)
class Proof:
    """What was found out about a file.

    Attributes:
        comparison: evaluations of the float model and of the file on all samples of the card.
        sizes: in bytes.
        notes: what a user should know.
    """

    comparison: Comparison
    sizes: Sizes
    notes: tuple[str, ...]


def write_solution(setting: Setting, solution: Solution) -> Model:
    """The model that a solution is written as, with the plan in its metadata."""
    output, config, work = emit_solution(setting, solution), setting.config, setting.work
    if work.target.file.sizes:
        output = fix_sizes(output, work.example)
    method = config.codebook if config.shares_values else config.method
    made_by = method, version("onnx-cbq")
    written, removed = solution.written.layers, solution.removal.removed
    return with_metadata(output, work.layers, solution.plan, made_by, written, removed)


def file_size(setting: Setting, solution: Solution) -> int:
    """Bytes of the file, or the archive, that a solution would become."""
    proto = write_solution(setting, solution).to_proto()
    if setting.config.storage == "archive":
        return len(archive(proto, setting.config.coder).content)
    return len(proto.SerializeToString())


def attempt(work: Workload, config: QuantizeConfig) -> None:
    """Go the whole way once with a handful of samples and weights rounded without care, before the long stages.

    Cost: a few runs, and a pass over the weights.

    Raises:
        VerificationError: what would be written cannot be loaded, or is not what it should be; or this processor
            cannot run what is for the target.
    """
    integers = config.activation_bits * bool(work.placement.measured)
    meets = lanes((2,), (1 << integers) - 1) is not None
    if config.run_check and work.target.needs == "vnni" and meets and saturates():
        raise VerificationError(
            f"--target {work.target.name}: the integer kernels of this processor ({processor_kind()}) saturate, so the "
            f"file cannot be run here as it will run there; use --target cpu, or say --no-run-check"
        )
    indices = np.arange(min(_TRIED, len(work.samples.labels)))
    few, weights = Draw((indices,)), np.ones(len(work.class_names))
    grids = choose_grids(work, work.placement.measured, few, config, silent)
    setting = Setting(work, config, few, weights, Evidence(Grouping.single(work.class_names)), None, grids, None)
    rounded = Rounded({layer.name: _trial_weights(layer, work.model, config) for layer in work.layers}, {}, ())
    plan = Plan({name: found.bits for name, found in rounded.weights.items()})
    solution = make_solution(setting, Planned(plan), with_room(setting, rounded))
    with temporary_folder() as folder:
        path = folder / "trial.onnx"
        write_model(write_solution(setting, solution), path)
        check_written(setting, solution, path, work.example.feeds)


def prove(setting: Setting, solution: Solution, output: Model, progress: Progress) -> Proof:
    """Check the file that the model becomes, and run it beside the float model on all samples of the card.

    Raises:
        VerificationError: it failed.
    """
    work, config = setting.work, setting.config
    with temporary_folder() as folder:
        path = folder / "quantized.onnx"
        size = write_model(output, path)
        slow = check_written(setting, solution, path, _some_samples(work))
        if config.storage != "int8":
            check_equal(path, emit_solution(setting, solution, "int8"), work.example.feeds)
        ideal = math.ceil(solution.plan.average_bits(work.layers) * work.layers.size / 8)
        sizes = Sizes(ideal, size, compressed_size(path))
        if config.storage == "archive":
            sizes = _archive_sizes(sizes, path, setting)
        plain = Session(path, float_weights=True)
        comparison = compare(
            [work.source, path if config.run_check else plain],
            [work.source_bytes, size],
            work.logits,
            work.samples,
            everything(work.samples, work.class_names),
            progress,
            plain if config.run_check else None,
        )
        if comparison.fidelity is not None and not comparison.fidelity.holds():
            raise VerificationError(_unfaithful(comparison.fidelity, path, _some_samples(work)))
    return Proof(comparison, sizes, (*_notes(setting, comparison, sizes), *_slower_there(slow, work.target)))


def check_written(setting: Setting, solution: Solution, path: Path, feeds: Feeds) -> list[Violation]:
    """Hold a written file against the solution, against its target, and its kernels against what it says.

    Returns what the target runs, but slowly.

    Raises:
        VerificationError: something does not hold.
    """
    work = setting.work
    check_file(path, work.model, solution.written.layers, solution.written.weights, work.example.feeds)
    if not work.target.file.sizes:
        check_sizes(path, work.model, work.example.at_another_size(work.model))
    file = QdqFile(load(path))
    found = lint(file, work.target, Run(file, path))
    broken = [violation for violation in found if violation.effect != "slow"]
    if broken:
        raise VerificationError(
            f"the file is not fit for --target {work.target.name}: {broken[0]}; give another --target, or report it"
        )
    if setting.config.run_check:
        check_kernels(path, _cut(path, feeds))
    return [violation for violation in found if violation.effect == "slow"]


def _cut(path: Path, feeds: Feeds) -> Feeds:
    """As many samples as the file takes at a time."""
    return Session(path).fitting(feeds)


def _unfaithful(found: Fidelity, path: Path, feeds: Feeds) -> str:
    """Why the predictions of the fused graph cannot be trusted."""
    first = next(iter(deviations(load(path), _cut(path, feeds), most=0)), None)
    where = "" if first is None else f"; the first layer that deviates, {first}"
    return (
        f"the optimized graph and the plain one predict different classes for {found.differing} of {found.samples} "
        f"samples ({found.share:.2f} %; {found.gained} and {found.lost} of them rightly), which rounding does not "
        f"explain{where}; the model enlarges such differences: give more --activation-bits"
    )


def _archive_sizes(sizes: Sizes, path: Path, setting: Setting) -> Sizes:
    """What the archive takes, once it has been shown to give the same file again."""
    made = archive(path, setting.config.coder)
    if restore(made.content) != path.read_bytes():
        raise VerificationError("the archive does not give the same file again; report this as a bug")
    coded = 8 * made.code_bytes / setting.work.layers.size
    return replace(sizes, archive=len(made.content), coded_bits=coded)


def _some_samples(work: Workload) -> Feeds:
    """Samples from all over the card, as many as fit."""
    one = work.samples.read([0])
    fit = max(_LOOKED_AT_BYTES // max(sum(value.nbytes for value in one.values()), 1), 1)
    count = work.samples.fixed_batch or min(fit, _LOOKED_AT, len(work.samples.labels))
    return work.samples.read(np.linspace(0, len(work.samples.labels) - 1, count).astype(np.int64))


def _trial_weights(layer: Layer, model: Model, config: QuantizeConfig) -> LayerWeights:
    """A layer's weights on the nearest codes of 7 bits, the largest of each channel on the last."""
    rows, largest = layer.rows(model.weight(layer.weight)), (1 << (_TRIAL_BITS - 1)) - 1
    reach = np.abs(rows).max(axis=1) / largest
    reach = np.full_like(reach, reach.max()) if layer.rules.per_tensor else reach
    scale = np.maximum(reach, np.finfo(np.float32).tiny).astype(np.float32)
    scale = np.exp2(np.ceil(np.log2(scale))) if layer.rules.power_of_two else scale
    codes = layer.unrows(np.clip(np.rint(rows / scale[:, None]), -largest, largest).astype(np.int8))
    bits = np.full(layer.channels, _TRIAL_BITS, np.int8)
    table = np.arange(-largest, largest + 1, dtype=np.int8) if config.shares_values else None
    return LayerWeights(codes, scale, bits, table=table)


def _slower_there(found: Sequence[Violation], target: Target) -> tuple[str, ...]:
    """What the target computes in float, or elsewhere, though the file has integers."""
    if not found:
        return ()
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (f"{target.name} runs a part of the file in float or elsewhere: {found[0]}{more}; check lists them",)


def _notes(setting: Setting, comparison: Comparison, sizes: Sizes) -> tuple[str, ...]:
    """What a user should know of the file: where it is no better than the float model, and what stayed float."""
    config = setting.config
    before, after = comparison.evaluations
    notes = []
    smallest = sizes.file if sizes.archive is None else sizes.archive
    if smallest >= before.bytes:
        notes.append(f"the file is not smaller than the float model: {smallest:,} bytes, float {before.bytes:,}")
    target = setting.work.target
    if architecture() not in target.machines:
        notes.append(f"accuracy and latency are those of onnxruntime's CPU provider here, not of {target.what}")
    elif config.run_check and after.latency_ms > _SLOWER * before.latency_ms:
        ratio = after.latency_ms / before.latency_ms
        notes.append(
            f"slower than the float model on this processor ({processor_kind()}): {ratio:.2f} times its latency"
        )
    if not setting.grids and config.storage == "int8" and comparison.plain_latency_ms is not None:
        notes.append(
            f"weights only: onnxruntime makes them float on every run; with the session option "
            f"session.disable_quant_qdq=1 it does so once: {comparison.plain_latency_ms:.3f} ms here; "
            f"--storage packed needs no option"
        )
    if not config.run_check:
        notes.append(
            "--no-run-check: accuracy and latency are those of the plain graph in float; integer kernels were not run"
        )
    return tuple(notes)
