"""`.npz` sources: what is accepted, what is refused, and that rows are read from the file and not kept."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.npz import NpzSource
from onnx_cbq.calibration.places import LocalPlace
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

X = np.random.default_rng(0).standard_normal((12, 3, 2)).astype(np.float32)
Y = np.arange(12) % 3
SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])


def opened(path: Path) -> NpzSource:
    return NpzSource([LocalPlace(path)], Card(path), skip_unreadable=False)


def source(folder: Path, **arrays: Any) -> NpzSource:
    np.savez(folder / "a.npz", **arrays)
    return opened(folder / "a.npz")


@SAVERS
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64, np.bool_, ">f4"])
def test_rows_come_as_they_were_saved(tmp_path: Path, save: Callable[..., None], dtype: Any) -> None:
    x = (X * 50).astype(dtype)
    save(tmp_path / "a.npz", x=x, y=Y)
    rows = opened(tmp_path / "a.npz").read("x", [5, 0, 5, 11])
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
    np.testing.assert_array_equal(opened(tmp_path / "b.npz").read("x", range(12)), X)


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
            opened(path)
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        try:
            opened(path)
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
        opened(tmp_path / "b.npz")


def test_member_that_is_no_array_is_explained(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("y.npy", "labels")
        archive.writestr("x.npy", "samples")
    with pytest.raises(CalibrationError, match=r"array 'y.npy' is damaged"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no zip"], ids=["empty", "text"])
def test_file_that_is_no_npz_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"not an \.npz file, or cut short"):
        opened(tmp_path / "a.npz")


@SAVERS
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path, save: Callable[..., None]) -> None:
    """32 MB of samples are opened and read in pieces with a few hundred kB."""
    rows = np.zeros((2000, 4096), np.float32)
    rows[:, 0] = np.arange(2000)
    save(tmp_path / "a.npz", x=rows, y=np.arange(2000) % 2)
    tracemalloc.start()
    data = CalibrationSet(opened(tmp_path / "a.npz"), card=CalibrationSet.from_arrays([0], [0]).card)
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
    found = opened(tmp_path / "a.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(found.read("x", [1]), X[1:2])


def test_disk_full_while_unpacking_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(CalibrationError, match="cannot be read: No space left on device"):
        opened(tmp_path / "a.npz")


def rewritten(folder: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """An archive of x and y as they should be, some members replaced."""
    np.savez(folder / "a.npz", x=X, y=Y)
    with zipfile.ZipFile(folder / "a.npz") as archive, zipfile.ZipFile(folder / "b.npz", "w", method) as changed:
        for name in {*archive.namelist(), *(f"{key}.npy" for key in members)}:
            key = name.removesuffix(".npy")
            changed.writestr(name, members[key] if key in members else archive.read(name))
    return folder / "b.npz"


def npy(descr: str, shape: str, data: bytes, length: int | None = None, version: int = 1) -> bytes:
    """What np.save would not write."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = (len(header) if length is None else length).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


@pytest.mark.parametrize(
    ("descr", "shape", "expected"),
    [
        ("'<f4'", "(18446744073709551628, 3, 2)", "expected 442721857769029239[0-9]* bytes, got"),
        ("'<f4'", "(12, -3, -2)", r"float32 of shape \(12, -3, -2\); expected numbers"),
        ("'|S0'", "(12, 3, 2)", r"\|S0 of shape"),
        ("('<f4', (2,))", "(12, 3)", r"of shape \(12, 3\); expected numbers"),
        ("[('a', '<f4')]", "(12, 3, 2)", "expected numbers"),
        ("'<f4'", "(12, 9223372036854775808)", "expected 442721857769029238[0-9]* bytes, got"),
        ("'<f4'", "(True, 3)", r"of shape \(True, 3\)"),
        ("'<f4'", "(12, 0)", r"has samples without values, \(0,\)"),
        ("'<f4'", "(" * 3000, "is damaged: "),
        ("'<f4'", "{{{", "is damaged: "),
        ("'nonsense'", "(12,)", "is damaged: descr is not a valid dtype descriptor"),
    ],
)
def test_headers_of_no_array_are_explained(tmp_path: Path, descr: str, shape: str, expected: str) -> None:
    """Each was a traceback: of numpy's parser, of an overflow, or of the shape that came out of it."""
    with pytest.raises(CalibrationError, match=f"array 'x.npy' (is damaged: )?.*{expected}"):
        opened(rewritten(tmp_path, x=npy(descr, shape, X.tobytes())))


