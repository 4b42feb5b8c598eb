"""Workers of Dask: who is taken in, what is refused in one line, what is sent where files are not seen."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.draw import draw
from onnx_cbq.errors import CalibrationError, ConfigError, WorkerError
from onnx_cbq.evidence.tensors import collect_histograms
from onnx_cbq.execution import Place
from onnx_cbq.execution import cluster as clusters
from onnx_cbq.execution.cluster import Cluster, cluster
from onnx_cbq.execution.fitness import PACKAGES, check_alike
from onnx_cbq.execution.local_cluster import local_cluster
from onnx_cbq.execution.parcels import Spool
from onnx_cbq.graph.load import load
from tests.calibration.packing import PETS, image
from tests.execution.works import Keep, Note, Value
from tests.graphs import make_model, node

ONE = Place(threads=1)


@dataclass
class Others:
    """A client of workers that differ from this process in one answer."""

    address: str
    function: object
    answer: Any
    values: tuple[Any, ...] = ()

    def run(self, function: Callable[..., Any], *values: Any, workers: list[str], on_error: str) -> dict[str, Any]:
        assert on_error == "return"
        found = {address: function(*values) for address in workers}
        if function is self.function and values == self.values:
            found[self.address] = self.answer
        return found


def test_workers_like_this_process_are_taken(two_of_dask: Cluster) -> None:
    assert two_of_dask.spool is not None, "they see its files"
    assert [seat.place for seat in two_of_dask.seats()] == [ONE, ONE]


@pytest.mark.parametrize("package", PACKAGES)
def test_another_version_is_named_with_its_worker(package: str) -> None:
    client = Others("tcp://b:1", metadata.version, "0.0.9", (package,))
    with pytest.raises(WorkerError) as caught:
        check_alike(client, ["tcp://a:1", "tcp://b:1"])
    assert str(caught.value) == (
        f"--dask: worker tcp://b:1 has {package} 0.0.9, expected {metadata.version(package)}, as here; install the "
        f"same versions where the workers run"
    )


def test_a_missing_package_and_a_worker_that_does_not_answer_are_named() -> None:
    missing = metadata.PackageNotFoundError("onnx-cbq")
    with pytest.raises(WorkerError, match="tcp://a:1 has onnx-cbq missing, expected "):
        check_alike(Others("tcp://a:1", metadata.version, missing, ("onnx-cbq",)), ["tcp://a:1"])
    gone = OSError("Timed out")
    with pytest.raises(WorkerError, match=r"tcp://a:1 does not answer \(Timed out\)"):
        check_alike(Others("tcp://a:1", metadata.version, gone, ("onnx",)), ["tcp://a:1"])


def test_another_kind_of_processor_is_refused() -> None:
    """The last digits of sums depend on it, and every engine has to give the same bytes."""
    from onnx_cbq.execution.worker import arithmetic  # noqa: PLC0415, the very function that is asked

    with pytest.raises(WorkerError, match="tcp://a:1 computes with avx1024, blas, and this process with "):
        check_alike(Others("tcp://a:1", arithmetic, ("avx1024", "blas")), ["tcp://a:1"])


@pytest.mark.parametrize("address", ["", "here", "http://a:1", "tcp://a", "tcp://a:b", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match="is no address of a scheduler; expected tcp://HOST:PORT, tls://HOST:PORT, or"),
        cluster(address, 0, ONE),
    ):
        pass


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_nobody_there_is_one_line(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing of what Dask writes of its own."""
    monkeypatch.setattr(clusters, "PATIENCE", 1)
    address = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(WorkerError, match=rf"^--dask {address}: ") as caught, cluster(address, 0, ONE):
        pass
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_scheduler_without_workers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", 1)
    with (
        local_cluster(distributed, 0) as (address, security),
        clusters._connect(distributed, address, security) as client,
        Spool.open() as spool,
        pytest.raises(WorkerError, match="the scheduler has no workers; start some with dask worker"),
    ):
        Cluster(client, 0, ONE).begin(spool)


