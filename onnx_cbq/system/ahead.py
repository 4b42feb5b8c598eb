"""Work that is done in threads before it is asked for, so much of it and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


def ahead(make: Callable[[_K], _V], keys: Iterable[_K], most: int = 1) -> Iterator[_V]:
    """`make` of every key in their order, `most` of them made in threads while the caller works on the last one.

    Memory is that of `most` + 1 values. What `make` raises arrives where its value would.
    """
    waiting = iter(keys)
    pending: deque[Future[_V]] = deque()
    with ThreadPoolExecutor(most) as pool:
        try:
            pending.extend(pool.submit(make, key) for key in islice(waiting, most))
            while pending:
                value = pending.popleft().result()
                pending.extend(pool.submit(make, key) for key in islice(waiting, 1))
                yield value
        finally:
            for one in pending:
                one.cancel()
