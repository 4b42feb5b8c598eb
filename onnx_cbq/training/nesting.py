"""From a net to its nested subnets: units move from subnet to subnet between short trainings, then all are trained."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.evidence.cache import NO_CACHE, Cache
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping
from onnx_cbq.stepping.assignment import move_units
from onnx_cbq.stepping.masks import Nested
from onnx_cbq.stepping.units import Units
from onnx_cbq.stepping.widening import Counterpart
from onnx_cbq.system import stopping
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.training.batches import Batches, TrainingBatch
from onnx_cbq.training.checkpoint import Checkpoint
from onnx_cbq.training.imitation import Imitation
from onnx_cbq.training.importance import importance
from onnx_cbq.training.loop import compile_updates, train, update
from onnx_cbq.training.nested import NestedNet, NestedObjective
from onnx_cbq.training.records import Course, Schedule
from onnx_cbq.training.settings import StepConfig
from onnx_cbq.training.setup import Setup

# Batches that statistics are taken from once all units were moved.
_SETTLING = 20
# Samples that importance is taken from, and what tensors hold; in so many batches, which may be small, at most.
_SEEN, _MOST_BATCHES = 256, 16
# Share of the minutes and of the updates that moving may take, with the training in between.
_MOVING = 1 / 3


# Of what moving and training give, in the last digit too.
VERSION = 4
_LOG = logging.getLogger("onnx_cbq")


@dataclass(frozen=True)
class NestingTask:
    """What nested subnets are made from.

    Attributes:
        units: of the net.
        original: the model that they learn from, which computes the same as the net, perhaps with fewer channels.
        limits: multiplications that each subnet may have, rising.
        samples: `learned` are those to learn from, `held` those that decide what is kept.
        class_names: in the order of the labels.
        counterparts: tensors of the net and those of the original that they began as.
        cache: where the training is kept.
    """

    units: Units
    original: Model
    limits: Sequence[float]
    samples: Samples
    learned: Indices
    held: Indices
    class_names: Sequence[str]
    counterparts: Sequence[Counterpart]
    cache: Cache = NO_CACHE


@dataclass
class Moves:
    """How far the moving of units came.

    Attributes:
        rounds: done.
        batches: drawn to learn from between them; `updates` were made.
        seconds: spent, those before a resumption included.
    """

    rounds: int = 0
    batches: int = 0
    updates: int = 0
    seconds: float = 0.0


def run_nesting(task: NestingTask, config: StepConfig, progress: Progress = silent) -> tuple[Nested, Course]:
    """Give every unit to a subnet, and train; returns the best state on the samples held back.

    Ctrl-C ends training; units that are not moved yet then are, without training between.

    Raises:
        ConfigError: torch is not installed.
        OnnxCbqError: an operator cannot be trained, or a subnet cannot be made small enough.
    """
    setup = Setup.of(config, config.seed)
    learned, held = (
        setup.batches(task.samples, indices, config, config.views) for indices in (task.learned, task.held)
    )
    setup = setup.compiling(config, task.units.model, task.units.macs, learned.per_update)
    first = list(islice(learned.endless(config.seed), _batches_of(_SEEN, learned)))
    net = NestedNet(task.units, task.original, len(config.macs), config.beta, first[0].feeds, setup.speed)
    even = setup.tensor(np.ones(len(task.class_names)))
    originals = tuple(one.original for one in task.counterparts)
    net.eval()
    shown = (net.shown(batch.feeds, originals) for batch in first)
    imitation = Imitation(task.units, task.counterparts, config.macs, config.beta, shown)
    objective = NestedObjective(config.alpha, config.beta, even, Grouping.single(task.class_names), imitation)
    cache, parts = task.cache, functools.partial(_parts, task, config, setup)
    moves, stopped = _move_all(
        net, task, learned, objective, config, Checkpoint(cache, "moved units", VERSION, parts, Moves), progress
    )
    minutes = 0 if stopped else max(config.minutes - moves.seconds / 60, 0)
    schedule = Schedule(max(config.updates - moves.updates, 0), minutes, config.check_every, config.seed + 1, "train")
    kept = None if stopped else Checkpoint(cache, "trained subnets", VERSION, parts, Course)
    course = train(net, _optimizer(net, config), (learned, held), objective, schedule, kept, progress)
    course.updates, course.seconds = course.updates + moves.updates, course.seconds + moves.seconds
    if stopped:
        course.stopped = "Ctrl-C"
    return net.nested(), course


def _move_all(
    net: NestedNet,
    task: NestingTask,
    learned: Batches,
    objective: NestedObjective,
    config: StepConfig,
    kept: Checkpoint[Moves],
    progress: Progress,
) -> tuple[Moves, bool]:
    """Move units until every subnet is within its limit, training in between, and take the statistics of the net then.

    Returns what was done, and whether Ctrl-C came.
    """
    over = kept.result(net)
    if over is not None:
        return over, False
    units, optimizer = task.units, _optimizer(net, config)
    known = kept.load(net, optimizer)
    moves = Moves() if known is None else known[0]
    if known is not None:
        _LOG.info("move units: goes on after %d of %d rounds", moves.rounds, config.rounds)
    each = min(config.round_updates, int(_MOVING * config.updates / config.rounds))
    found: Array = np.zeros((len(config.macs), units.count))
    # Labels are those of images as they are.
    unchanged, looks = replace(learned, augment=(), views=1), _batches_of(_SEEN, learned)

    def seen() -> list[TrainingBatch]:
        return list(islice(unchanged.endless(config.seed + 2, looks * moves.rounds), looks))

    learning = learned.endless(config.seed + 3, moves.batches)
    compile_updates(net, objective, learned.endless(config.seed))
    begun = time.monotonic() - moves.seconds
    with stopping.going_on() as interruption:
        while moves.rounds < config.rounds:
            number = _due(moves.rounds, time.monotonic() - begun, config)
            batches = seen()
            found = importance(net, units, batches, config.beta)
            net.reassign(move_units(units, net.assignment, found, _limits(task, number / config.rounds)), batches)
            until = begun + 60 * config.minutes * _MOVING * number / config.rounds
            for batch in islice(learning, each):
                moves.batches += 1
                if time.monotonic() >= until:
                    break
                loss = update(net, optimizer, objective, batch)
                moves.updates += 1
                progress(f"move units, loss {loss:.4f}", moves.updates, config.rounds * each)
            moves.rounds, moves.seconds = number, time.monotonic() - begun
            kept.save(net, optimizer, moves)
    if interruption.came:
        net.reassign(move_units(units, net.assignment, found, task.limits), seen())
    net.settle(islice(learned.endless(config.seed + 4), _SETTLING))
    moves.seconds = time.monotonic() - begun
    if not interruption.came:
        kept.finish(net.state_dict(), moves)
    return moves, interruption.came


def _due(done: int, seconds: float, config: StepConfig) -> int:
    """The round that comes next; those are left out for which what came before them has spent the time."""
    by_time = 1 + int(config.rounds * seconds / (60 * config.minutes * _MOVING))
    return min(max(done + 1, by_time), config.rounds)


def _batches_of(samples: int, batches: Batches) -> int:
    """How many batches have so many samples, `_MOST_BATCHES` at most."""
    return min(-(-samples // batches.per_update), _MOST_BATCHES)


def _parts(task: NestingTask, config: StepConfig, setup: Setup) -> list[object]:
    """What moving and training depend on."""
    digests, units = task.cache.digests, task.units
    return [
        *(digests.model(units.model), units.logits, digests.model(task.original), task.limits),
        *(digests.samples(task.samples, indices) for indices in (task.learned, task.held)),
        *(task.class_names, replace(config, logits=None, bits=None), setup.parts),
    ]


def _limits(task: NestingTask, share: float) -> list[float]:
    """Multiplications of each subnet after a share of the rounds: they fall evenly from those of the whole net."""
    return [(1 - share) * task.units.macs + share * limit for limit in task.limits]


def _optimizer(net: NestedNet, config: StepConfig) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=config.rate)
