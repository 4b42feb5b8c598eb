"""Entries of the store: whole or not at all, and never believed where they are not as they were written."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_cbq.system.store import DamagedEntryError, Entry, Store

KEY = "ab" + "0" * 62
PACKED = zstandard.ZstdCompressor().compress(bytes(8000))
START = struct.Struct("<16sII32s")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def written(store: Store) -> Path:
    store.write(
        KEY, "kind", Entry({"x": np.arange(12.0).reshape(3, 4), "y": np.array(5, np.int8)}, {"name": "ü", "n": 3})
    )
    return store.path(KEY)


def rewritten(path: Path, header: dict[str, object], arrays: bytes, version: int = 1) -> None:
    """An entry with a right checksum, whatever it says."""
    content = json.dumps(header).encode()
    digest = hashlib.sha256(content + arrays).digest()
    path.write_bytes(START.pack(b"onnx-cbq entry\r\n", version, len(content), digest) + content + arrays)


@given(
    st.lists(
        st.sampled_from(["i1", "u1", "i8", "f4", "f8", "b1", "f2", "U3", ">f8"]).flatmap(
            lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=4,
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, arrays: list[np.ndarray]) -> None:
    """Guards against types, empty arrays, scalars and byte orders that come back as others."""
    store = Store(tmp_path_factory.getbasetemp() / "round")
    named = {str(i): array for i, array in enumerate(arrays)}
    store.write(KEY, "kind", Entry(named))
    found = store.read(KEY)
    assert found is not None
    assert found.arrays.keys() == named.keys()
    for name, array in named.items():
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].dtype == array.dtype.newbyteorder("<")
        assert found.arrays[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert not found.arrays[name].flags.writeable


@pytest.mark.parametrize("kind", ["f8", "i1"])
def test_what_is_mostly_zeros_takes_little_room(store: Store, kind: str) -> None:
    """Guards against scores of a thousand classes that take half a gigabyte."""
    x = np.zeros((1000, 500), kind)
    x[3] = np.arange(500) % 7
    store.write(KEY, "kind", Entry({"x": x, "noise": np.random.default_rng(0).standard_normal(1000)}))
    assert store.path(KEY).stat().st_size < 20_000
    found = store.read(KEY)
    assert found is not None
    assert np.array_equal(found.arrays["x"], x)


def test_facts_come_back_and_nothing_is_there_before(store: Store) -> None:
    assert store.read(KEY) is None
    written(store)
    found = store.read(KEY)
    assert found is not None
    assert found.facts == {"name": "ü", "n": 3}


def test_the_layout_is_as_written_down(store: Store) -> None:
    """Guards against a change of the format without another version: old entries would be misread."""
    content = written(store).read_bytes()
    magic, version, length, digest = START.unpack(content[: START.size])
    assert (magic, version) == (b"onnx-cbq entry\r\n", 1)
    assert digest == hashlib.sha256(content[START.size :]).digest()
    header = json.loads(content[START.size : START.size + length])
    assert header["arrays"] == [["x", "<f8", [3, 4], 96], ["y", "|i1", [], 1]]
    assert np.array_equal(np.frombuffer(content[START.size + length : -1], "<f8"), np.arange(12.0))


def test_every_cut_and_every_changed_byte_is_noticed(store: Store) -> None:
    """Guards against trusting what a crash or a disk has left."""
    path = written(store)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedEntryError):
            store.read(KEY)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedEntryError):
            store.read(KEY)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedEntryError):
        store.read(KEY)
    path.write_bytes(whole)
    assert store.read(KEY) is not None


@pytest.mark.parametrize(
    ("arrays", "content"),
    [
        ([["x", "<f8", [1 << 60], 0]], b""),
        ([["x", "<f8", [1 << 60], 1 << 63]], b""),
        ([["x", "<f8", [1 << 40, 1 << 40], 8]], b"12345678"),
        ([["x", "<f8", [-1], 0]], b""),
        ([["x", "<f8", [1], -8]], b""),
        ([["x", "<f8", [2], 16]], b"12345678"),
        ([["x", "<f8", [2], 8]], b"12345678"),
        ([["x", "<f8", [1], 16]], b"1234567812345678"),
        ([["x", "|O8", [1], 8]], b"12345678"),
        ([["x", "<U999999999", [1], 8]], b"12345678"),
        ([["x", "<f8", 1, 8]], b"12345678"),
        ([["x", "<f8", [1]]], b"12345678"),
        ([["x", "<f8,<f8", [1], 16]], b"1234567812345678"),
        # What is unpacked is larger than it says, and what it says is larger than that.
        ([["x", "<f8", [10], len(PACKED)]], PACKED),
        ([["x", "<f8", [1 << 20], len(PACKED)]], PACKED),
        (None, b""),
    ],
)
def test_what_an_entry_declares_is_held_against_the_file_before_anything_is_made(
    store: Store, arrays: object, content: bytes
) -> None:
    """Guards against an entry that takes all memory, or that makes objects: its checksum may be right."""
    path = written(store)
    rewritten(path, {"key": KEY, "kind": "kind", "facts": {}, "arrays": arrays}, content)
    with pytest.raises(DamagedEntryError):
        store.read(KEY)


def test_a_header_of_any_length_is_refused(store: Store) -> None:
    path = written(store)
    path.write_bytes(START.pack(b"onnx-cbq entry\r\n", 1, (1 << 32) - 1, bytes(32)) + b"{}")
    with pytest.raises(DamagedEntryError, match="header"):
        store.read(KEY)


def test_another_version_and_another_key_are_refused(store: Store) -> None:
    path = written(store)
    header: dict[str, object] = {"key": KEY, "kind": "kind", "facts": {}, "arrays": []}
    rewritten(path, header, b"", version=2)
    with pytest.raises(DamagedEntryError, match="version 2"):
        store.read(KEY)
    rewritten(path, header | {"key": "0" * 64}, b"")
    with pytest.raises(DamagedEntryError, match="another key"):
        store.read(KEY)


def test_listing_and_pruning_leave_alone_what_is_not_ours(store: Store) -> None:
    """Guards against a folder that holds other files, or is another's altogether."""
    path = written(store)
    others = [
        store.folder / "notes.txt",
        path.parent / "notes.txt",
        store.folder / ("cd" + "0" * 62 + ".evidence"),
        path.parent / ("ab" + "1" * 62 + ".evidence"),
        store.folder / "docs" / ("ab" + "2" * 62 + ".evidence"),
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"something else")
    link = path.parent / ("ab" + "3" * 62 + ".evidence")
    link.symlink_to(others[0])
    assert [(entry.path, entry.kind) for entry in store.entries()] == [(path, "kind")]
    assert [entry.path for entry in store.prune(largest=0)] == [path]
    assert all(other.read_bytes() == b"something else" for other in (*others, link))
    assert not list(store.entries())


