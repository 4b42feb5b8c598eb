"""Files are written whole or not at all, and models beyond protobuf's 2 GB with their weights beside them."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import OutputError
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from onnx_cbq.storage import files
from onnx_cbq.storage.files import check_folder, check_writable, write_arrays, write_folder, write_model, write_text
from tests.graphs import make_model, node


def weight(rows: int, columns: int) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)


MODEL = Model.from_proto(
    make_model(
        [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("MatMul", "c v")],
        {"x": ["N", 30]},
        ["y"],
        {"w": weight(30, 40), "b": weight(1, 40), "v": weight(40, 50)},
    )
)
FEEDS = {"x": weight(2, 30)}
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "new"),
    "arrays": lambda path: write_arrays(path, {"a": np.zeros(3)}),
    "model": lambda path: write_model(MODEL, path),
    "large-model": lambda path: write_model(MODEL, path),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], object]:
    """One way to write a file."""
    if request.param == "large-model":
        monkeypatch.setattr(files, "LARGEST_PROTOBUF", 1000)
    return WRITERS[request.param]


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Zürich\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Zürich\n"
    write_arrays(tmp_path / "b.npz", {"x": np.arange(5)})
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["x"], np.arange(5))


def test_a_model_is_one_file_of_the_size_returned(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert write_model(MODEL, path) == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(Session(path).run(FEEDS)["y"], Session(MODEL).run(FEEDS)["y"])


def test_a_model_beyond_protobuf_has_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size counts both files; onnxruntime, onnx and this package read them again, aligned for mapping."""
    monkeypatch.setattr(files, "LARGEST_PROTOBUF", 1000)
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    assert write_model(MODEL, path) == path.stat().st_size + data.stat().st_size
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert path.stat().st_size < 1000
    expected = Session(MODEL).run(FEEDS)["y"]
    np.testing.assert_array_equal(Session(path).run(FEEDS)["y"], expected)
    np.testing.assert_array_equal(Session(load(path)).run(FEEDS)["y"], expected)
    loaded = onnx.load(path)
    for tensor in loaded.graph.initializer:
        if tensor.name in MODEL.weights:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), MODEL.weights[tensor.name])
    entries = {e.key: e.value for e in onnx.load(path, load_external_data=False).graph.initializer[2].external_data}
    assert entries["location"] == data.name
    assert int(entries["offset"]) % 4096 == 0
    assert int(entries["offset"]) > 0


def test_the_quantized_model_is_written_the_same_way_from_either_form(tmp_path: Path) -> None:
    """The bytes of a file must not depend on how often it was read and written."""
    write_model(MODEL, tmp_path / "one.onnx")
    write_model(load(tmp_path / "one.onnx"), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_an_existing_file_is_replaced(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    write(path)
    assert path.read_bytes() != b"old"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"out", "out.data"}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model under the right name would be worse than none."""
    path = tmp_path / "out"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", disk_full)
    monkeypatch.setattr(Path, "write_text", disk_full)
    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OutputError, match=r"out: cannot be written: No space left on device; nothing was left behind"):
        write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert path.read_bytes() == b"old"


def test_an_interrupt_leaves_nothing_behind(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the last moment, before the temporary file takes its name."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "no" / "out"
    for attempt in (write, check_writable):
        with pytest.raises(OutputError, match="no' does not exist; create it first"):
            attempt(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give the name of the file to write"):
        check_writable(tmp_path)


def test_checking_leaves_an_existing_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    check_writable(tmp_path / "out")
    check_writable(tmp_path / "other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_files_are_readable_as_others_are(write: Callable[[Path], object], tmp_path: Path) -> None:
    """A temporary file is private; the finished one follows the umask like any other."""
    mask = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, folder = re.compile(r"\w+\.bin"), tmp_path / "made"
    write_folder(folder, {"a.bin": b"1", "b.bin": b"2"}, ours)
    real = files._write_pieces

    def full(path: Path, content: Iterable[bytes | memoryview]) -> int:
        if path.name == "d.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(files, "_write_pieces", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device; nothing was left behind"):
        write_folder(folder, {"c.bin": b"3", "d.bin": b"4"}, ours)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.bin": b"1", "b.bin": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_cannot_be_made_is_said_before_the_work_begins(tmp_path: Path) -> None:
    ours = re.compile(r"\w+\.bin")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; give the name of a folder to make"):
        check_folder(tmp_path / "file", ours)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        check_folder(tmp_path / "missing" / "made", ours)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(OutputError, match=r"holds other files \('notes.txt'\)"):
        check_folder(tmp_path / "other", ours)
