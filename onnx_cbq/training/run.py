"""One training from its task to its result."""

from __future__ import annotations

from dataclasses import replace

import torch

from onnx_cbq.learned.pace import USUAL_LOSS
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.training.checkpoint import Checkpoint
from onnx_cbq.training.lesson import Lesson
from onnx_cbq.training.loop import Objective, train
from onnx_cbq.training.records import Course, Quantized, Schedule, Task
from onnx_cbq.training.settings import RefineConfig
from onnx_cbq.training.setup import Setup
from onnx_cbq.training.student import Student

# Of what training gives, in the last digit too.
VERSION = 3


def run_training(
    task: Task, start: Quantized, config: RefineConfig, progress: Progress = silent
) -> tuple[Quantized, Course]:
    """Train what was quantized; returns the best on the samples held back, which may be the start.

    Raises:
        ConfigError: torch is not installed.
        OnnxCbqError: an operator cannot be trained.
    """
    work = task.work
    setup = Setup.of(config, task.seed)
    learned, held = (
        setup.batches(work.samples, indices, config, config.views) for indices in (task.learned, task.held)
    )
    setup = setup.compiling(config, work.model, work.layers.macs, learned.per_update)
    student = Student(work.model, work.layers, start, Lesson.of(work, task.learned), setup.speed)
    objective = Objective(config.alpha, setup.tensor(task.class_weights), task.groups, student.charge, work.logits.kind)
    checkpoint = Checkpoint(work.cache, "refined weights", VERSION, lambda: _parts(task, start, config, setup), Course)
    optimizer = torch.optim.Adam(student.groups((config.weight_rate, config.rate)), betas=(0.9, 0.999))
    schedule = Schedule(config.updates, config.minutes, config.check_every, task.seed, "refine", USUAL_LOSS)
    course = train(student, optimizer, (learned, held), objective, schedule, checkpoint, progress)
    return (student.quantized() if course.best_update else start), course


def _parts(task: Task, start: Quantized, config: RefineConfig, setup: Setup) -> list[object]:
    """What a training depends on."""
    work, digests, rate = task.work, task.work.cache.digests, start.rate
    coded = None if rate is None else (rate.bits, rate.storage)
    return [
        *(digests.model(work.model), work.layers.layers, work.logits, work.further.counted),
        *(digests.samples(work.samples, indices) for indices in (task.learned, task.held)),
        *(task.class_weights, task.groups, task.seed, config, replace(start, rate=None), coded, setup.parts),
    ]
