"""Pieces are worked on in threads; what comes out has the order of what went in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from onnx_cbq.system import workers
from onnx_cbq.system.workers import cores, in_threads


@pytest.fixture(params=[1, 3])
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(workers, "cores", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize("pieces", [0, 1, 2, 40])
def test_results_keep_their_order(pieces: int, count: int) -> None:
    """The first pieces take longest, so the last are ready first."""

    def work(piece: int) -> int:
        time.sleep(0.002 if piece < count else 0)
        return piece * piece

    assert list(in_threads(work, range(pieces))) == [piece * piece for piece in range(pieces)]


def test_few_pieces_are_made_ahead(count: int) -> None:
    """What lies in a file is read piece by piece: all at once would be the whole of it in memory."""
    made = []

    def pieces() -> Iterator[int]:
        for piece in range(100):
            made.append(piece)
            yield piece

    results = in_threads(lambda piece: piece, pieces())
    assert next(results) == 0
    assert len(made) <= 2 + 3 * count


def test_an_error_reaches_the_caller(count: int) -> None:
    others = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda piece: 1 // (piece - 5), range(10)))
    # Those of tests before may still be there, or end meanwhile.
    assert threading.active_count() <= others + count


def test_there_is_a_core() -> None:
    assert cores() >= 1
