"""`.npz` sources: what is accepted, what is refused, and that rows are read from the file and not kept."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.npz import NpzSource
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

X = np.random.default_rng(0).standard_normal((12, 3, 2)).astype(np.float32)
Y = np.arange(12) % 3
SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])


def source(folder: Path, **arrays: Any) -> NpzSource:
    np.savez(folder / "a.npz", **arrays)
    return NpzSource(folder / "a.npz")


@SAVERS
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64, np.bool_, ">f4"])
def test_rows_come_as_they_were_saved(tmp_path: Path, save: Callable[..., None], dtype: Any) -> None:
    x = (X * 50).astype(dtype)
    save(tmp_path / "a.npz", x=x, y=Y)
    rows = NpzSource(tmp_path / "a.npz").read("x", [5, 0, 5, 11])
    assert rows.dtype == x.dtype
    np.testing.assert_array_equal(rows, x[[5, 0, 5, 11]])


def test_rows_of_a_padded_archive_are_found(tmp_path: Path) -> None:
    """The local header of a zip member may be longer than the central one says."""
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, zipfile.ZipFile(tmp_path / "b.npz", "w") as padded:
        for name in archive.namelist():
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\x0b\x00" + b"p" * 11
            padded.writestr(info, archive.read(name))
    np.testing.assert_array_equal(NpzSource(tmp_path / "b.npz").read("x", range(12)), X)


def test_class_names_and_labels_are_read(tmp_path: Path) -> None:
    found = source(tmp_path, x=X, y=Y.astype(np.uint8), class_names=np.array(["cat", "dog", "ship"]))
    assert found.class_names == ("cat", "dog", "ship")
    np.testing.assert_array_equal(found.labels, Y)
    assert found.labels.dtype == np.int64
    assert source(tmp_path, x=X, y=Y).class_names is None


def test_one_array_per_input(tmp_path: Path) -> None:
    found = source(tmp_path, ids=X, mask=X > 0, y=Y)
    assert set(found.inputs) == {"ids", "mask"}
    np.testing.assert_array_equal(found.read("mask", [2]), X[2:3] > 0)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"y": Y}, "no array 'x' with the samples; it holds: y"),
        ({"x": X}, "no array 'y' with the labels; it holds: x"),
        ({}, "no array 'y' with the labels; it holds: nothing"),
        ({"x": X, "y": Y[:-1]}, "'x' has 12 samples but 'y' has 11 labels"),
        ({"x": X, "other": X[:4], "y": Y}, "'other' has 4 samples but 'y' has 12 labels"),
        ({"x": np.float32(1), "y": Y}, "'x' has no samples but 'y' has 12 labels"),
        ({"x": X, "y": Y + 0.5}, "labels 'y' must be whole numbers or names, one per sample; got float64"),
        ({"x": X, "y": Y * np.nan}, "labels 'y' must be whole numbers or names, one per sample; got float64"),
        ({"x": X, "y": np.int64(3)}, r"labels 'y' must be .*, one per sample; got int64 of shape \(\)"),
        ({"x": X, "y": Y * 1j}, "labels 'y' must be whole numbers or names"),
        ({"x": np.asfortranarray(X), "y": Y}, "stored column by column; save it with np.ascontiguousarray"),
    ],
    ids=[
        "no-x", "no-y", "nothing", "lengths", "other-lengths", "scalar-x", "float-y", "nan-y", "scalar-y", "complex-y",
        "fortran",
    ],
)  # fmt: skip
def test_wrong_arrays_are_explained(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    with pytest.raises(CalibrationError, match=expected):
        source(tmp_path, **arrays)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("key", ["x", "y", "class_names"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    arrays: dict[str, Array] = {"x": X, "y": Y, key: np.array([Trap()] * 12, object)}
    with pytest.raises(CalibrationError, match=f"'{key}.npy' holds pickled Python objects"):
        source(tmp_path, **arrays)
    assert not Path("unpickled").exists()


@SAVERS
def test_cut_or_changed_files_are_explained(tmp_path: Path, save: Callable[..., None]) -> None:
    """Whatever bytes are missing or changed, no error of zipfile or zlib gets through."""
    path = tmp_path / "a.npz"
    save(path, x=X, y=Y, class_names=np.array(list("abc")))
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(CalibrationError, match=r"not an \.npz file, or cut short"):
            NpzSource(path)
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        try:
            NpzSource(path)
        except CalibrationError:
            refused += 1
    assert refused > 10


def test_header_that_promises_more_than_there_is_is_explained(tmp_path: Path) -> None:
    """Rows are read by position: a wrong shape would read what lies behind the array."""
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, zipfile.ZipFile(tmp_path / "b.npz", "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, archive.read(name).replace(b"(12, 3, 2)", b"(12, 3, 9)"))
    with pytest.raises(CalibrationError, match=r"array 'x.npy' is damaged: expected 1424 bytes, got 416"):
        NpzSource(tmp_path / "b.npz")


def test_member_that_is_no_array_is_explained(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("y.npy", "labels")
        archive.writestr("x.npy", "samples")
    with pytest.raises(CalibrationError, match=r"array 'y.npy' is damaged"):
        NpzSource(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no zip"], ids=["empty", "text"])
def test_file_that_is_no_npz_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"not an \.npz file, or cut short"):
        NpzSource(tmp_path / "a.npz")


@SAVERS
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path, save: Callable[..., None]) -> None:
    """32 MB of samples are opened and read in pieces with a few hundred kB."""
    rows = np.zeros((2000, 4096), np.float32)
    rows[:, 0] = np.arange(2000)
    save(tmp_path / "a.npz", x=rows, y=np.arange(2000) % 2)
    tracemalloc.start()
    data = CalibrationSet(NpzSource(tmp_path / "a.npz"), card=CalibrationSet.from_arrays([0], [0]).card)
    for start in range(0, 2000, 10):
        found = data.source.read("x", range(start, start + 10))
        np.testing.assert_array_equal(found[:, 0], np.arange(start, start + 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 8


def test_compressed_samples_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are unpacked to a file without a name, so that nothing stays even after a kill."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    found = NpzSource(tmp_path / "a.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(found.read("x", [1]), X[1:2])


def test_disk_full_while_unpacking_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(CalibrationError, match="cannot be read: No space left on device"):
        NpzSource(tmp_path / "a.npz")
