"""Reading ahead: in order, in threads, never more than was allowed, and nothing left running."""

from __future__ import annotations

import threading
import time

import pytest

from onnx_cbq.system.ahead import ahead


@pytest.mark.parametrize("most", [1, 2, 5])
def test_values_come_in_the_order_of_the_keys(most: int) -> None:
    """Whichever thread is done first."""

    def slow(key: int) -> int:
        time.sleep(0.002 * (7 - key % 7))
        return key * key

    assert list(ahead(slow, range(30), most)) == [key * key for key in range(30)]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_made_than_was_allowed(most: int) -> None:
    made: list[int] = []
    for done, _ in enumerate(ahead(made.append, range(20), most)):
        time.sleep(0.002)
        assert len(made) <= done + 1 + most
    assert made == list(range(20)) or most > 1


@pytest.mark.parametrize("most", [1, 3])
def test_threads_work_while_the_caller_does(most: int) -> None:
    """All that are allowed at the same time: each waits for the others."""
    together = threading.Barrier(most)

    def meet(key: int) -> int:
        together.wait(5)
        return key

    assert list(ahead(meet, range(6), most)) == list(range(6))


def test_errors_arrive_behind_what_was_made_before() -> None:
    def broken(key: int) -> int:
        if key == 3:
            raise ValueError("three")
        return key

    seen: list[int] = []
    with pytest.raises(ValueError, match="three"):
        seen.extend(ahead(broken, range(10), 2))
    assert seen == [0, 1, 2]


def test_nothing_runs_once_nobody_asks_any_more() -> None:
    before = threading.active_count()
    values = ahead(lambda key: key, range(1000), 3)
    assert next(values) == 0
    del values
    assert threading.active_count() == before
