"""What weights of few bits take: the file that onnxruntime opens, packed and not, and the archive, beside other coders.

ResNet-20 at 3 bits and VGG-small at 2, the latter without the search and without compensation, which would change its
accuracy and not its bytes. Packed and unpacked files take turns in everything that is timed. The exit code is 1 if a
requirement was missed. Takes about ten minutes on two cores.

`--nncodec PYTHON` adds NNCodec, `--runtime PYTHON` (repeatable) compares the two files in another runtime; each is the
interpreter of an environment of its own, made by `pip install nncodec`, `onnxruntime==1.22.1` or `openvino`.

python benchmarks/bytes.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import zstandard
from common import CARDS, Requirements, data_file, print_table, run_elsewhere
from onnx import TensorProto, numpy_helper

from onnx_cbq import CalibrationSet, QuantizeConfig, archive, quantize, restore
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, fused_operators, median_latency

IMAGES = 2000
BATCHES = (1, 100)
ROUNDS = 5
LARGEST_RATIO = 1.05
LEAST_RATE = 5.0  # millions of weights per second
# What a packed file may take beyond its weights' bits.
BYTES_PER_CHANNEL = 10
BYTES_PER_FILE = 25_000


@dataclass(frozen=True)
class Job:
    """A model, how it is quantized, and what is required of it.

    Attributes:
        packed: bytes of the packed file.
        creation: seconds that opening it may take longer.
        archive: bytes of the archive, None where nothing is required.
        restore: seconds to restore it, likewise.
    """

    title: str
    model: str
    config: QuantizeConfig
    packed: int
    creation: float
    archive: int | None = None
    restore: float | None = None


JOBS = (
    Job("ResNet-20, 3 bits", "resnet20_cifar10.onnx", QuantizeConfig(3), 122_000, 0.3, 97_000, 1.0),
    Job("VGG-small, 2 bits", "vgg_small_cifar10.onnx", QuantizeConfig(2, "uniform", "nearest"), 1_250_000, 1.0),
)


@dataclass(frozen=True)
class Files:
    """The two files of a job, the images to run them on, and the figures of the plan."""

    int8: Path
    packed: Path
    images: dict[str, Array]
    ideal: int
    channels: int


@dataclass(frozen=True)
class Tools:
    """Interpreters of other environments."""

    nncodec: Path | None
    runtimes: tuple[Path, ...]


def make_files(job: Job, folder: Path) -> Files:
    """Quantize for both storages."""
    model, card = data_file(job.model), CARDS / "cifar10.toml"
    calibration = CalibrationSet.from_card(card, data_file("cifar10_calibration.npz"))
    test = CalibrationSet.from_card(card, data_file("cifar10_test.npz"))
    paths = {storage: folder / f"{storage}.onnx" for storage in ("int8", "packed")}
    for storage, path in paths.items():
        result = quantize(model, calibration, replace(job.config, storage=storage))
        result.save(path)
        print(f"{job.title}, {storage}: done", file=sys.stderr)
    channels = sum(len(bits) for bits in result.plan.bits.values())
    images = prepare(model, test).samples.read(np.arange(IMAGES))
    return Files(paths["int8"], paths["packed"], images, result.sizes.ideal, channels)


def codes(model: Path) -> dict[str, Array]:
    """The weights' codes of a file that has a byte for each; what is left out is scalars and rows of zero points."""
    tensors = onnx.load(model).graph.initializer
    narrow = [t for t in tensors if t.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(t.dims) > 1]
    return {str(i): numpy_helper.to_array(tensor) for i, tensor in enumerate(narrow)}


def differing(files: Files) -> int:
    """How many images the two files give other outputs for, to the last bit."""
    sessions = [Session(path) for path in (files.int8, files.packed)]
    count = 0
    for start in range(0, IMAGES, BATCHES[-1]):
        feeds = {name: x[start : start + BATCHES[-1]] for name, x in files.images.items()}
        one, other = (np.concatenate(list(session.run(feeds).values()), axis=1) for session in sessions)
        count += int((one.view(np.uint32) != other.view(np.uint32)).any(1).sum())
    return count