def test_pruning_takes_the_longest_unused_first(store: Store) -> None:
    keys = [f"{i:02x}" + "0" * 62 for i in range(4)]
    for age, key in enumerate(keys):
        store.write(key, "kind", Entry({"x": np.zeros(100)}))
        os.utime(store.path(key), (time.time() - 1000 * age,) * 2)
    size = store.path(keys[0]).stat().st_size
    assert [entry.path.stem for entry in store.prune(oldest=2500)] == [keys[3]]
    store.read(keys[2])  # of use again
    assert [entry.path.stem for entry in store.prune(largest=2 * size)] == [keys[1]]
    assert {entry.path.stem for entry in store.entries()} == {keys[0], keys[2]}


def test_what_a_killed_run_left_goes_after_a_day(store: Store) -> None:
    path = written(store)
    left = path.parent / ("." + "ab" + "0" * 38 + ".abcdefgh.onnx-cbq")
    left.write_bytes(b"half")
    assert not store.prune(largest=1e9)
    os.utime(left, (time.time() - 100_000,) * 2)
    assert [(entry.path, entry.kind) for entry in store.prune(largest=1e9)] == [(left, "unfinished")]
    assert store.read(KEY) is not None


def test_processes_that_write_the_same_entry_leave_a_whole_one(store: Store) -> None:
    """Guards against two runs whose bytes mix."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from onnx_cbq.system.store import Entry, Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(200):\n"
        f"    store.write({KEY!r}, 'kind', Entry({{'x': np.full(20000, i, np.int32)}}))\n"
        f"    x = store.read({KEY!r}).arrays['x']; assert (x == x[0]).all()\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(store.folder)]) for _ in range(2)]  # noqa: S603
    assert [one.wait() for one in both] == [0, 0]
    assert [entry.kind for entry in store.entries()] == ["kind"]
