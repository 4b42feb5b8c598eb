"""What can be compared: ONNX files of any tool, archives and folders of steps, opened as what runs like a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard
from onnx import ModelProto

from onnx_cbq.calibration.samples import Samples
from onnx_cbq.evidence.workload import DataSource, as_set, judge, make_example, size_of
from onnx_cbq.graph.load import data_files, load
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.reading import read_file
from onnx_cbq.model import Array, Model
from onnx_cbq.records.answers import Kind
from onnx_cbq.runtime import Runnable, Session
from onnx_cbq.stepping.record import RECORD_NAME, SteppingRecord, read_record
from onnx_cbq.stepping.session import FirstSteps
from onnx_cbq.storage.archive import restore
from onnx_cbq.storage.coding.container import MAGIC
from onnx_cbq.storage.files import ZSTD_LEVEL, compressed_size, write_bytes
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.verification.footprint import footprint


@dataclass(frozen=True)
class Entry:
    """A model to compare.

    Attributes:
        label: its path, and of a folder which steps.
        path: where it lies.
        model: as it was loaded; of steps the first.
        size: bytes on disk, with external data; `compressed` by zstandard as well.
        content: of an archive, the file that it holds.
        record: of a folder of steps; the model is its first `steps`.
    """

    label: str
    path: Path
    model: Model
    size: int
    compressed: int
    content: bytes | None = None
    record: SteppingRecord | None = None
    steps: int = 0

    def open(self, threads: int = 0) -> Runnable:
        """Ready to run."""
        return FirstSteps(self.path, self.steps, threads) if self.record else Session(self.model, threads=threads)

    def memory(self, feeds: Mapping[str, Array]) -> int:
        """Bytes that it takes once it has run; see `footprint`."""
        if self.content is None:
            return footprint(self.path, feeds, self.steps or None)
        with temporary_folder() as folder:
            path = folder / "restored.onnx"
            write_bytes(path, self.content)
            return footprint(path, feeds)

    def judged(self, data: DataSource, logits: str | None) -> tuple[Logits, Samples]:
        """Its class scores, and the samples as it takes them, with their labels.

        Raises:
            OnnxCbqError: the samples do not fit the model, or no output fits the labels.
        """
        samples = as_set(data).for_model(self.model.inputs)
        if self.record is None:
            return judge(self.model, make_example(samples).shapes(self.model), samples, logits)
        squashed = "" if self.record.logits == self.record.output else "Softmax"
        kind = Kind(len(self.record.classes))
        found = Logits(self.record.output, self.record.logits, kind, names=self.record.classes, squashed=squashed)
        return found, samples.labelled(kind, self.record.classes)


def find_entries(path: Path) -> Iterator[Entry]:
    """The models at a path: one for a file or an archive, and one for each number of steps of a folder.

    Raises:
        OnnxCbqError: it is none of these, or damaged.
    """
    if path.is_dir():
        yield from _steps(path)
    elif is_archive(path):
        content = restore(path)
        size = path.stat().st_size
        yield Entry(str(path), path, load(ModelProto.FromString(content)), size, compressed_size(path), content)
    else:
        files = [path, *(file for file in data_files(path) if file.is_file())]
        yield Entry(str(path), path, load(path), size_of(path), sum(map(compressed_size, files)))


def files_of(path: Path) -> list[Path]:
    """Every file that is read of a path; none must be written to."""
    if not path.is_dir():
        return [path]
    return [path / RECORD_NAME, *(path / step.file for step in read_record(path).steps)]


def is_archive(path: Path) -> bool:
    """Whether a file is an archive of ours."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _steps(folder: Path) -> Iterator[Entry]:
    record = read_record(folder)
    first = load(folder / record.steps[0].file)
    total = packed = 0
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    for number, step in enumerate(record.steps, start=1):
        content = read_file(folder / step.file, "a step")
        total, packed = total + len(content), packed + len(compressor.compress(content))
        label = f"{folder}, steps 1 to {number}" if number > 1 else f"{folder}, step 1"
        so_far = replace(record, steps=record.steps[:number])
        yield Entry(label, folder.absolute(), first, total, packed, record=so_far, steps=number)
