"""Matrix products of numpy in one thread, so that their last digits do not depend on how many there are.

A library that spreads one product over threads cuts it by their number, and adds up in another order for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Products within the block are computed by one thread each. Cost: some microseconds."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
