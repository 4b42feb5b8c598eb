"""The tables of sources: no ending is claimed twice, and one entry is all that a new source takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet, files_read, opening
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.kinds import DECODERS
from onnx_cbq.calibration.opening import SOURCES
from onnx_cbq.calibration.places import LocalPlace, Place, expanded
from onnx_cbq.calibration.sources import PlacedSource
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from tests.calibration.packing import image, opened


class Table(PlacedSource):
    """Numbers in a text file, the label last in each row."""

    endings: ClassVar[tuple[str, ...]] = (".txt",)

    def __init__(self, places: Sequence[Place], card: Card, *, skip_unreadable: bool) -> None:
        (place,) = places
        self.label, self.inputs = place.label, ("x",)
        with place.open() as stream:
            rows = np.loadtxt(stream, np.float32, ndmin=2)
        self._rows, self.labels = rows[:, :-1], rows[:, -1].astype(np.int64)

    def read(self, name: str, indices: Sequence[int]) -> Array:
        return self._rows[list(indices)]


def test_a_source_is_one_class_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card names its file, and the guard for outputs knows it."""
    (tmp_path / "table.txt").write_text("0.5 2 1\n3 4 0\n")
    (tmp_path / "card.toml").write_text('source = "table.txt"')
    with pytest.raises(CalibrationError, match=r"table\.txt: nothing that samples are read from; expected"):
        CalibrationSet.from_card(tmp_path / "card.toml")
    monkeypatch.setattr(opening, "SOURCES", (*SOURCES, Table))
    data = CalibrationSet.from_card(tmp_path / "card.toml")
    assert data.labels.tolist() == [1, 0]
    assert data.source.read("x", [1]).tolist() == [[3, 4]]
    assert tmp_path / "table.txt" in set(files_read(data.card))


def test_no_ending_is_claimed_twice() -> None:
    for table in (
        [ending for source in SOURCES for ending in source.endings],
        [suffix for kind in DECODERS for suffix in kind.suffixes],
    ):
        assert len(set(table)) == len(table)
        assert not [one for one in table for other in table if one != other and one.endswith(other)]


@pytest.mark.parametrize(
    ("source", "labels", "expected"),
    [
        ("list.csv", None, {"list.csv", "a.png", "cats/b.png"}),
        ("x.npy", "y.npy", {"x.npy", "y.npy"}),
        ("s-{0..1}.tar", None, {"s-{0..1}.tar", "s-0.tar", "s-1.tar"}),
        (".", None, {"cats/b.png", "list.csv", "x.npy"}),
        ("gone.zip", None, {"gone.zip"}),
    ],
)
def test_files_that_are_read_are_known(tmp_path: Path, source: str, labels: str | None, expected: set[str]) -> None:
    """No output may replace them."""
    (tmp_path / "cats").mkdir()
    for name in ("a.png", "cats/b.png", "x.npy", "y.npy", "s-0.tar", "s-1.tar"):
        (tmp_path / name).write_bytes(image(1))
    (tmp_path / "list.csv").write_text("path,label\na.png,0\ncats/b.png,1\n")
    found = {os.path.relpath(path, tmp_path) for path in files_read(Card(tmp_path / source, labels=labels))}
    assert found >= expected


def test_what_no_source_reads_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.rar").touch()
    with pytest.raises(CalibrationError, match=r"a\.rar: nothing that .*; expected a folder, or one of \.npz, \.npy"):
        opened(tmp_path / "a.rar")


@pytest.mark.parametrize(("pattern", "names"), [("*.tar", ["a.tar", "b.tar"]), (".*.tar", ["._a.tar"])])
def test_patterns_leave_out_what_systems_leave_behind(tmp_path: Path, pattern: str, names: list[str]) -> None:
    """A copy from a Mac has a ._a.tar beside each a.tar, which is none; whoever writes the dot means it."""
    for name in ("a.tar", "b.tar", "._a.tar"):
        (tmp_path / name).write_bytes(b"")
    assert [place.name for place in expanded(LocalPlace(tmp_path / pattern))] == names
