"""Every stage of a run by itself, in a process of one thread: core seconds, passes, and bytes of what workers send.

Stages run as at scale: samples are not kept in memory where so many as are planned for would not fit, and moments take
as many positions of each sample as they would then.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scale_nets import Net, made_net, made_samples
from threadpoolctl import threadpool_limits

from onnx_cbq import CalibrationSet, QuantizeConfig
from onnx_cbq.calibration.samples import Samples
from onnx_cbq.evidence import class_scores, measure_by_tables, reading, relay, sensitivity, width_tables
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.workload import ModelSource, Workload, aimed_at, prepare
from onnx_cbq.execution import Crew, Engine, InProcess, ModelFile, Place, Task, Work
from onnx_cbq.execution.parcels import Spool, pack
from onnx_cbq.methods import PlanMethod
from onnx_cbq.model import Model
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.runtime import Session
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.stages.rounding import round_plan
from onnx_cbq.stages.samples import draw_samples, weights_of
from onnx_cbq.stages.scene import make_scene
from onnx_cbq.stages.solution import Chosen, make_solution
from onnx_cbq.stages.wild import without_wild
from onnx_cbq.stages.written import write_solution
from onnx_cbq.storage.files import write_model
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.system.workers import share
from onnx_cbq.verification.comparison import compare

BITS = 4.0
# Of an image of 3 x 224 x 224 as models take it.
IMAGE_BYTES = 4 * 3 * 224 * 224
# Around each stage; it is told the name.
Watch = Callable[[str], AbstractContextManager[object]]


@dataclass
class Spent:
    """What a stage took. Seconds are those of cores, whatever else the machine does meanwhile.

    Attributes:
        busy: of workers, reading samples aside; `reading` of that, and `read` how many samples that were.
        merging: of the merging process over pieces as they come, `unpacking` to make them of bytes; `local` all else.
        tasks, shards: how many were given out.
        parcel: bytes that a worker gets once, beside arrays that it maps; `parcel_far` with them.
        told: bytes of tasks, for each worker, where it sees none of our files.
        back: bytes of all pieces, and `largest` of one.
    """

    busy: float = 0.0
    reading: float = 0.0
    read: int = 0
    merging: float = 0.0
    unpacking: float = 0.0
    local: float = 0.0
    tasks: int = 0
    shards: int = 0
    parcel: int = 0
    parcel_far: int = 0
    told: int = 0
    back: int = 0
    largest: int = 0


@dataclass
class Meter:
    """An engine that works here and writes down what went past."""

    place: Place
    spool: Spool
    stages: dict[str, Spent] = field(default_factory=dict)
    now: Spent = field(default_factory=Spent)
    # What measuring itself took.
    aside: float = 0.0

    def crew(self, work: Work[Any], shards: Sequence[Any]) -> Crew:
        """One worker, here."""
        start = time.process_time()
        self.now.parcel += len(pack(work, self.spool))
        self.now.parcel_far += len(pack(work))
        self.aside += time.process_time() - start
        return _MeteredCrew(self, InProcess(self.place).crew(work, shards), len(shards))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything in here belongs to it."""
        spent = self.now = self.stages.setdefault(name, Spent())
        start, aside = time.process_time(), self.aside
        yield
        elapsed = time.process_time() - start - (self.aside - aside)
        spent.local += elapsed - spent.busy - spent.merging
        spent.busy = max(spent.busy - spent.reading, 0.0)
        self.now = Spent()


@dataclass
class _MeteredCrew(Crew):
    meter: Meter
    inner: Crew
    shards: int

    def each(self, task: Task[Any, Any, Any]) -> Iterator[Any]:
        """The pieces, weighed."""
        meter, spent = self.meter, self.meter.now
        mark = time.process_time()
        spent.told += len(pack(task))
        meter.aside += time.process_time() - mark
        spent.tasks += 1
        mark = time.process_time()
        for piece in self.inner.each(task):
            spent.busy += time.process_time() - mark
            mark = time.process_time()
            content = pickle.dumps(piece, protocol=5)
            packed = time.process_time()
            pickle.loads(content)  # noqa: S301, written a moment ago
            spent.unpacking += time.process_time() - packed
            spent.back += len(content)
            spent.largest = max(spent.largest, len(content))
            spent.shards += 1
            meter.aside += time.process_time() - mark
            mark = time.process_time()
            yield piece
            spent.merging += time.process_time() - mark
            mark = time.process_time()
        spent.busy += time.process_time() - mark


