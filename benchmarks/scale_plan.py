"""What a run of another size would take, from lines through what was measured: pure functions, no model is run here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scale_nets import Net

from onnx_cbq.evidence.measure import held_batch
from onnx_cbq.evidence.reading import HELD_BYTES
from onnx_cbq.evidence.relay import KEPT_BYTES
from onnx_cbq.evidence.scoring import _TOGETHER, BATCH_BYTES, batch_size
from onnx_cbq.evidence.statistics import Run, Shard, shards_of
from onnx_cbq.evidence.tables import MOMENT_BYTES, _chunks
from onnx_cbq.execution.crew import _AHEAD, _MOST_SHARDS, _WINDOW
from onnx_cbq.records import Layer, Layers
from onnx_cbq.search.rate_distortion import RateDistortionConfig

# What the merging process does by itself that grows with the weights, and what it grows with.
BY_WEIGHTS = {"load": "weights", "tables": "solver", "search": "channels", "rounding": "solver", "writing": "weights"}
BY_SAMPLES = (
    *("wild samples", "activations", "scores", "sensitivity", "tables", "reference", "search", "rounding"),
    "evaluation",
)
# What a stage's work over samples is called, where the stage is more than that.
OVER_SAMPLES = {"tables": "moments for tables", "search": "plan measures", "rounding": "moments for rounding"}


@dataclass(frozen=True)
class Line:
    """A fixed cost and a slope; `error` is how far, as a share, the last of three sizes is from the others' line."""

    fixed: float
    slope: float
    error: float

    def at(self, size: float) -> float:
        """The cost of that size; nothing is negative."""
        return max(self.fixed, 0.0) + self.slope * size

    @staticmethod
    def through(sizes: Sequence[float], costs: Sequence[float]) -> Line:
        """Through the first and the last of three; what the first two say of the last is the check."""
        (a, b, c), (x, y, z) = sizes, costs
        foretold = x + (y - x) / (b - a) * (c - a)
        slope = max((z - x) / (c - a), 0.0)
        return Line(x - slope * a, slope, abs(foretold - z) / max(abs(z), 1e-12))


@dataclass(frozen=True)
class Job:
    """How large a run is.

    Attributes:
        samples: that all stages go over.
        held: share of them that plans are measured on.
        batch: samples of a batch of the evaluation.
        given_macs: multiplications for a sample, where they are not those of the layers.
    """

    layers: Sequence[Layer]
    classes: int
    samples: int
    run: Run
    batch: int
    held: float = RateDistortionConfig.held_back
    given_macs: int | None = None

    @property
    def macs(self) -> int:
        """Multiplications for a sample."""
        return self.given_macs or self.net.macs

    @property
    def net(self) -> Net:
        """The sizes of the net."""
        return Net.of(self.layers, self.classes)

    @property
    def chunks(self) -> int:
        """How many parts the layers are cut into for the tables: each is a pass."""
        return len(list(_chunks(Layers(tuple(self.layers)))))

    def pieces(self) -> dict[str, tuple[int, float]]:
        """Stage -> how many pieces workers send back for a task, and bytes of each but for what pickle adds."""
        net, size = self.net, batch_size(Layers(tuple(self.layers)))
        # A whole number of every class, as `Draw.split` has it.
        held = max(self.classes * round(self.samples / self.classes * self.held), round(self.samples * self.held))
        batches, train = math.ceil(self.samples / size), self.samples - held
        of_class = math.ceil(train / self.classes / size)
        rows = min(self.classes, train) * math.ceil(of_class / _TOGETHER)
        sums = 24 * net.channels if of_class <= _TOGETHER else 8 * net.neurons + 16 * net.channels
        of_held = math.ceil(held / held_batch(held, size))
        return {
            "wild samples": (batches, 16.0 * net.layers * min(size, self.samples)),
            "activations": (batches, float(net.layers)),
            "scores": (rows, sums),
            "sensitivity": (rows, 8 * net.channels),
            "tables": (len(self._shards(train)), net.moment_bytes),
            "reference": (of_held, 16 * net.classes),
            "search": (of_held, 8.0 * net.classes * held_batch(held, size)),
            "rounding": (len(self._shards(self.samples)), net.moment_bytes),
            "evaluation": (math.ceil(self.samples / self.batch), 16.0 * net.classes**2),
        }

    def _shards(self, count: int) -> list[Shard]:
        indices = np.arange(count)
        size = batch_size(Layers(tuple(self.layers)))
        return shards_of(Run(self.run.samples, indices, size, self.run.config, self.run.class_weights), self.layers)


