"""Where arrays lie that were mapped from a file, and that they can be read again once they were let go of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.model import Array, read_only
from onnx_cbq.model.mapped import place_of, release

VALUES = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)


@pytest.fixture
def mapped(tmp_path: Path) -> Array:
    """A mapping that does not begin at the start of the file."""
    (tmp_path / "data").write_bytes(b"\0" * 8200 + VALUES.tobytes())
    return np.memmap(tmp_path / "data", np.uint8, "r", offset=8200)


def test_a_part_of_a_mapping_knows_its_place(mapped: Array, tmp_path: Path) -> None:
    """A place that is off by a byte would be other weights."""
    part = read_only(mapped[4000:84_000].view(np.float32).reshape(100, 200))
    place = place_of(part)
    assert place == (tmp_path / "data", 12_200)
    assert np.array_equal(np.fromfile(place[0], np.float32, part.size, offset=place[1]), part.reshape(-1))


def test_what_is_in_memory_or_turned_has_no_place(mapped: Array) -> None:
    assert place_of(VALUES) is None
    assert place_of(mapped.view(np.float32).reshape(300, 100).T) is None
    assert place_of(np.array(mapped)) is None


def test_what_was_let_go_of_is_read_again(mapped: Array) -> None:
    part = mapped[4000:84_000].view(np.float32)
    for value in (part, part.reshape(100, 200).T, mapped, VALUES):
        release(value)
    assert np.array_equal(part, VALUES[1000:21_000])
    assert np.array_equal(mapped.view(np.float32), VALUES)