def median_seconds(functions: tuple[Callable[[], object], ...]) -> list[float]:
    """Median seconds of each, taking turns; the first round only warms up."""
    spent: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS + 1):
        for function, times in zip(functions, spent, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [float(np.median(times[1:])) for times in spent]


def measure_bytes(files: Files, job: Job, tools: Tools, required: Requirements) -> dict[str, str]:
    """All that has bytes, and what it takes to restore an archive."""
    found = codes(files.int8)
    weights = sum(value.size for value in found.values())
    raw = b"".join(value.tobytes() for value in found.values())
    squeeze = zstandard.ZstdCompressor(level=19).compress
    packed = files.packed.stat().st_size
    made = {coder: archive(files.int8, coder) for coder in ("ans", "huffman")}
    restored = restore(made["ans"].content) == files.int8.read_bytes()
    seconds = median_seconds(tuple(partial(restore, a.content) for a in made.values()))
    rates = [weights / spent / 1e6 for spent in seconds]
    bytes_of = {
        "weights": weights,
        "bits of the weights alone": files.ideal,
        "file, a byte per weight": files.int8.stat().st_size,
        "file, packed": packed,
        "archive, ans": len(made["ans"].content),
        "archive, huffman": len(made["huffman"].content),
        "its codes alone, ans": made["ans"].code_bytes,
        "its codes alone, huffman": made["huffman"].code_bytes,
        "zstd -19 of the codes": len(squeeze(raw)),
        "zstd -19 of the file": len(squeeze(files.int8.read_bytes())),
    }
    rows = {title: f"{value:,}" for title, value in bytes_of.items()}
    if tools.nncodec:
        rows["NNCodec of the codes"] = nncodec(found, tools.nncodec)
    rows["restoring, s, ans and huffman"] = " / ".join(f"{spent:.3f}" for spent in seconds)
    rows["million weights/s, ans and huffman"] = " / ".join(f"{rate:.1f}" for rate in rates)
    required.at_most(f"{job.title}: bytes, packed", packed, job.packed)
    overhead = packed - files.ideal
    allowed = BYTES_PER_CHANNEL * files.channels + BYTES_PER_FILE
    required.at_most(f"{job.title}: bytes that are not the weights' bits, packed", overhead, allowed)
    if job.archive is not None:
        required.at_most(f"{job.title}: bytes of the archive", bytes_of["archive, ans"], job.archive)
    required.at_least(f"{job.title}: archives that restore to the same file", int(restored), 1)
    if job.restore is not None:
        required.at_most(f"{job.title}: seconds to restore", seconds[0], job.restore)
    else:
        required.at_least(f"{job.title}: million weights restored per second", rates[0], LEAST_RATE)
    return rows


def nncodec(found: dict[str, Array], python: Path) -> str:
    """What NNCodec makes of the codes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npz"
        np.savez(path, **found)  # type: ignore[arg-type]  # of its flag
        said = json.loads(run_elsewhere(python, "nncodec_codes.py", path).splitlines()[-1])
    return f"{said['bytes']:,}{'' if said['same'] else ' (decodes to others)'}"


def measure_runs(files: Files, job: Job, required: Requirements) -> dict[str, str]:
    """How the packed file runs beside the other."""
    rows = {}
    paths = (files.int8, files.packed)
    other = differing(files)
    rows[f"images with other outputs when packed, of {IMAGES:,}"] = f"{other}"
    left = fused_operators(files.packed) - fused_operators(files.int8)
    required.at_most(f"{job.title}: nodes of the decoding that onnxruntime runs", left.total(), 0)
    required.at_most(f"{job.title}: images with other outputs when packed", other, 0)
    sessions = [Session(path) for path in paths]
    for batch in BATCHES:
        feeds = {name: x[:batch] for name, x in files.images.items()}
        int8, packed = median_latency(sessions, feeds, seconds=10.0)
        rows[f"latency at batch {batch}, packed / not"] = f"{packed / int8:.3f}"
        required.at_most(f"{job.title}: latency at batch {batch}, packed / not", packed / int8, LARGEST_RATIO)
    opening = median_seconds(tuple(partial(Session, path) for path in paths))
    rows["opening, s, not packed and packed"] = " / ".join(f"{seconds:.3f}" for seconds in opening)
    required.at_most(f"{job.title}: seconds that opening takes longer, packed", opening[1] - opening[0], job.creation)
    return rows


def measure_elsewhere(files: Files, job: Job, tools: Tools, required: Requirements) -> dict[str, str]:
    """The two files in other runtimes, which must open both and give the same outputs."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "images.npz"
        np.savez(inputs, **files.images)  # type: ignore[arg-type]  # of its flag
        for python in tools.runtimes:
            printed = run_elsewhere(python, "other_runtime.py", inputs, files.int8, files.packed)
            said = json.loads(printed.splitlines()[-1])
            title = f"{said['runtime']}: images with other outputs"
            other = said.get("differing", IMAGES)
            required.at_most(f"{job.title}, {said['runtime']}: images with other outputs when packed", other, 0)
            if "refused" in said:
                print(f"{said['runtime']} does not open {said['refused']}")
                rows[title] = "not opened"
                continue
            int8, packed = said["latencies"]
            rows[f"{said['runtime']}: latency at batch 1, packed / not"] = f"{packed / int8:.3f}"
            rows[title] = f"{said['differing']} (by {said['largest']:.2g})"
            rows[f"{said['runtime']}: opening, s"] = " / ".join(f"{seconds:.3f}" for seconds in said["seconds"])
    return rows


def main() -> int:
    """Measure, print, and return 1 if a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nncodec", type=Path, metavar="PYTHON", help="interpreter that has nncodec")
    parser.add_argument("--runtime", type=Path, action="append", default=[], metavar="PYTHON", help="repeatable")
    options = parser.parse_args()
    tools = Tools(options.nncodec, tuple(options.runtime))
    required, columns = Requirements(), []
    for job in JOBS:
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(job, Path(folder))
            rows = measure_bytes(files, job, tools, required) | measure_runs(files, job, required)
            columns.append(rows | measure_elsewhere(files, job, tools, required))
    print()
    titles = list(dict.fromkeys(title for column in columns for title in column))
    rows_of_table = [[title, *(column.get(title, "") for column in columns)] for title in titles]
    print_table(("bytes where nothing else is said", *(job.title for job in JOBS)), rows_of_table)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