@pytest.mark.parametrize("version", [1, 2])
def test_header_that_claims_gigabytes_is_not_read(tmp_path: Path, version: int) -> None:
    """numpy reads it whole before it looks at its length."""
    content = npy("'<f4'", "(12, 3, 2)", X.tobytes(), length=(1 << 16 * version) - 1, version=version)
    with pytest.raises(CalibrationError, match=r"'x.npy' is damaged: its header claims [0-9,]* bytes"):
        opened(rewritten(tmp_path, x=content))


@pytest.mark.parametrize("key", ["y", "class_names", "x"])
def test_what_would_be_unpacked_is_bounded_by_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A gigabyte of zeros takes a megabyte; who trusts the file raises the limits."""
    monkeypatch.setenv("ONNX_CBQ_ALLOWANCE", "0.001")
    arrays: dict[str, Any] = {
        "y": {"x": np.zeros((200_000, 2), np.int8), "y": np.zeros(200_000, np.int64)},
        "x": {"x": np.zeros((6000, 99), np.float32), "y": np.zeros(6000, np.int8)},
        "class_names": {"x": X, "y": Y, "class_names": np.array(["a"] * 9000)},
    }[key]
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(CalibrationError, match=r"bytes .* a file of .* at most; set ONNX_CBQ_ALLOWANCE=\d+ if you"):
        opened(tmp_path / "a.npz")
    monkeypatch.setenv("ONNX_CBQ_ALLOWANCE", "1")
    assert len(opened(tmp_path / "a.npz").labels) == len(arrays["y"])


def test_stored_array_that_reaches_into_what_follows_is_refused(tmp_path: Path) -> None:
    """The directory of the archive was read as if it were samples."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, value in (("y", Y), ("x", X)):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, value)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    directory, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    content[end + 16 : end + 20] = (directory - 100).to_bytes(4, "little")
    del content[directory - 100 : directory]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"expected 416 bytes, there is room for 316|cut short"):
        opened(tmp_path / "a.npz")


def test_changed_samples_of_a_stored_array_are_found(tmp_path: Path) -> None:
    """zipfile checks what it unpacks; stored rows are read past it."""
    large = np.arange(12 << 16, dtype=np.int32).reshape(12, -1)
    np.savez(tmp_path / "a.npz", x=large, y=Y)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.find(large[7].tobytes()) + 77] ^= 8
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"array 'x.npy' is damaged: its checksum is another one"):
        opened(tmp_path / "a.npz")


def test_file_that_was_cut_while_in_use_is_explained(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((12, 1 << 16)), y=Y)
    found = opened(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"array 'x.npy' ends early"):
        found.read("x", [3])


def test_class_names_may_be_bytes(tmp_path: Path) -> None:
    """They were called "b'cat'", and --classes cat found none."""
    found = source(tmp_path, x=X, y=Y, class_names=np.array([b"cat", "M\u00fcll".encode(), b"\xff"]))
    assert found.class_names == ("cat", "M\u00fcll", "\\xff")


def test_class_names_of_two_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"'class_names' has shape \(2, 2\); expected one name per class"):
        source(tmp_path, x=X, y=Y, class_names=np.array([["a", "b"], ["c", "d"]]))


def test_thousands_of_arrays_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="2,001 arrays; expected one for each input of a model"):
        source(tmp_path, y=Y[:1], **{f"x{i}": Y[:1] for i in range(2000)})


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(CalibrationError, match="is a device, a socket or a pipe, expected a file"):
        opened(tmp_path / "a.npz")
