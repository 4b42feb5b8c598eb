"""Who works over the samples: settings, and the engine that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from onnx_cbq.execution.engine import Engine, InProcess, Place
from onnx_cbq.execution.processes import processes
from onnx_cbq.runtime import CPU, find_provider
from onnx_cbq.settings import MACHINES, check, check_kinds, option
from onnx_cbq.system.workers import cores


@dataclass(frozen=True)
class ExecutionConfig:
    """Who works over the samples. The result is the same, bit for bit, whoever does; the provider alone changes digits.

    Attributes:
        workers: processes that share the samples, with the same result; 0 for this one alone.
        threads: threads that each process runs the model with; 0 for all cores, or for their share of them.
        dask: scheduler of a Dask cluster that shares the samples, or local to start one.
        provider: what onnxruntime runs the float model on: cuda, openvino and the like, with a device behind a colon if
            there are several; files are checked and evaluated on the CPU all the same.
    """

    workers: int = option(0, MACHINES, "N")
    threads: int = option(0, MACHINES, "N")
    dask: str | None = option(None, MACHINES, "ADDRESS")
    provider: str = option(CPU, MACHINES, "NAME[:DEVICE]")

    def __post_init__(self) -> None:
        check_kinds(self)
        check(self.workers >= 0, "--workers", "a number of at least 0", self.workers)
        check(self.threads >= 0, "--threads", "a number of at least 0", self.threads)
        find_provider(self.provider)

    @contextmanager
    def open(self) -> Iterator[Engine]:
        """The engine; its workers end with the block.

        Raises:
            WorkerError: they cannot be reached, or do not fit.
        """
        place = Place(self.threads, self.provider)
        if self.dask is not None:
            from onnx_cbq.execution.cluster import cluster  # noqa: PLC0415, an extra that few have

            with cluster(self.dask, self.workers, place) as engine:
                yield engine
        elif self.workers:
            share = self.threads or max(cores() // self.workers, 1)
            with processes(self.workers, replace(place, threads=share)) as engine:
                yield engine
        else:
            yield InProcess(place)


ALONE = ExecutionConfig()
