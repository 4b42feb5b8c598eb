"""Workers in other processes: shards are dealt out in turn, pieces come back in order, and who is lost is replaced.

Every worker has the shards that it was dealt until the end, since tasks may go on from what it holds of them. Who takes
over those of a lost one starts the work anew, and does again whatever has left something there. Memory here: the pieces
of `_WINDOW` requests of each worker and one more at most, whatever the number of shards.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeVar

from onnx_cbq.errors import OnnxCbqError, WorkerError
from onnx_cbq.execution.engine import Crew, H, P, Place, S, Task, Work
from onnx_cbq.execution.parcels import Spool
from onnx_cbq.execution.worker import Desk, SeatLostError

_LOG = logging.getLogger("onnx_cbq")
R = TypeVar("R")
# Requests that a worker has before it, so that it never waits; and shards of a request at most.
_AHEAD, _MOST_SHARDS = 2, 4
# As many requests as there are workers, that many times over, are answered or on their way before the first is used.
_WINDOW = 2
# Workers that may be lost in a run, for each that there is.
MOST_LOST = 3


class Seat(Protocol):
    """One worker: what it is told to do it does in that order."""

    @property
    def name(self) -> str:
        """In messages."""

    @property
    def place(self) -> Place:
        """What it has to run models with."""

    def submit(self, order: Callable[..., R], *values: Any) -> Future[R]:
        """Let the worker do something at its desk; what that raises arrives, and `LOST` where the worker is gone."""


LOST = (BrokenExecutor, SeatLostError)


class Hall(Protocol):
    """All workers of an engine."""

    @property
    def spool(self) -> Spool | None:
        """Where parcels put large arrays, if all workers see it."""

    def pack(self, value: object) -> bytes:
        """A parcel that all of them can open."""

    def seats(self) -> Sequence[Seat]:
        """Those that there are."""

    def instead_of(self, lost: Seat) -> Seat:
        """Who takes over from a worker that is gone; it may be one that has shards of its own.

        Raises:
            WorkerError: there is nobody.
        """


@dataclass
class _Member:
    """Some shards, and the worker that has them.

    Attributes:
        shards: its own, by their numbers.
        key: what the worker calls the work, as it was started for these shards.
        orders: besides requests, those that may still fail; `begun` is the one of the task, if there is one.
        waiting: requests of this task that were not made yet, `asked` those on their way, `answered` what is there.
    """

    seat: Seat
    shards: list[int]
    key: str = ""
    orders: list[Future[Any]] = field(default_factory=list)
    begun: Future[Any] | None = None
    waiting: deque[list[int]] = field(default_factory=deque)
    asked: dict[Future[Any], list[int]] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)

    def order(self, order: Callable[..., None], *values: Any) -> None:
        """Tell the worker to do something that nothing comes of."""
        self.orders.append(self.seat.submit(order, self.key, *values))

    def begin(self, task: bytes) -> None:
        """Let the worker take on a task."""
        self.begun = self.seat.submit(Desk.begin, self.key, task)

    def check_orders(self) -> None:
        """Raise what went wrong before a request that was answered."""
        while self.orders:
            self.orders[0].result()
            del self.orders[0]
        if self.begun is not None:
            self.begun.result()


class RemoteCrew(Crew):
    """Workers in other processes that have started a work."""

    def __init__(self, hall: Hall, work: Work[H], shards: Sequence[S]) -> None:
        self._hall, self._shards = hall, shards
        self._work = hall.pack(work)
        # Tasks that left something, those that are over, and the one that is under way.
        self._left, self._content, self._leaves = list[bytes](), b"", False
        seats = hall.seats()[: max(len(shards), 1)]
        numbers = range(len(shards))
        self._members = [_Member(seat, list(numbers[i :: len(seats)])) for i, seat in enumerate(seats)]
        for member in self._members:
            try:
                self._start(member)
            except LOST as error:
                self._replace(member, error)

    def each(self, task: Task[H, S, P]) -> Iterator[P]:
        """The piece of every shard, in order; see `engine.Crew`."""
        assert not self._content, "one task at a time"
        spool = self._hall.spool
        known = spool.names() if spool is not None else set()
        self._content, self._leaves = self._hall.pack(task), task.leaves
        passing = spool.names() - known if spool is not None and not task.leaves else set()
        pieces = dict[int, P | _Failed]()
        most = self._most_in_request()
        for member in self._members:
            mine, member.answered = member.shards, []
            member.waiting = deque(mine[i : i + most] for i in range(0, len(mine), most))
            try:
                member.begin(self._content)
            except LOST as error:
                self._replace(member, error)
        try:
            for number in range(len(self._shards)):
                while number not in pieces:
                    self._ask(number + _WINDOW * most * len(self._members))
                    self._take(pieces)
                piece = pieces.pop(number)
                if isinstance(piece, _Failed):
                    raise piece.error
                yield piece
        finally:
            for member in self._members:
                for future in member.asked:
                    future.cancel()
                member.asked, member.waiting = {}, deque()
            if task.leaves:
                self._left.append(self._content)
            if spool is not None:
                spool.forget(passing)
            self._content = b""

    def close(self) -> None:
        """Let the workers forget the work; what is under way is not waited for."""
        for member in self._members:
            try:
                member.seat.submit(Desk.stop, member.key)
            except LOST:
                _LOG.debug("worker %s is gone", member.seat.name)

    def _most_in_request(self) -> int:
        """Shards of one request: several of each worker, so that all have something to do until the end."""
        each = len(self._shards) // (_AHEAD * _WINDOW * len(self._members))
        return max(min(each, _MOST_SHARDS), 1)

    def _ask(self, limit: int) -> None:
        """Give every worker something to do, as long as its shards lie below the limit."""
        for member in self._members:
            try:
                while member.waiting and len(member.asked) < _AHEAD and member.waiting[0][0] < limit:
                    future = member.seat.submit(Desk.run, member.key, self._of(member.waiting[0]))
                    member.asked[future] = member.waiting.popleft()
            except LOST as error:
                self._replace(member, error)

    def _take(self, pieces: dict[int, Any]) -> None:
        """Wait for an answer, and take all that are there."""
        wait([future for member in self._members for future in member.asked], return_when=FIRST_COMPLETED)
        for member in self._members:
            try:
                for future in [future for future in member.asked if future.done()]:
                    member.check_orders()
                    found, failed = future.result()
                    numbers = member.asked.pop(future)
                    pieces.update(zip(numbers, found, strict=failed is None))
                    if failed is not None:
                        pieces[numbers[len(found)]] = _Failed(failed)
                    member.answered += numbers
            except LOST as error:
                self._replace(member, error)

    def _replace(self, member: _Member, error: Exception) -> None:
        """Let another worker take over the shards of one that is gone, from where it was."""
        member.waiting = deque(sorted(chain(member.asked.values(), member.waiting)))
        member.asked = {}
        while True:
            lost, member.seat = member.seat, self._hall.instead_of(member.seat)
            _LOG.warning("%s is gone (%s): its shards go to %s", lost.name, error or "killed", member.seat.name)
            try:
                self._start(member)
                for content in self._left:
                    member.order(Desk.begin, content)
                    self._do_again(member, member.shards)
                if self._content:
                    member.begin(self._content)
                    self._do_again(member, member.answered if self._leaves else [])
            except LOST as another:
                error = another
            else:
                return

    def _start(self, member: _Member) -> None:
        member.key, member.orders, member.begun = secrets.token_hex(8), [], None
        member.order(Desk.start, self._work, member.seat.place)

    def _do_again(self, member: _Member, numbers: Sequence[int]) -> None:
        """Do the task once more on some shards, as many at a time as in a request."""
        for start in range(0, len(numbers), _MOST_SHARDS):
            member.order(Desk.again, self._of(numbers[start : start + _MOST_SHARDS]))

    def _of(self, numbers: Sequence[int]) -> list[Any]:
        return [self._shards[number] for number in numbers]


@dataclass(frozen=True)
class _Failed:
    """Stands for a piece that could not be made."""

    error: OnnxCbqError


def check_lost(times: int, workers: int) -> None:
    """Raise if so many workers have been lost that others would be, too."""
    if times > MOST_LOST * workers:
        raise WorkerError(
            f"{times} workers ended without a word, the last one just now; they may lack memory: give fewer --workers, "
            f"or fewer samples"
        )