@pytest.fixture
def far(two_of_dask: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The same workers, as if they were on other machines."""
    monkeypatch.setattr(clusters, "who_sees", lambda *_: [])
    engine = Cluster(two_of_dask.client, 2, ONE)
    with Spool.open() as spool:
        engine.begin(spool)
        assert engine.spool is None
        yield engine
        engine.close()


def test_large_arrays_are_sent_where_files_are_not_seen(far: Cluster, tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal(1 << 18)
    (tmp_path / "data").write_bytes(value.tobytes())
    with far.crew(Keep((value, np.memmap(tmp_path / "data", np.float64, "r"))), [0, 1, 2]) as crew:
        for found in crew.each(Value()):
            for one in found:
                assert type(one) is np.ndarray
                np.testing.assert_array_equal(one, value)


def pets(folder: Path) -> CalibrationSet:
    """Samples of a folder that workers look for elsewhere."""
    for name, content in {**PETS, "cow/1.png": image(9), "cow/2.png": image(8)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = CalibrationSet.of_card(Card(folder))
    found.source.card = Card(folder / "not there")  # type: ignore[attr-defined]
    return found


def test_samples_are_sent_where_files_are_not_seen(far: Cluster, tmp_path: Path) -> None:
    """Only those of a batch at a time."""
    model = load(make_model([node("Relu", "x", "a"), node("Exp", "a")], {"x": ["N", 3, 4, 4]}, ["y"]))
    samples = pets(tmp_path).for_model(model.inputs)
    drawn = draw(samples.with_labels(np.array([0, 1, 0, 1, 0])), ("a", "b"), None, seed=0)
    assert len(drawn.indices) == 5
    expected = collect_histograms(model, ["x", "a"], samples, drawn, 2)
    sent: list[int] = []
    read = samples.data.source.read
    samples.data.source.read = lambda name, indices: (sent.append(len(indices)), read(name, indices))[1]  # type: ignore[method-assign, func-returns-value]
    found = collect_histograms(model, ["x", "a"], samples, drawn, 2, engine=far)
    for name, histogram in expected.items():
        np.testing.assert_array_equal(found[name].counts, histogram.counts)
        assert replace(found[name], counts=histogram.counts) == histogram
    assert sorted(sent) == [1, 2, 2]


def test_a_sample_that_cannot_be_read_is_named_there_too(far: Cluster, tmp_path: Path) -> None:
    model = load(make_model([node("Relu", "x", "a"), node("Exp", "a")], {"x": ["N", 3, 4, 4]}, ["y"]))
    samples = pets(tmp_path).for_model(model.inputs)
    (tmp_path / "cow" / "2.png").write_bytes(b"none")
    drawn = draw(samples.with_labels(np.array([0, 1, 0, 1, 0])), ("a", "b"), None, seed=0)
    with pytest.raises(CalibrationError, match=r"cow/2\.png"):
        collect_histograms(model, ["x", "a"], samples, drawn, 2, engine=far)


def test_the_last_worker_that_goes_is_one_line(far: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no nanny brings another one."""
    monkeypatch.setattr(clusters, "RETURN", 0)
    with far.crew(Keep(), [0, 1]) as crew:
        assert len(list(crew.each(Note(1)))) == 2
        monkeypatch.setattr(clusters, "_workers", lambda _: {})
        with pytest.raises(WorkerError, match="the last worker of the cluster is gone, and within 0 seconds no other"):
            list(crew.each(Note(2, at=1)))


def test_nothing_stays_with_a_worker_whose_run_is_over(two_of_dask: Cluster) -> None:
    """It must not leave its model in the memory of somebody's cluster; Dask does the same where a client is gone."""
    engine = Cluster(two_of_dask.client, 2, ONE)
    with Spool.open() as spool:
        engine.begin(spool)
        desks = {seat._desk.key for seat in engine._seats.values()}
        list(engine.crew(Keep(np.zeros(10)), [0, 1]).each(Value()))
        assert desks <= _held(two_of_dask)
        engine.close()
    until = time.monotonic() + 10
    while desks & _held(two_of_dask) and time.monotonic() < until:
        time.sleep(0.1)
    assert not desks & _held(two_of_dask)


def _held(engine: Cluster) -> set[str]:
    """Results that workers keep for somebody."""
    return {key for keys in engine.client.has_what().values() for key in keys}
