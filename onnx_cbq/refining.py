"""Training once the plan is fixed: weights, scales, biases and coarse activation grids get better.

It is the third step of CBQ (Sun et al., DATE 2023, arXiv 2211.14928), and works behind any method.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from onnx_cbq.calibration.samples import draw
from onnx_cbq.config import RefineConfig
from onnx_cbq.emit.archive import coded_bits
from onnx_cbq.errors import OutputError
from onnx_cbq.progress import Progress, silent
from onnx_cbq.solving import Setting, Solution, make_solution, with_room
from onnx_cbq.training import check_torch
from onnx_cbq.training.records import STATE_HEADER, Course, Quantized, Rate, Task


@dataclass(frozen=True)
class State:
    """The file that a training keeps its state in, and whether to go on from it."""

    path: Path
    resume: bool

    def is_ours(self) -> bool:
        """Whether what is at the path is the state of a training, of this run or another."""
        try:
            with zipfile.ZipFile(self.path) as file:
                return f"{STATE_HEADER}.npy" in file.namelist()
        except (OSError, zipfile.BadZipFile):
            return False

    def remove(self) -> None:
        """The result is safe: nobody needs to go on."""
        self.path.unlink(missing_ok=True)


def check_training(state: State | None) -> None:
    """Find out before the work begins whether training is possible.

    Raises:
        ConfigError: torch is not installed.
        OutputError: there is nothing to go on from, or something else in its place.
    """
    check_torch()
    if state is None:
        return
    if state.resume and not state.path.is_file():
        raise OutputError(f"{state.path}: no such file to go on from; leave out --resume to start anew")
    if state.path.exists() and not state.is_ours():
        raise OutputError(
            f"{state.path}: is not the state of a training, whose place it has; move it away, or give another --output"
        )


def refine(
    setting: Setting, solution: Solution, state: State | None = None, progress: Progress = silent, room: int = 0
) -> tuple[Setting, Solution, tuple[str, ...]]:
    """Train what a solution rounded, on all samples of the card; a tenth of them decides what is kept.

    Codes of an archive may take `room` bytes more than before. Returns the setting with the activation grids as they
    are now, the solution, and what a user should know.

    Raises:
        ConfigError: torch is not installed.
        OnnxCbqError: an operator cannot be trained, or the state belongs to another run.
    """
    # Only here, so that everything else works without torch.
    from onnx_cbq.training.run import run_training  # noqa: PLC0415

    config, work = setting.config.refine, setting.work
    assert config is not None
    learned, held = draw(work.samples, work.class_names, None, setting.config.seed).split(config.held_back)
    task = Task(
        work=work,
        learned=learned.indices,
        held=held.indices,
        class_weights=setting.class_weights,
        groups=setting.evidence.groups,
        seed=setting.config.seed,
    )
    if state is not None:
        task = replace(task, state=state.path, key=_key(setting, solution), resume=state.resume)
    start = quantized_by(setting, solution, room)
    found, course = run_training(task, start, config, progress)
    if course.best_step:
        setting = replace(setting, grids=found.grids)
        solution = make_solution(setting, solution.planned, with_room(setting, found.rounded))
    return setting, solution, (_note(course, config),)


def quantized_by(setting: Setting, solution: Solution, room: int = 0) -> Quantized:
    """What a solution has as integers, and may have in an archive that grows by `room` bytes at most."""
    found = {}
    for layer in setting.work.layers:
        for use in layer.uses:
            grid = setting.work.placement.grid_of(use.activation)
            if setting.work.target.file.bias == "int32" and use.bias is not None and grid in setting.grids:
                found[use.bias] = layer.name, grid
    return Quantized(solution.rounded, setting.grids, found, _rate(setting, solution, room))


def _rate(setting: Setting, solution: Solution, room: int) -> Rate | None:
    """What the codes take in an archive, and so many bytes more; None for values that stay as often as they are."""
    config = setting.config
    if config.storage != "archive" or config.shares_values:
        return None
    spent = coded_bits([(w.codes, w.bits) for w in solution.rounded.weights.values()], config.coder)
    return Rate(spent + 8 * room, config.coder)


def _key(setting: Setting, solution: Solution) -> str:
    """A digest of everything that decides what training does."""
    digest = hashlib.sha256(json.dumps(asdict(setting.config), sort_keys=True, default=str).encode())
    for name, weights in solution.rounded.weights.items():
        for part in (name.encode(), weights.codes.tobytes(), weights.scale.tobytes()):
            digest.update(part)
    return digest.hexdigest()


def _note(course: Course, config: RefineConfig) -> str:
    """What training did, in a line."""
    why = {"steps": "all", "time": f"until {config.minutes:g} minutes were over,", "Ctrl-C": "until Ctrl-C,"}
    spent = f"--refine: {why[course.stopped]} {course.steps} steps in {course.seconds:.0f} s"
    changed = f" and changed by {', '.join(config.augment)}" if config.augment else ""
    held = f"the samples held back{changed}"
    before = f"{course.start.loss:.4f}, {course.start.top1:.2f} %"
    if not course.best_step:
        return f"{spent}; nothing was better on {held} ({before}) than the start, which is kept"
    after = f"{course.best.loss:.4f}, {course.best.top1:.2f} %"
    return f"{spent}; loss and accuracy on {held}: {before} before, {after} kept (step {course.best_step})"
