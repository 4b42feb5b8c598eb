"""Training once the plan is fixed: weights, scales, biases and coarse activation grids get better.

It is the third step of CBQ (Sun et al., DATE 2023, arXiv 2211.14928), and works behind any method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx_cbq.calibration.draw import MOST_HELD, draw
from onnx_cbq.methods import Learning, Method
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, grids_of, make_solution
from onnx_cbq.training.records import Course, Quantized, Rate, Task
from onnx_cbq.training.settings import RefineConfig


@dataclass(frozen=True)
class Refinement:
    """What a training is set by.

    Attributes:
        config: the settings.
    """

    config: RefineConfig

    @property
    def learning(self) -> Learning:
        """From all samples of the card."""
        return Learning(self.config.augment, self.config.alpha)


def refine(
    scene: Scene, method: Method, solution: Solution, refinement: Refinement, room: int = 0
) -> tuple[Scene, Solution, tuple[str, ...]]:
    """Train what a solution rounded, on all samples of the card; a tenth of them decides what is kept.

    Codes of an archive may take `room` bytes more than before. Returns the scene with the activation grids as they are
    now, the solution, and what a user should know.

    Raises:
        ConfigError: torch is not installed.
        OnnxCbqError: an operator cannot be trained.
    """
    # Only here, so that everything else works without torch.
    from onnx_cbq.training.run import run_training  # noqa: PLC0415

    config, work, seed = refinement.config, scene.work, scene.settings.samples.seed
    learned, held = draw(work.samples, work.class_names, None, seed).split(config.held_back, MOST_HELD)
    task = Task(
        work=work,
        learned=learned.indices,
        held=held.indices,
        class_weights=scene.class_weights,
        groups=scene.evidence.groups,
        seed=seed,
    )
    start = quantized_by(scene, solution, method.coded_rate(scene, solution, room))
    found, course = run_training(task, start, config, scene.progress)
    if course.best_update:
        scene = replace(scene, grids=found.grids)
        rounded = replace(found.rounded, grids={})
        solution = make_solution(scene, replace(solution.chosen, rounded=rounded))
    return scene, solution, (_note(course, config),)


def quantized_by(scene: Scene, solution: Solution, rate: Rate | None = None) -> Quantized:
    """What a solution has as integers, which may be coded at a rate."""
    return Quantized(solution.rounded, grids_of(scene, solution.rounded), scene.int32_biases, rate)


def _note(course: Course, config: RefineConfig) -> str:
    """What training did, in a line."""
    why = {"updates": "all", "time": f"until {config.minutes:g} minutes were over,", "Ctrl-C": "until Ctrl-C,"}
    spent = f"--refine: {why[course.stopped]} {course.updates} updates in {course.seconds:.0f} s"
    changed = f" and changed by {', '.join(config.augment)}" if config.augment else ""
    held = f"the samples held back{changed}"
    before = f"{course.start.loss:.4f}, {course.start.top1:.2f} %"
    if not course.best_update:
        return f"{spent}; nothing was better on {held} ({before}) than the start, which is kept"
    after = f"{course.best.loss:.4f}, {course.best.top1:.2f} %"
    return f"{spent}; loss and accuracy on {held}: {before} before, {after} kept (update {course.best_update})"
