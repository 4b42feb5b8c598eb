"""Workers in other processes: shards are dealt out in turn, pieces come back in order, and who is lost is replaced.

Every worker has the shards that it was dealt until the end, since tasks may go on from what it holds of them. Who takes
over those of a lost one does again whatever has left something there. Memory here: the pieces of `_AHEAD` requests of
each worker at most, whatever the number of shards.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnx_cbq.errors import WorkerError
from onnx_cbq.execution import worker
from onnx_cbq.execution.engine import Crew, H, P, Place, S, Task, Work
from onnx_cbq.execution.parcels import Spool, pack

_LOG = logging.getLogger("onnx_cbq")
# Requests that a worker has before it, so that it never waits; and shards of a request at most.
_AHEAD, _MOST_SHARDS = 2, 4
# As many requests as there are workers, that many times over, are answered or on their way before the first is used.
_WINDOW = 2


class SeatLostError(Exception):
    """A worker is gone."""


class Seat(Protocol):
    """One worker: what it is told to do it does in that order.

    Attributes:
        name: in messages.
        place: what it has to run models with.
    """

    name: str
    place: Place

    def submit(self, function: Callable[..., Any], *values: Any) -> Future[Any]:
        """Let the worker call a function; what that raises arrives, and `LOST` where the worker is gone."""


LOST = (BrokenExecutor, SeatLostError)


class Hall(Protocol):
    """All workers of an engine."""

    @property
    def spool(self) -> Spool | None:
        """A folder that they all see, if there is one."""

    def seats(self) -> Sequence[Seat]:
        """Those that there are."""

    def instead_of(self, lost: Seat) -> Seat:
        """Who takes over from a worker that is gone.

        Raises:
            WorkerError: there is nobody.
        """


@dataclass
class _Member:
    """A worker of the crew: its shards, those of this task that are not asked for yet, and requests on their way."""

    seat: Seat
    started: Future[Any]
    shards: list[int]
    waiting: deque[list[int]] = field(default_factory=deque)
    asked: dict[Future[Any], list[int]] = field(default_factory=dict)


class RemoteCrew(Crew):
    """Workers in other processes that have started a work."""

    def __init__(self, hall: Hall, work: Work[H], shards: Sequence[S]) -> None:
        self._hall, self._shards = hall, shards
        self._key = secrets.token_hex(8)
        self._work = pack(work, hall.spool)
        seats = hall.seats()[: max(len(shards), 1)]
        numbers = range(len(shards))
        self._number, self._left = 0, list[bytes]()
        self._members = [
            _Member(seat, self._start(seat), list(numbers[i :: len(seats)])) for i, seat in enumerate(seats)
        ]

    def each(self, task: Task[H, S, P]) -> Iterator[P]:
        """The piece of every shard, in order; see `engine.Crew`."""
        self._number += 1
        content, pieces = pack(task, self._hall.spool), dict[int, P]()
        most = self._most_in_request()
        for member in self._members:
            mine = member.shards
            member.waiting = deque(mine[i : i + most] for i in range(0, len(mine), most))
        try:
            for number in range(len(self._shards)):
                while number not in pieces:
                    self._ask(content, number + _WINDOW * most * len(self._members))
                    self._take(pieces)
                yield pieces.pop(number)
        finally:
            for member in self._members:
                for future in member.asked:
                    future.cancel()
                member.asked, member.waiting = {}, deque()
        if task.leaves:
            self._left.append(content)

    def close(self) -> None:
        """Let the workers forget the work; what is under way is not waited for."""
        for member in self._members:
            try:
                member.seat.submit(worker.stop, self._key)
            except LOST:
                _LOG.debug("worker %s is gone", member.seat.name)

    def _most_in_request(self) -> int:
        """Shards of one request: several of each worker, so that all have something to do until the end."""
        each = len(self._shards) // (_AHEAD * _WINDOW * len(self._members))
        return max(min(each, _MOST_SHARDS), 1)

    def _ask(self, content: bytes, limit: int) -> None:
        """Give every worker something to do, as long as its shards lie below the limit."""
        for member in list(self._members):
            try:
                while member.waiting and len(member.asked) < _AHEAD and member.waiting[0][0] < limit:
                    numbers = member.waiting[0]
                    shards = [self._shards[i] for i in numbers]
                    future = member.seat.submit(worker.run, self._key, self._number, content, shards)
                    member.asked[future] = member.waiting.popleft()
            except LOST as error:
                self._replace(member, error)

    def _take(self, pieces: dict[int, P]) -> None:
        """Wait for an answer, and take all that are there."""
        asked = [future for member in self._members for future in member.asked]
        wait(asked, return_when=FIRST_COMPLETED)
        for member in list(self._members):
            try:
                for future in [future for future in member.asked if future.done()]:
                    member.started.result()
                    found = future.result()
                    pieces.update(zip(member.asked.pop(future), found, strict=True))
            except LOST as error:
                self._replace(member, error)

    def _replace(self, member: _Member, error: Exception) -> None:
        """Let another worker take over the shards of one that is gone, from where it was."""
        seat = self._hall.instead_of(member.seat)
        _LOG.warning("worker %s is gone (%s): its shards go to %s", member.seat.name, error or "killed", seat.name)
        other = next((one for one in self._members if one.seat is seat), None)
        mine = [*member.asked.values(), *member.waiting]
        if other is None:
            member.seat, member.started, member.asked = seat, self._start(seat), {}
            member.waiting = deque(sorted(mine))
        else:
            self._members.remove(member)
            other.shards = sorted(other.shards + member.shards)
            other.waiting = deque(sorted([*other.waiting, *mine]))
        shards = [self._shards[i] for i in member.shards]
        for content in self._left:
            seat.submit(worker.again, self._key, content, shards)

    def _start(self, seat: Seat) -> Future[Any]:
        return seat.submit(worker.start, self._key, self._work, seat.place)


def nobody_left(times: int) -> WorkerError:
    """What to raise where workers are lost again and again."""
    return WorkerError(
        f"{times} workers ended without a word, the last one just now; they may lack memory: give fewer --workers, or "
        f"fewer samples"
    )
