"""What grows with samples, classes and weights, measured; and the plan of a run that is too large to try.

Measured, each in a process of one thread, in core seconds:

- every stage with three numbers of samples: passes, bytes of what workers send back and get. A line goes through the
  first and the last; the first two foretell the last, as a check;
- the merging process's own work with three widths of a made net, and what it does with pieces with three numbers of
  classes;
- what the merging process and its workers hold with 1, 2 and 4 times the samples, with three numbers of classes, of
  neurons, and of widths.

From that the plan: the same stages, the net widened until it has so many bytes, on so many workers of one core. What
is measured and what is extrapolated stands in tables, and in the JSON, of its own.

python benchmarks/scale.py
python benchmarks/scale.py --model MODEL.onnx --card CARD.toml --source SAMPLES --samples 200 400 800
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import CARDS, ROOT, data_path
from scale_nets import made_net, made_samples, of_size
from scale_plan import Job, Machines, Measured, merging_memory, plan, worker_memory
from scale_tables import show

from onnx_cbq import CalibrationSet
from onnx_cbq.calibration.draw import draw
from onnx_cbq.calibration.samples import Samples
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.execution.parcels import Spool, pack
from onnx_cbq.graph.load import load
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.system.processor import microarchitecture, processor_kind
from onnx_cbq.verification import counts

HERE = Path(__file__).parent
IMAGES = ("efficientnet_lite0_imagenet.onnx", "imagenet_1000.zip")


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "samples" / "digits_cnn.onnx")
    parser.add_argument("--card", type=Path, default=CARDS / "digits.toml")
    parser.add_argument("--source", type=Path, help="in place of the card's")
    parser.add_argument("--samples", type=int, nargs=3, default=[100, 200, 400], help="three numbers, rising")
    parser.add_argument("--widths", type=int, nargs=3, default=[32, 64, 128], help="of the made net, rising")
    parser.add_argument("--held", type=int, default=1000, help="samples of the least run that memory is measured in")
    parser.add_argument("--held-classes", type=int, nargs=3, default=[10, 100, 1000], help="classes of such runs")
    parser.add_argument("--images", type=int, default=1_300_000, help="planned: samples")
    parser.add_argument("--classes", type=int, default=1000, help="planned: classes")
    parser.add_argument("--bytes", type=float, default=1e9, help="planned: of the float model")
    parser.add_argument("--workers", type=int, default=64, help="planned: each with one core")
    parser.add_argument("--cores", type=int, default=16, help="planned: of the merging process")
    parser.add_argument("--network", type=float, default=10.0, help="planned: Gbit/s of the merging process")
    parser.add_argument("--macs-per-weight", type=float, help="planned: multiplications (default: as measured)")
    parser.add_argument("--image-seconds", type=float, help="planned: to read an image (default: measured)")
    parser.add_argument("--json", type=Path, help="where everything is written")
    return parser.parse_args()


def child(script: str, **values: object) -> dict[str, Any]:
    """What a script of this folder measures in a process of its own; ends the run with what it says where it fails."""
    command = [sys.executable, str(HERE / script)]
    for name, value in values.items():
        command += [] if value is None else [f"--{name}", str(value)]
    print(f"measuring: {' '.join(f'{name} {value}' for name, value in values.items())}", file=sys.stderr)
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603, our script
    if ran.returncode:
        sys.exit(f"{script} failed:\n{ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def memory_runs(asked: argparse.Namespace) -> dict[str, Measured]:
    """What is held with more samples, classes, neurons and weights, the rest alike."""
    few, classes, width = asked.held, asked.held_classes, asked.widths[0]

    def run(samples: int, classes: int, width: int = width, side: int = 8) -> dict[str, Any]:
        return child("scale_memory.py", samples=samples, classes=classes, width=width, side=side)

    middle = run(4 * few, classes[1])
    most = run(4 * few, classes[2])
    return {
        "samples": [run(few, classes[1]), run(2 * few, classes[1]), middle],
        "classes": [run(4 * few, classes[0]), middle, most],
        "sides": [most, run(4 * few, classes[2], side=16)],
        "widths": [run(few, classes[0], width) for width in asked.widths],
    }


def image_seconds() -> float | None:
    """Core seconds to read and prepare an image of ImageNet; None where the data is not there."""
    model, images = map(data_path, IMAGES)
    if not (model.exists() and images.exists()):
        return None
    samples = CalibrationSet.from_card(CARDS / "imagenet.toml", images).for_model(load(model).inputs)
    chosen = np.linspace(0, len(samples.labels) - 1, 50).astype(np.int64)
    start = time.thread_time()
    for index in chosen:
        samples.read([index])
    return (time.thread_time() - start) / len(chosen)


def label_bytes() -> float:
    """Bytes that a worker is told of a sample whose inputs it reads by itself."""
    few, many = 4000, 8000
    with Spool.open() as spool:
        first, second = (len(pack(made_set(count), spool)) for count in (few, many))
    return (second - first) / (many - few)


def made_set(count: int) -> Samples:
    """So many made samples, fitted to a made net."""
    return prepare(made_net(4, 10), made_samples(count, 10)).samples


def jobs_of(work: Workload, asked: argparse.Namespace) -> tuple[Job, Job, float]:
    """What was measured, what is planned, and how many times as wide that net is."""
    layers, classes = work.layers.layers, work.logits.classes
    drawn = draw(work.samples, work.class_names, None, 0)
    run = run_of(work, drawn, RoundingConfig(), np.ones(classes))
    batch = counts.batch_size(work.samples)
    wide, times = of_size(layers, round(asked.bytes / 4), asked.classes)
    macs = None if asked.macs_per_weight is None else round(asked.macs_per_weight * asked.bytes / 4)
    planned = Job(wide, asked.classes, asked.images, run, batch, given_macs=macs)
    return Job(layers, classes, asked.samples[-1], run, batch), planned, times


def main() -> None:
    """Measure, print the tables, and write the JSON."""
    asked = options()
    given = {"model": asked.model, "card": asked.card, "source": asked.source}
    made = {"planned": asked.images}
    runs = {
        "by samples": [child("scale_meter.py", samples=n, **made, **given) for n in asked.samples],
        "by width": [child("scale_meter.py", samples=100, **made, width=width) for width in asked.widths],
        "by classes": [
            child("scale_meter.py", samples=2 * asked.held_classes[-1], **made, width=asked.widths[0], classes=classes)
            for classes in asked.held_classes
        ],
    }
    memory = memory_runs(asked)
    work = prepare(asked.model, CalibrationSet.from_card(asked.card, asked.source))
    measured, planned, times = jobs_of(work, asked)
    first = runs["by samples"][-1]["stages"]["wild samples"]
    own = first["reading"] / first["read"]
    image = asked.image_seconds or image_seconds() or own
    label = label_bytes()
    machines = Machines(asked.workers, asked.cores, asked.network * 1e9 / 8, image, label)
    stages = plan(runs, (measured, planned), machines)
    found = {
        "processor": f"{microarchitecture()}, {processor_kind()}",
        "measured": {
            "model": asked.model.name,
            **runs,
            "memory": memory,
            "seconds to read a sample": own,
            "bytes told of a sample": label,
        },
        "assumed": {
            **{name: getattr(asked, name) for name in ("images", "classes", "bytes", "workers", "cores", "network")},
            "times as wide": times,
            "multiplications per weight": planned.macs / planned.net.weights,
            "seconds to read an image": image,
            "net": asdict(planned.net),
        },
        "extrapolated": {
            "stages": [{**asdict(stage), "seconds": stage.seconds} for stage in stages],
            "seconds": sum(stage.seconds for stage in stages),
            "worker": worker_memory(memory["widths"], planned),
            "merging": merging_memory(memory, planned, stages),
            "sent": sum(stage.sent for stage in stages),
            "back": sum(stage.back for stage in stages),
        },
    }
    show(found, stages)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
