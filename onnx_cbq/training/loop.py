"""The training itself: distillation from the float net, stopped by steps or time, never worse than it began."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq import stopping
from onnx_cbq.progress import Progress, silent
from onnx_cbq.records import Grouping
from onnx_cbq.training.batches import Batches, TrainingBatch
from onnx_cbq.training.checkpoint import Checkpoint
from onnx_cbq.training.coded import REFRESH, Charge
from onnx_cbq.training.records import Course, Held, Schedule
from onnx_cbq.training.student import Pupil, Student, divergence

# The first steps raise the learning rate from nothing.
_WARM_UP = 20

Net = TypeVar("Net", bound=Pupil)
_Read_contra = TypeVar("_Read_contra", bound=Pupil, contravariant=True)


class Goal(Protocol[_Read_contra]):
    """What training lowers; samples count as their classes do in `class_weights`."""

    @property
    def class_weights(self) -> Tensor:
        """[classes]."""

    @property
    def charge(self) -> Charge | None:
        """What bits cost, if weights may take any; states that take too many are not kept."""

    def __call__(self, student: _Read_contra, batch: TrainingBatch, taught: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss beside what is taught [samples, classes], and the class scores [..., samples, classes]."""


@dataclass(frozen=True)
class Objective:
    """(1 - alpha) KL(float || quantized) + alpha cross-entropy, a sample counting as its class does."""

    alpha: float
    class_weights: Tensor
    groups: Grouping
    charge: Charge | None = None

    def __call__(self, student: Student, batch: TrainingBatch, taught: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, and the scores of the student."""
        scores = student(batch.feeds)
        return self.loss(taught, scores, batch.labels), scores

    def loss(self, taught: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of scores [samples, classes] beside those of the float net."""
        each = (1 - self.alpha) * divergence(taught, scores, self.groups)
        if self.alpha:
            each = each + self.alpha * functional.cross_entropy(scores, labels, reduction="none")
        weights = self.class_weights[labels]
        return (weights * each).sum() / weights.sum().clamp_min(1e-12)


def train(
    student: Net,
    optimizer: torch.optim.Adam,
    batches: tuple[Batches, Batches],
    objective: Goal[Net],
    schedule: Schedule,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Course:
    """Train until the steps or the minutes are over; the student is left as it was best on the held-back samples.

    Args:
        student: is trained in place.
        optimizer: of its parameters, with the rates to start from.
        batches: to learn from, and held back.
        objective: what is lowered.
        schedule: how long, and in which order.
        checkpoint: where the state is kept, and taken up from if it is there.
        progress: told of every step.

    Cost per step: a pass forward of the float net for every view, one forward and one backward of the quantized net.
    """
    learned, held = batches
    answers = _expected(student, held)
    start = evaluate(student, held, answers, objective)
    rates = [group["lr"] * schedule.rise(start.loss) for group in optimizer.param_groups]
    if objective.charge is not None:
        objective.charge.start(start.loss)
    course, best = Course(start, start), copy.deepcopy(student.state_dict())
    if checkpoint is not None and checkpoint.resume:
        course, best = checkpoint.load(student, optimizer)
    begun, shown = time.monotonic() - course.seconds, 0.0
    with stopping.going_on() as interruption:
        for batch in _until(course, schedule, learned.endless(schedule.seed, course.steps), begun):
            share = _share(course, schedule, begun)
            warm = min(1.0, (course.steps + 1) / _WARM_UP)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * warm * (1 + math.cos(math.pi * share)) / 2
            if objective.charge is not None and course.steps % REFRESH == 0:
                objective.charge.follow()
            loss = step(student, optimizer, objective, batch)
            course.steps, course.seconds = course.steps + 1, time.monotonic() - begun
            shown = loss if course.steps == 1 else 0.98 * shown + 0.02 * loss
            told = f"{schedule.title}, loss {shown:.4f}, held back {course.best.top1:.2f} %"
            progress(told, course.steps, schedule.steps)
            if course.steps % schedule.check_every == 0:
                best = _keep_better(student, evaluate(student, held, answers, objective), objective, course, best)
                if checkpoint is not None:
                    checkpoint.save(student, optimizer, course, best)
    if interruption.came:
        course.stopped = "Ctrl-C"
    best = _keep_better(student, evaluate(student, held, answers, objective), objective, course, best)
    student.load_state_dict(best)
    return course


def step(student: Net, optimizer: torch.optim.Optimizer, objective: Goal[Net], batch: TrainingBatch) -> float:
    """One update; returns the loss before it, without what bits cost."""
    student.train()
    loss, _ = objective(student, batch, batch.taught(student.teach))
    charged = loss if objective.charge is None else loss + objective.charge()
    optimizer.zero_grad()
    charged.backward()
    optimizer.step()
    return float(loss.detach())


def _expected(student: Pupil, batches: Batches) -> list[Tensor]:
    """What is to be answered to batches in order, in float32: it stays the same however far training is."""
    student.eval()
    return [batch.taught(student.teach) for batch in batches.in_order()]


@torch.no_grad()
def evaluate(student: Net, batches: Batches, answers: Sequence[Tensor], objective: Goal[Net]) -> Held:
    """The net as it will be written, in float32, on samples that it does not learn from; several scores count alike."""
    student.eval()
    loss = hits = weight = 0.0
    for batch, answer in zip(batches.in_order(), answers, strict=True):
        mean, scores = objective(student, batch, answer)
        weights = objective.class_weights[batch.labels]
        loss += float(mean * weights.sum())
        right = (scores.argmax(dim=-1) == batch.labels).float().reshape(-1, len(weights))
        hits += float((weights * right.mean(dim=0)).sum())
        weight += float(weights.sum())
    return Held(loss / weight, 100 * hits / weight)


def _until(
    course: Course, schedule: Schedule, batches: Iterator[TrainingBatch], begun: float
) -> Iterator[TrainingBatch]:
    """Batches until the steps or the minutes are over."""
    for batch in batches:
        if course.steps >= schedule.steps:
            return
        if time.monotonic() - begun >= 60 * schedule.minutes:
            course.stopped = "time"
            return
        yield batch


def _share(course: Course, schedule: Schedule, begun: float) -> float:
    """How much of the training is over: by steps or by time, whichever runs out first."""
    spent = (time.monotonic() - begun) / (60 * schedule.minutes)
    by_steps = course.steps / schedule.steps
    # Time decides only if it would run out first; otherwise a repeated run does the same.
    runs_out = course.steps > _WARM_UP and spent > by_steps
    return min(spent if runs_out else by_steps, 1.0)


def _keep_better(
    student: Net,
    found: Held,
    objective: Goal[Net],
    course: Course,
    best: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The better of the state now and the best so far, if it spends no more bits than it may; tells the course."""
    course.losses.append(found.loss)
    if found.loss >= course.best.loss or not (objective.charge is None or objective.charge.is_met()):
        return best
    course.best, course.best_step = found, course.steps
    return copy.deepcopy(student.state_dict())
