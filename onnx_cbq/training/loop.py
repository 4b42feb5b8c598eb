"""The training itself: distillation from the float net, stopped by updates or time, never worse than it began."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.learned.pace import by_time, rate_at
from onnx_cbq.records import Grouping
from onnx_cbq.records.answers import IGNORED, Kind
from onnx_cbq.system import stopping
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.torch_graph.fusing import say_plain
from onnx_cbq.training.batches import Batches, TrainingBatch
from onnx_cbq.training.checkpoint import Checkpoint
from onnx_cbq.training.coded import REFRESH, Charge
from onnx_cbq.training.records import Course, Held, Schedule
from onnx_cbq.training.student import Pupil, Student, divergence, independent_divergences

_LOG = logging.getLogger("onnx_cbq")
# Looks at the samples held back, evenly spread: long trainings would spend a tenth of their time on them.
_MOST_LOOKS = 50

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
        """The mean loss beside what is taught [samples, ...], and what the student answers."""

    def judged(self, found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the answers count, and whether they are right, 0 to 1; both of one shape."""

    def advance(self, share: float) -> None:
        """Told before every update how much of the training is over."""


@dataclass(frozen=True)
class Objective:
    """(1 - alpha) KL(float || quantized) + alpha cross-entropy, a sample counting as its class does.

    Positions that have labels of their own count like samples, several classes of a sample each by itself. The distance
    of further outputs (see `Lesson`) is added.
    """

    alpha: float
    class_weights: Tensor
    groups: Grouping
    charge: Charge | None = None
    kind: Kind | None = None

    def __call__(self, student: Student, batch: TrainingBatch, taught: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, and what is learned of the student."""
        found = student(batch.feeds)
        return self.loss(taught, found, batch.labels), found

    def loss(self, taught: Tensor, found: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of what a net gives, laid out as by `Lesson`, beside what the float net does."""
        (teacher, before), (student, after) = (self._split(values, labels) for values in (taught, found))
        each = (1 - self.alpha) * self._divergences(teacher, student)
        if self.alpha:
            each = each + self.alpha * self._cross_entropies(student, labels)
        weights = self._weights(labels, each)
        # Where a sample has several classes their losses add up.
        several = each.shape[-1] if self._several else 1
        return (
            several * (weights * each).sum() / weights.sum().clamp_min(1e-12)
            + (after - before).square().sum(dim=1).mean()
        )

    def judged(self, found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What answers count, and which of them are right."""
        scores, _ = self._split(found, labels)
        if self._several:
            right = (scores[:, 0] > 0) == (labels > 0)
        else:
            right = scores.argmax(dim=-1) == labels.reshape(scores.shape[:2])
        return self._weights(labels, right), right.float()

    def advance(self, share: float) -> None:
        """It stays the same."""

    @property
    def _several(self) -> bool:
        return self.kind is not None and self.kind.several

    def _split(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [samples, positions, classes], and the elements of further outputs."""
        classes = len(self.class_weights)
        end = classes if self._several else classes * (labels.numel() // len(labels))
        return values[:, :end].reshape(len(values), -1, classes), values[:, end:]

    def _divergences(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[samples, positions], or [samples, classes] where a sample has several."""
        if self.kind is None or not self.kind.independent:
            return divergence(teacher, student, self.groups)
        found = independent_divergences(teacher, student)
        return found[:, 0] if self.kind.several else found.sum(dim=-1)

    def _cross_entropies(self, student: Tensor, labels: Tensor) -> Tensor:
        """Likewise; 0 for positions that do not count."""
        if self._several:
            return functional.binary_cross_entropy_with_logits(student[:, 0], labels.float(), reduction="none")
        flat = labels.reshape(student.shape[:2])
        if self.kind is not None and self.kind.independent:
            truth = functional.one_hot(flat.clamp_min(0), student.shape[-1]).to(student.dtype)
            return functional.binary_cross_entropy_with_logits(student, truth, reduction="none").sum(dim=-1)
        return functional.cross_entropy(
            student.flatten(0, 1), flat.flatten(), reduction="none", ignore_index=IGNORED
        ).reshape(flat.shape)

    def _weights(self, labels: Tensor, each: Tensor) -> Tensor:
        """What the entries of `each` count."""
        if self._several:
            return self.class_weights.expand(each.shape)
        flat = labels.reshape(each.shape)
        return self.class_weights[flat.clamp_min(0)] * (flat >= 0)


def train(
    student: Net,
    optimizer: torch.optim.Adam,
    batches: tuple[Batches, Batches],
    objective: Goal[Net],
    schedule: Schedule,
    checkpoint: Checkpoint[Course] | None = None,
    progress: Progress = silent,
) -> Course:
    """Train until the updates or the minutes are over; the student is left as it was best on the held-back samples.

    Args:
        student: is trained in place.
        optimizer: of its parameters, with the rates to start from.
        batches: to learn from, and held back.
        objective: what is lowered.
        schedule: how long, and in which order.
        checkpoint: where the state is kept, and taken up from if it is there; a training that was over is found there.
        progress: told of every update.

    Cost per update: a pass forward of the float net for every view (for subnets that imitate it, one more), one forward
    and one backward of the net that learns.
    """
    if checkpoint is not None and (over := checkpoint.result(student)) is not None:
        return over
    learned, held = batches
    answers = _expected(student, held)
    course, best = _resumed(student, optimizer, schedule, checkpoint) or _begin(
        student, evaluate(student, held, answers, objective), objective
    )
    rates = [group["lr"] * schedule.rise(course.start.loss) for group in optimizer.param_groups]
    shown = 0.0
    with stopping.going_on() as interruption:
        compile_updates(student, objective, learned.endless(schedule.seed))
        begun = time.monotonic() - course.seconds
        for batch in _until(course, schedule, learned.endless(schedule.seed, course.updates), begun):
            share = _share(course, schedule, begun)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate_at(rate, course.updates, share)
            objective.advance(share)
            if objective.charge is not None and course.updates % REFRESH == 0:
                objective.charge.follow()
            loss = update(student, optimizer, objective, batch)
            course.updates, course.seconds = course.updates + 1, time.monotonic() - begun
            shown = loss if course.updates == 1 else 0.98 * shown + 0.02 * loss
            told = f"{schedule.title}, loss {shown:.4f}, held back {course.best.top1:.2f} %"
            # Fewer than the most, where time runs out first.
            whole = round((course.updates - 1) / share) if share else schedule.updates
            progress(told, course.updates, max(whole, course.updates))
            if course.updates % schedule.check_every == 0:
                if _is_due(course, _share(course, schedule, begun)):
                    best = _keep_better(student, evaluate(student, held, answers, objective), objective, course, best)
                if checkpoint is not None:
                    checkpoint.save(student, optimizer, course, best)
    if interruption.came:
        course.stopped = "Ctrl-C"
    best = _keep_better(student, evaluate(student, held, answers, objective), objective, course, best)
    student.load_state_dict(best)
    # What was stopped is not over: another run may go on from the last state.
    if checkpoint is not None and not interruption.came:
        checkpoint.finish(best, course)
    return course


def _resumed(
    student: Net, optimizer: torch.optim.Adam, schedule: Schedule, checkpoint: Checkpoint[Course] | None
) -> tuple[Course, dict[str, Tensor]] | None:
    """The course of a training that was killed, and its best state so far."""
    known = None if checkpoint is None else checkpoint.load(student, optimizer)
    if known is not None:
        _LOG.info("%s: goes on after %d updates", schedule.title, known[0].updates)
    return known


def _begin(student: Net, start: Held, objective: Goal[Net]) -> tuple[Course, dict[str, Tensor]]:
    """The course of a training that begins, and the best state so far."""
    if objective.charge is not None:
        objective.charge.start(start.loss)
    return Course(start, start), copy.deepcopy(student.state_dict())


def compile_updates(net: Net, objective: Goal[Net], batches: Iterator[TrainingBatch]) -> None:
    """Compile what updates of a fused net compute, before the time of training begins; where that fails, fuse no more.

    Were it a part of that time, a repeated run would follow the clock where it could follow the updates. Cost: that of
    compiling, some half a minute, and of an update.
    """
    graphs = [graph for graph in net.graphs if graph.fused]
    if not graphs:
        return
    before, batch = copy.deepcopy(net.state_dict()), next(batches)
    net.train()
    try:
        objective(net, batch, batch.taught(net.teach))[0].backward()
    except Exception as error:  # noqa: BLE001, compilers raise anything; if it was not them, an update raises it again
        say_plain(error)
        for graph in graphs:
            graph.unfuse()
    net.zero_grad()
    net.load_state_dict(before)


def update(student: Net, optimizer: torch.optim.Optimizer, objective: Goal[Net], batch: TrainingBatch) -> float:
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
        weights, right = objective.judged(scores, batch.labels)
        loss += float(mean * weights.sum())
        hits += float((weights * right).sum())
        weight += float(weights.sum())
    return Held(loss / weight, 100 * hits / weight)


def _until(
    course: Course, schedule: Schedule, batches: Iterator[TrainingBatch], begun: float
) -> Iterator[TrainingBatch]:
    """Batches until the updates or the minutes are over."""
    for batch in batches:
        if course.updates >= schedule.updates:
            return
        if time.monotonic() - begun >= 60 * schedule.minutes:
            course.stopped = "time"
            return
        yield batch


def _share(course: Course, schedule: Schedule, begun: float) -> float:
    """How much of the training is over: by updates or by time, whichever runs out first."""
    spent = (time.monotonic() - begun) / (60 * schedule.minutes)
    by_updates = course.updates / schedule.updates
    return min(spent if by_time(course.updates, schedule.updates, spent) else by_updates, 1.0)


def _is_due(course: Course, share: float) -> bool:
    """Whether a look is due at a share of the training; tells the course."""
    before, course.looks = course.looks, int(_MOST_LOOKS * share + 1e-9)
    return course.looks > before


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
    course.best, course.best_update = found, course.updates
    return copy.deepcopy(student.state_dict())