@dataclass(frozen=True)
class Machines:
    """Who works.

    Attributes:
        workers: each with one core; `cores` are those of the merging process.
        network: bytes per second in and out of the merging process.
        image: core seconds to read and prepare a sample.
        label: bytes that a worker is told of a sample, for every work.
    """

    workers: int
    cores: int
    network: float
    image: float
    label: float


@dataclass(frozen=True)
class Stage:
    """What a stage would take.

    Attributes:
        seconds: of the clock; that of workers, of what comes back, and of the merging process beside each other.
        working, moving, merging: these three; `local` what the merging process does by itself afterwards.
        sent, back: bytes to all workers and from them.
        flying: bytes of pieces that the merging process may hold at once.
        grows: what the local part grows with.
    """

    name: str
    working: float = 0.0
    moving: float = 0.0
    merging: float = 0.0
    local: float = 0.0
    sent: float = 0.0
    back: float = 0.0
    flying: float = 0.0
    grows: str = ""

    @property
    def seconds(self) -> float:
        """Of the clock."""
        return max(self.working, self.moving, self.merging) + self.local


Measured = Sequence[Mapping[str, Any]]


def line_of(runs: Measured, stage: str, what: str | Callable[[Mapping[str, Any]], float], over: str) -> Line:
    """What a stage took in three runs, over their samples, or over a size of their nets."""
    sizes = [float(run["samples"] if over == "samples" else run["net"][over]) for run in runs]
    costs = [run["stages"][stage][what] if isinstance(what, str) else what(run["stages"][stage]) for run in runs]
    return Line.through(sizes, [float(cost) for cost in costs])


def plan(runs: Mapping[str, Measured], jobs: tuple[Job, Job], machines: Machines) -> list[Stage]:
    """Every stage of the second job, from runs of the first "by samples", and of made nets "by width" and "by classes".

    Assumed: a pass takes as long per multiplication in the larger net, and plans are measured as often.
    """
    measured, planned = jobs
    by_samples, by_width = runs["by samples"], runs["by width"]
    together = [run for part in runs.values() for run in part]
    return [
        *(_over_samples(name, (by_samples, together), (measured, planned), machines) for name in BY_SAMPLES),
        *(_by_weights(name, by_width, planned, machines) for name in BY_WEIGHTS),
    ]


def passes(run: Mapping[str, Any], line: Line) -> float:
    """A slope per sample in forward passes."""
    return float(line.slope / run["forward"])


def merging_of(runs: Measured, stage: str) -> tuple[float, float]:
    """Core seconds that the merging process takes for a piece, and for each byte of it: by small and large pieces."""
    found = [run["stages"][stage] for run in runs]
    costs = sorted((one["back"] / one["shards"], (one["merging"] + one["unpacking"]) / one["shards"]) for one in found)
    (size, least), (most, cost) = costs[0], costs[-1]
    each = max((cost - least) / (most - size), 0.0) if most > 2 * size else 0.0
    return max(least - each * size, 0.0), each


