"""Work on many pieces of one array, on all cores that this process may use; numpy lets go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
# Pieces that wait for each thread.
_AHEAD = 2
# What this process was told to use, if it shares the cores with others that work for the same run.
_share: list[int] = []


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(threads: int) -> None:
    """Use so many threads from now on, and not one for each core."""
    _share[:] = [threads]


def in_threads(work: Callable[[_T], _R], pieces: Iterable[_T]) -> Iterator[_R]:
    """What `work` makes of each piece, in order; the last ones wait until the caller has taken the first."""
    waiting = iter(pieces)
    first = list(islice(waiting, 2))
    count = _share[0] if _share else cores()
    if len(first) < 2 or count < 2:
        yield from map(work, first)
        yield from map(work, waiting)
        return
    with ThreadPoolExecutor(count) as pool:
        pending = [pool.submit(work, piece) for piece in (*first, *islice(waiting, _AHEAD * count))]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(work, piece) for piece in islice(waiting, 1)]
