"""How much a run keeps: others' entries make way, the longest unused first, and its own never do."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.system.room import Room
from onnx_cbq.system.store import Entry, Store, packed

Disk = namedtuple("Disk", "total used free")


def key(number: int) -> str:
    return f"{number:02x}" * 32


def noise(size: int) -> Entry:
    """About so many bytes that do not compress."""
    return Entry({"x": np.random.default_rng(0).integers(0, 256, size, np.uint8)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five entries of about 10 kB; 0 was used last, 4 is the oldest."""
    store = Store(tmp_path / "cache")
    for number in range(5):
        store.write(key(number), "kind", noise(10_000))
        os.utime(store.path(key(number)), (time.time() - 100 * (1 + number),) * 2)
    return store


def left(store: Store) -> list[int]:
    return sorted(int(entry.path.stem[:2], 16) for entry in store.entries())


def test_nothing_makes_way_where_there_is_room(store: Store) -> None:
    room = Room(store, 1e6)
    assert room.takes(key(9), 900_000)
    room.tidy()
    assert left(store) == [0, 1, 2, 3, 4]


def test_the_longest_unused_make_way_before_the_limit_is_passed(store: Store) -> None:
    room = Room(store, 60_000)
    room.uses(key(4))
    assert room.takes(key(9), 15_000)
    # At most 0.9 * 60,000 - 15,000 bytes stay, and what the run found is among them.
    assert left(store) == [0, 1, 4]


def test_a_run_keeps_no_more_than_fits_and_gives_up_nothing_of_its_own(store: Store) -> None:
    room = Room(store, 35_000)
    kept = []
    for number in range(10, 16):
        pieces = packed(key(number), "kind", noise(10_000))
        if room.takes(key(number), sum(map(len, pieces))):
            store.put(key(number), pieces)
            kept.append(number)
        assert store.taken()[1] <= 35_000
    room.tidy()
    assert left(store) == kept == [10, 11, 12]


def test_what_is_too_large_for_the_folder_drives_out_nothing(store: Store) -> None:
    assert not Room(store, 55_000).takes(key(9), 55_001)
    assert left(store) == [0, 1, 2, 3, 4]


def test_an_entry_that_is_written_again_counts_once(store: Store) -> None:
    """As the state of a training is, all the time."""
    room = Room(store, 70_000)
    for _ in range(20):
        assert room.takes(key(9), 10_000)
    assert left(store) == [0, 1, 2, 3, 4]


def test_what_others_wrote_meanwhile_makes_way_in_the_end(store: Store) -> None:
    room = Room(store, 70_000)
    assert room.takes(key(9), 10_000)
    for number in range(20, 25):
        store.write(key(number), "kind", noise(10_000))
    room.tidy()
    assert store.taken()[1] <= 70_000
    assert set(left(store)) >= {20, 21, 22, 23, 24}


def test_entries_are_few_enough_to_look_at(store: Store) -> None:
    room = Room(store, most=6)
    for number in range(10, 13):
        assert room.takes(key(number), 100)
        store.write(key(number), "kind", Entry())
    assert store.taken()[0] <= 6
    assert set(left(store)) >= {10, 11, 12}


def test_the_disk_is_not_filled_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result would have no room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(100_000, 90_000, 10_000))
    room = Room(Store(store.folder / "none" / "yet"), 1e9)
    assert room.takes(key(9), 4_000)
    assert not room.takes(key(8), 6_000)


def test_only_entries_count(store: Store) -> None:
    before = store.taken()
    assert before == (5, sum(entry.bytes for entry in store.entries()))
    (store.folder / "00" / "mine").write_bytes(bytes(100))
    (store.folder / "mine").write_bytes(bytes(100))
    assert store.taken() == before
    assert Store(store.folder / "none").taken() == (0, 0)
