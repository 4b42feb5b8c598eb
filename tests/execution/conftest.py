"""Every engine, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onnx_cbq.execution import InProcess, Place
from onnx_cbq.execution.cluster import LOCAL, Cluster, cluster
from onnx_cbq.execution.engine import Engine
from onnx_cbq.execution.processes import Processes, processes

ONE = Place(threads=1)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Processes]:
    with processes(2, ONE) as engine:
        yield engine


@pytest.fixture(scope="session")
def two_of_dask() -> Iterator[Cluster]:
    with cluster(LOCAL, 2, ONE) as engine:
        yield engine


@pytest.fixture(params=["here", "processes", "dask"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """One after another."""
    if request.param == "here":
        return InProcess(ONE)
    found: Engine = request.getfixturevalue({"processes": "two_processes", "dask": "two_of_dask"}[request.param])
    return found


@pytest.fixture(params=["processes", "dask"])
def remote(request: pytest.FixtureRequest) -> Engine:
    """Those whose workers are other processes."""
    found: Engine = request.getfixturevalue({"processes": "two_processes", "dask": "two_of_dask"}[request.param])
    return found
