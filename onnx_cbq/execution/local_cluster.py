"""A Dask cluster on this machine: scheduler and nannies in one process, and a process for each worker.

They talk over the loopback interface, encrypted with keys that are made for this run alone: another user of the machine
could otherwise let the workers run anything. Ctrl-C is for whoever started them; they end when that process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from onnx_cbq.errors import WorkerError
from onnx_cbq.execution.processes import without_main
from onnx_cbq.system.extras import extra

HOST = "127.0.0.1"
# Seconds until it has to stand, on a machine that does much else; and until it is ended by force.
_START, _END = 120, 10


@contextlib.contextmanager
def local_cluster(distributed: Any, workers: int) -> Iterator[tuple[str, Any]]:
    """The address of its scheduler, and what a client needs to talk to it.

    Raises:
        ConfigError: what makes keys is not installed.
        WorkerError: it does not start.
    """
    extra("cryptography", "dask", "--dask local")
    security = distributed.Security.temporary()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, workers, security), name="Dask")
    with without_main():
        process.start()
    theirs.close()
    try:
        address = ours.recv() if ours.poll(_START) else None
    except EOFError:
        address = None
    try:
        if address is None:
            raise WorkerError("--dask local: no cluster could be started here; use --workers")
        yield address, security
    finally:
        ours.close()
        process.join(_END)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(pipe: Connection, workers: int, security: Any) -> None:
    """Be the cluster until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit that
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    import dask  # noqa: PLC0415, of an extra
    import distributed  # noqa: PLC0415

    # No pages, nor any other questions over HTTP.
    quiet: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host=HOST,
            dashboard_address=f"{HOST}:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            security=security,
        ) as cluster,
    ):
        pipe.send(cluster.scheduler_address)
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
