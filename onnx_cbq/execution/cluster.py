"""Workers of a Dask cluster: one that is there (`--dask ADDRESS`), or one that is started here (`--dask local`).

A worker of ours is a worker process of Dask. What it holds is the result of a task that stays with it, so that the
cluster lets go of it when this process ends, however it ends. Everything else is a parcel that goes there, and one that
comes back. Workers that see the files of this process map models and samples; to others the bytes are sent.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import warnings
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError as Cancelled
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from onnx_cbq.errors import ConfigError, WorkerError
from onnx_cbq.execution.crew import R, RemoteCrew, Seat, check_lost
from onnx_cbq.execution.engine import Crew, H, Place, S, Work
from onnx_cbq.execution.fitness import check_alike, who_sees
from onnx_cbq.execution.lending import Lender
from onnx_cbq.execution.local_cluster import local_cluster
from onnx_cbq.execution.parcels import Spool, pack, unpack
from onnx_cbq.execution.worker import Desk, SeatLostError, carried
from onnx_cbq.system.extras import extra
from onnx_cbq.system.workers import cores

LOCAL = "local"
_ADDRESS = re.compile(r"(?:(?:tcp|tls)://)?(?:[^\s/:@]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
# Seconds until a scheduler has to answer, and until another worker has to be there where all are lost: one that a nanny
# starts takes some of them.
PATIENCE, RETURN = 10, 30
# Seconds between two looks at whether a worker is still there.
_LOOK = 1.0
# Parcels of so many bytes go to the worker first, since what is told to the scheduler it keeps.
_LARGE = 1 << 20


@dataclass(eq=False)
class ClusterSeat:
    """A worker of a cluster, and a thread here that waits for it."""

    client: Any
    address: str
    place: Place
    _desk: Any = field(init=False, repr=False)
    _thread: ThreadPoolExecutor = field(init=False, repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self._desk = self._submit(Desk)
        self._thread = ThreadPoolExecutor(1, f"onnx-cbq {self.address}")

    @property
    def name(self) -> str:
        """As the cluster calls it."""
        return f"Dask worker {self.address}"

    def submit(self, order: Callable[..., R], *values: Any) -> Future[R]:
        """See `crew.Seat`."""
        if self._closed.is_set():
            raise SeatLostError("given up")
        return self._thread.submit(self._do, pack((order, values)))

    def close(self) -> None:
        """Let go of what it holds; what it does is not waited for."""
        self._closed.set()
        # What waits is not cancelled: it ends at once as lost, and whoever waits for it hears of that.
        self._thread.shutdown(wait=True)
        self._desk.release()

    def _do(self, parcel: bytes) -> Any:
        if self._closed.is_set():
            raise SeatLostError("given up")
        try:
            return unpack(self._carried(parcel))
        except (CancelledError, Cancelled):
            if self.client.status != "running":
                raise _scheduler_gone() from None
            raise SeatLostError("given up") from None

    def _carried(self, parcel: bytes) -> bytes:
        sent: Any = parcel
        if len(parcel) > _LARGE:
            try:
                sent = self.client.scatter(parcel, workers=[self.address], hash=False)
            except (OSError, ValueError, TimeoutError, KeyError) as error:
                raise SeatLostError(_said(error)) from None
        answer, there = self._submit(carried, self._desk, sent), threading.Event()
        answer.add_done_callback(lambda _: there.set())
        patience = _LOOK
        while True:
            while not there.wait(_LOOK):
                self._check()
            try:
                return bytes(answer.result(timeout=patience))
            except TimeoutError:
                if answer.status == "error":  # the worker's own
                    raise
                # It is large, or was lost on its way: then the cluster waits for this very worker.
                self._check()
                patience *= 2
            except Exception as error:
                if type(error).__name__ == "KilledWorker":
                    raise SeatLostError("killed") from None
                raise

    def _submit(self, function: Callable[..., Any], *values: Any) -> Any:
        """A task of Dask that only this worker does, once."""
        where = {"workers": [self.address], "allow_other_workers": False}
        return self.client.submit(function, *values, **where, pure=False, retries=0)

    def _check(self) -> None:
        """Raise if nothing is to come any more."""
        if self._closed.is_set():
            raise SeatLostError("given up")
        if self.address not in _workers(self.client):
            raise SeatLostError("no longer in the cluster")


@dataclass
class Cluster:
    """Workers of `--dask`.

    Attributes:
        client: of Dask.
        most: of all workers, so many are used; 0 for all.
        place: what each has to run models with; without a number of threads as many as the worker has.
        spool: a folder that all of them see, if there is one.
    """

    client: Any
    most: int
    place: Place
    spool: Spool | None = None
    _lender: Lender | None = None
    _seats: dict[str, ClusterSeat] = field(default_factory=dict)
    _used: int = 0
    _lost: int = 0

    def crew(self, work: Work[H], shards: Sequence[S]) -> Crew:
        """See `engine.Engine`."""
        return RemoteCrew(self, work, shards)

    def pack(self, value: object) -> bytes:
        """A parcel whose large arrays lie in the spool; without one they are in it, and files are not needed."""
        if self.spool is not None:
            return pack(value, self.spool)
        self._lender = self._lender or Lender(self.client)
        return pack(value, None, self._lender.ticket)

    def seats(self) -> Sequence[Seat]:
        """Those that are left."""
        return list(self._seats.values())

    def instead_of(self, lost: Seat) -> Seat:
        """A worker that was not used so far, perhaps one that was started just now; else the next that is left."""
        assert isinstance(lost, ClusterSeat)
        if self._seats.get(lost.address) is lost:  # the first crew that misses it
            self._lost += 1
            check_lost(self._lost, self._used)
            del self._seats[lost.address]
            lost.close()
        until = time.monotonic() + RETURN
        while True:
            there = _workers(self.client)
            fresh = [address for address in there if address not in self._seats and address != lost.address]
            for address in self._fit(fresh):
                return self._take(address, there[address])
            left = [seat for address, seat in self._seats.items() if address in there]
            if left:
                return left[self._lost % len(left)]
            if time.monotonic() > until:
                raise WorkerError(
                    f"--dask: the last worker of the cluster is gone, and within {RETURN} seconds no other has come; "
                    f"start workers again, with more memory if that was it"
                )
            time.sleep(_LOOK / 4)

    def begin(self, spool: Spool) -> None:
        """Take workers in, once it is sure that they compute what this process would; with the spool if they see it.

        Raises:
            WorkerError: there are none, or one differs.
        """
        there = _workers(self.client)
        until = time.monotonic() + PATIENCE
        while not there and time.monotonic() < until:
            time.sleep(_LOOK / 4)
            there = _workers(self.client)
        if not there:
            raise WorkerError(
                "--dask: the scheduler has no workers; start some with dask worker ADDRESS, then run this again"
            )
        chosen = sorted(there)[: self.most or None]
        check_alike(self.client, chosen)
        if who_sees(self.client, chosen, spool.folder) == chosen:
            self.spool = spool
        for address in chosen:
            self._take(address, there[address])

    def close(self) -> None:
        """Let go of all workers."""
        for seat in self._seats.values():
            seat.close()
        self._seats.clear()
        if self._lender is not None:
            self._lender.close()

    def _take(self, address: str, threads: int) -> ClusterSeat:
        place = self.place if self.place.threads else replace(self.place, threads=threads)
        self._seats[address] = ClusterSeat(self.client, address, place)
        self._used = max(self._used, len(self._seats))
        return self._seats[address]

    def _fit(self, addresses: Sequence[str]) -> Sequence[str]:
        """Those that can take over."""
        if not addresses:
            return []
        try:
            check_alike(self.client, addresses)
            return addresses if self.spool is None else who_sees(self.client, addresses, self.spool.folder)
        except WorkerError:
            return []


@contextlib.contextmanager
def cluster(address: str, workers: int, place: Place) -> Iterator[Cluster]:
    """The workers of a scheduler, or with `LOCAL` those of a cluster of so many that is there for the block.

    At most `workers` are used; 0 stands for all there are, and for a local cluster for as many as there are cores.

    Raises:
        ConfigError: Dask is not installed, or the address is none.
        WorkerError: nobody answers there, there is no worker, or one is not like this process.
    """
    distributed = extra("distributed", "dask", "--dask")
    if address != LOCAL and not _ADDRESS.fullmatch(address):
        raise ConfigError(
            f"--dask {address!r}: is no address of a scheduler; expected tcp://HOST:PORT, tls://HOST:PORT, or local"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        security = None
        if address == LOCAL:
            place = place if place.threads else replace(place, threads=1)
            address, security = stack.enter_context(local_cluster(distributed, workers or cores()))
        client = _connect(distributed, address, security)
        stack.callback(_disconnect, client)
        found = Cluster(client, workers, place)
        spool = stack.enter_context(Spool.open())
        stack.callback(found.close)
        found.begin(spool)
        yield found


def _connect(distributed: Any, address: str, security: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions: they are compared below, in our words
            return distributed.Client(address, timeout=PATIENCE, security=security, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise WorkerError(
            f"--dask {address}: no Dask scheduler answers there within {PATIENCE} seconds ({_said(error)}); check the "
            f"address, and whether it wants tls://"
        ) from None
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise WorkerError(
            f"--dask {address}: cannot be reached ({_said(error)}); for tls:// set the certificates in Dask's "
            f"configuration, see docs/workers.md"
        ) from None


def _disconnect(client: Any) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        client.close(timeout=PATIENCE)


def _workers(client: Any) -> dict[str, int]:
    """The address of every worker there is, and its threads.

    Raises:
        WorkerError: the scheduler is gone.
    """
    try:
        return dict(client.nthreads())
    except (OSError, TimeoutError, RuntimeError, ValueError):
        raise _scheduler_gone() from None


def _scheduler_gone() -> WorkerError:
    return WorkerError("--dask: the scheduler no longer answers; start it again, then run this again")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Dask writes nothing of its own to the terminal: what matters is said in our errors."""
    names = "distributed", "tornado", "asyncio"
    kept = {one: one.disabled for name in names for one in (logging.getLogger(name), *_below(name))}
    for one in kept:
        one.disabled = True
    try:
        yield
    finally:
        for one, disabled in kept.items():
            one.disabled = disabled


def _below(name: str) -> Iterator[logging.Logger]:
    for key, one in list(logging.Logger.manager.loggerDict.items()):
        if key.startswith(f"{name}.") and isinstance(one, logging.Logger):
            yield one