@contextmanager
def as_planned(count: int, planned: int) -> Iterator[RoundingConfig]:
    """With `count` samples, what is kept in memory and what moments take of a sample is as with `planned` images."""
    held, kept, config = reading.HELD_BYTES, relay.KEPT_BYTES, RoundingConfig()
    if planned * RateDistortionConfig.held_back * IMAGE_BYTES > held:
        reading.HELD_BYTES = 0
    if planned * IMAGE_BYTES > kept:  # tensors are about as large
        relay.KEPT_BYTES = 0
    try:
        yield replace(config, rows=max(int(config.rows * min(count / planned, 1.0)), 1))
    finally:
        reading.HELD_BYTES, relay.KEPT_BYTES = held, kept


@contextmanager
def reading_counted(meter: Meter) -> Iterator[None]:
    """Samples that are read count for the stage."""
    plain = Samples.read

    def read(self: Samples, indices: Any) -> Any:
        start, spent = time.thread_time(), meter.now
        found = plain(self, indices)
        spent.reading += time.thread_time() - start
        spent.read += len(indices)
        return found

    Samples.read = read  # type: ignore[method-assign]
    try:
        yield
    finally:
        Samples.read = plain  # type: ignore[method-assign]


def run_stages(
    given: tuple[ModelSource, CalibrationSet], config: QuantizeConfig, engine: Engine, watch: Watch
) -> Workload:
    """A whole run with the default method, stage by stage."""
    choice = config.choice
    method = choice.method
    assert isinstance(method, PlanMethod)
    with watch("load"):
        work = replace(aimed_at(prepare(*given), choice.target, choice.scene.activations.bits), engine=engine)
    with watch("wild samples"):
        settings = choice.scene.samples
        work = without_wild(work, draw_samples(work, settings, weights_of(work, settings)).indices)
    with watch("activations"):
        scene = make_scene(work, choice.scene)
    evidence = scene.evidence
    with watch("scores"):
        evidence.of(class_scores)
    with watch("sensitivity"):
        evidence.of(sensitivity)
    with watch("tables"):
        evidence.of(width_tables)
    with watch("reference"):
        evidence.of(measure_by_tables)
    with watch("search"):
        plan = method.plan(scene, BITS).plan
    with watch("rounding"):
        rounded = round_plan(scene, plan)
    with temporary_folder() as folder:
        with watch("writing"):
            solution = make_solution(scene, Chosen(rounded))
            size = write_model(write_solution(scene, method.label, solution), folder / "quantized.onnx")
        with watch("evaluation"):
            models: list[Model | ModelFile] = [work.model, ModelFile(folder / "quantized.onnx")]
            compare(models, [size, size], (work.logits, work.samples, scene.drawn.indices), engine=engine)
    return work


def forward_seconds(work: Workload, count: int) -> float:
    """Core seconds of the float model for a sample, in one thread, samples in memory; the second of two passes."""
    size = work.samples.fixed_batch or min(batch_size(work.layers), count)
    batch = work.samples.read(np.resize(np.arange(min(count, len(work.samples.labels))), size))
    session, rounds = Session(work.model, threads=1), max(count // size, 1)
    session.run(batch)
    start = time.process_time()
    for _ in range(rounds):
        session.run(batch)
    return (time.process_time() - start) / (rounds * size)


def measure(given: tuple[ModelSource, CalibrationSet], count: int, planned: int) -> dict[str, Any]:
    """All stages with `count` samples, and the sizes of the net; the process uses one thread from now on."""
    share(1)
    threadpool_limits(1)
    with Spool.open() as spool, as_planned(count, planned) as compensation:
        meter = Meter(Place(1), spool)
        with reading_counted(meter):
            work = run_stages(given, QuantizeConfig(BITS, samples=count, compensation=compensation), meter, meter.stage)
    return {
        "samples": count,
        "net": asdict(Net.of(work.layers.layers, work.logits.classes)),
        "forward": forward_seconds(work, count),
        "stages": {name: asdict(spent) for name, spent in meter.stages.items()},
    }


def main() -> None:
    """Measure in this process, and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--planned", type=int, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--width", type=int)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    given: tuple[ModelSource, CalibrationSet]
    if options.width:
        given = made_net(options.width, options.classes), made_samples(options.samples, options.classes)
    else:
        given = options.model, CalibrationSet.from_card(options.card, options.source)
    json.dump(measure(given, options.samples, options.planned), sys.stdout)


if __name__ == "__main__":
    main()