def _over_samples(name: str, runs: tuple[Measured, Measured], jobs: tuple[Job, Job], machines: Machines) -> Stage:
    (measured, planned), (own, together) = jobs, runs
    spent = own[-1]["stages"][name]
    larger, heavier = planned.macs / measured.macs, planned.net.weights / measured.net.weights
    again = planned.chunks / measured.chunks if name == "tables" else 1.0
    busy, read = line_of(own, name, "busy", "samples"), line_of(own, name, "read", "samples")
    # Every further part of the layers is a pass.
    each = (busy.slope + (again - 1) * own[-1]["forward"]) * larger + again * read.slope * machines.image
    working = planned.samples * each / machines.workers + again * max(busy.fixed, 0.0)
    (count, size), (count_here, size_here) = planned.pieces()[name], measured.pieces()[name]
    tasks = spent["tasks"] if name == "search" else 1
    weight = size * spent["back"] / (count_here * size_here * tasks)
    back = count * weight * tasks
    piece, each_byte = merging_of(together, name)
    works = 0 if name == "search" else again
    told = again * heavier * (spent["parcel_far"] + spent["told"]) + works * machines.label * planned.samples
    sent = machines.workers * told
    # As `RemoteCrew` deals them out.
    request = min(max(count // (_AHEAD * _WINDOW * machines.workers), 1), _MOST_SHARDS)
    flying = min(_WINDOW * request * machines.workers, count)
    grown = 0.0 if name in BY_WEIGHTS else line_of(own, name, "local", "samples").slope * planned.samples
    # Of rounding and tables each task has some of the layers.
    groups = {"rounding": spent["tasks"], "tables": planned.chunks}.get(name, 1)
    return Stage(
        OVER_SAMPLES.get(name, name),
        working=working,
        moving=(sent + back) / machines.network,
        merging=count * tasks * groups * piece + back * each_byte,
        local=grown,
        sent=sent,
        back=back,
        flying=flying * weight / groups,
        grows="samples",
    )


def _by_weights(name: str, runs: Measured, planned: Job, machines: Machines) -> Stage:
    over = BY_WEIGHTS[name]
    found = line_of(runs, name, "local", over)
    seconds = found.at(getattr(planned.net, over))
    many = machines.cores if name in ("tables", "rounding") else 1
    return Stage(name, local=seconds / many, grows=over)


# What the merging process may hold of moments at once, and a worker of samples, of two nets on their way, of a batch.
MOMENTS, WORKER_KEEPS = MOMENT_BYTES, HELD_BYTES + 2 * KEPT_BYTES + 4 * BATCH_BYTES


def merging_memory(runs: Mapping[str, Measured], planned: Job, stages: Sequence[Stage]) -> dict[str, float]:
    """What the merging process would hold, in bytes, by what it is."""
    samples, classes, widths = runs["samples"], runs["classes"], runs["widths"]
    net = planned.net
    known = growth(samples, "samples", "sensitivity", 0)
    # Two numbers of each, and what joining them takes where that shows.
    wild = max((growth(samples, "samples", "wild samples", 0) - known) / samples[0]["net"]["layers"], 16.0)
    answers = growth(samples, "samples", "search", 0) / samples[0]["classes"]
    scores = growth(classes, "classes", "scores", 1) / classes[0]["net"]["channels"]
    tables = (widths[-1]["held"]["tables"][1] - widths[0]["held"]["tables"][1]) / (
        widths[-1]["net"]["weights"] - widths[0]["net"]["weights"]
    )
    return {
        "the program": float(min(run["merging"] for run in samples)),
        "tables of all widths": tables * net.weights,
        "scores": scores * net.classes * net.channels,
        "moments": float(min(MOMENTS, net.moment_bytes)),
        "pieces on their way": max(stage.flying for stage in stages),
        "labels and numbers of samples, and parcels of them": known * planned.samples,
        "wild samples: sizes of each in each tensor": wild * planned.samples * net.layers,
        "a measured plan: every sample by every class": answers * planned.samples * net.classes,
    }


def worker_memory(runs: Measured, planned: Job) -> dict[str, float]:
    """What a worker would hold, in bytes, by what it is."""
    line = Line.through([float(run["net"]["moment_bytes"]) for run in runs], [float(run["worker"]) for run in runs])
    return {
        "the program": line.fixed,
        "model, and the runtime's copy of it": 8.0 * planned.net.weights,
        "moments": line.slope * min(MOMENTS, planned.net.moment_bytes),
        "samples, batches and tensors, at most": float(WORKER_KEEPS),
    }


def growth(runs: Measured, over: str, stage: str, which: int) -> float:
    """Bytes that a stage holds at its peak (0), or leaves (1), for each sample or class, between least and most."""
    first, last = runs[0], runs[-1]
    more = last["held"][stage][which] - first["held"][stage][which]
    return max(float(more) / float(last[over] - first[over]), 0.0)
