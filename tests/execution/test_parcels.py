"""What a worker makes of a parcel: the same arrays, models and samples, without large arrays in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.opening import SOURCES
from onnx_cbq.calibration.sources import PlacedSource, Source
from onnx_cbq.errors import CalibrationError, WorkerError
from onnx_cbq.execution import ModelFile
from onnx_cbq.execution.engine import Engine
from onnx_cbq.execution.parcels import LARGE, Spool, pack, unpack
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from tests.calibration import packing
from tests.calibration.packing import PETS, image, opened
from tests.calibration.test_manifest import write as write_list
from tests.execution.works import Keep, Read, Value
from tests.graphs import make_model, node

LARGE_ARRAY = np.random.default_rng(0).standard_normal(LARGE // 8)


def test_a_large_array_is_written_once_and_mapped() -> None:
    """Every task of a run names the same weights; each worker would read them anew, and the disk would fill up."""
    with Spool.open() as spool:
        first, second = pack({"a": LARGE_ARRAY}, spool), pack((LARGE_ARRAY, LARGE_ARRAY[1:]), spool)
        assert [path.stat().st_size for path in spool.folder.iterdir()] == [LARGE]
        assert len(first) + len(second) < LARGE + 4096  # what is too small to be written, and names
        found = unpack(first)["a"]
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        for one, expected in ((found, LARGE_ARRAY), *zip(unpack(second), (LARGE_ARRAY, LARGE_ARRAY[1:]), strict=True)):
            np.testing.assert_array_equal(one, expected)
        del found, one
    assert not spool.folder.exists()


def test_an_array_that_takes_the_place_of_another_is_another() -> None:
    """The spool knows arrays by their address; one that is gone must not lend it to the next."""
    with Spool.open() as spool:
        for number in range(8):
            np.testing.assert_array_equal(unpack(pack(np.full(LARGE // 8, number), spool)), number)


@pytest.mark.parametrize(
    "value",
    [LARGE_ARRAY[::2], LARGE_ARRAY.reshape(2, -1).T, np.zeros(0), np.array(3.0), np.array(["a", None] * LARGE)],
    ids=["strides", "turned", "empty", "scalar", "objects"],
)
def test_other_arrays_travel_as_they_are(value: Array) -> None:
    with Spool.open() as spool:
        found = unpack(pack(value, spool))
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype


@pytest.mark.parametrize("spooled", [True, False])
def test_what_was_mapped_is_named_by_its_place_or_sent(tmp_path: Path, *, spooled: bool) -> None:
    """Where workers see the files nothing is copied; elsewhere a map of a file that is not there helps nobody."""
    (tmp_path / "data").write_bytes(b"\0" * 16 + LARGE_ARRAY.tobytes())
    mapped = np.memmap(tmp_path / "data", np.float64, "r", 16)
    with Spool.open() as spool:
        parcel = pack(mapped, spool if spooled else None)
        assert not list(spool.folder.iterdir())
    assert (len(parcel) < 1000) is spooled
    if not spooled:
        (tmp_path / "data").unlink()
    np.testing.assert_array_equal(unpack(parcel), LARGE_ARRAY)


def test_a_file_that_a_worker_does_not_see_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(LARGE_ARRAY.tobytes())
    with Spool.open() as spool:
        parcel = pack(np.memmap(tmp_path / "data", np.float64, "r"), spool)
    (tmp_path / "data").unlink()
    with pytest.raises(WorkerError, match=rf"{tmp_path}/data: a worker on .* cannot read it"):
        unpack(parcel)


def test_a_model_with_external_data_runs_elsewhere(tmp_path: Path, engine: Engine) -> None:
    weight = np.arange(LARGE, dtype=np.float32).reshape(-1, 4)
    proto = make_model([node("MatMul", "x w")], {"x": ["N", len(weight)]}, ["y"], {"w": weight})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    with engine.crew(Keep(model), [0, 1]) as crew:
        for found in crew.each(Value()):
            np.testing.assert_array_equal(found.weight("w"), weight)
            assert found.outputs == model.outputs


def test_a_file_to_run_is_named_wherever_a_worker_is_or_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster is in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.onnx").write_bytes(b"bytes")
    file = ModelFile(Path("q.onnx"), float_weights=True)
    with Spool.open() as spool:
        assert unpack(pack(file, spool)) == replace(file, path=tmp_path / "q.onnx")
    assert unpack(pack(file)) == replace(file, path=tmp_path / "q.onnx", content=b"bytes")


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(TypeError, match="lambda"):
        pack(lambda: 0)


def _npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.arange(24.0).reshape(3, 8), y=[0, 1, 0])
    return folder / "a.npz"


def _npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.arange(24.0).reshape(3, 8))
    np.save(folder / "l.npy", [0, 1, 0])
    return folder / "a.npy"


def _folder(folder: Path) -> Path:
    for name, content in PETS.items():
        (folder / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pets" / name).write_bytes(content)
    return folder / "pets"


def _manifest(folder: Path) -> Path:
    _folder(folder)
    return write_list(folder, [("pets/dog/1.png", "dog"), ("pets/cat/b.png", "cat")], ".csv")


def _parquet(folder: Path) -> Path:
    pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")
    from tests.calibration.test_parquet import write  # noqa: PLC0415, which needs it, too

    return write(folder / "a.parquet", range(5))


MADE: dict[str, Callable[[Path], Path]] = {
    "NpzSource": _npz,
    "NpySource": _npy,
    "FolderSource": _folder,
    "ZipSource": lambda folder: packing.pack(folder / "a.zip", PETS),
    "TarSource": lambda folder: packing.pack(folder / "a.tar.gz", PETS),
    "ManifestSource": _manifest,
    "ParquetSource": _parquet,
}


def same(found: Source, expected: Source) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.label, found.class_names, found.inputs) == (expected.label, expected.class_names, expected.inputs)
    for name in expected.inputs:
        numbers = range(len(expected.labels))
        np.testing.assert_array_equal(found.read(name, numbers), expected.read(name, numbers))


@pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.__name__)
def test_every_source_is_opened_again(
    kind: type[PlacedSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open files and pools of threads do not travel; and a worker may be in another folder."""
    path = MADE[kind.__name__](tmp_path)
    monkeypatch.chdir(tmp_path)
    labels = "l.npy" if path.suffix == ".npy" else None
    source = opened(path.relative_to(tmp_path), labels=labels)
    assert isinstance(source, kind)
    parcel = pack(source)
    os.chdir("/")
    same(unpack(parcel), opened(path, labels=labels))


def test_what_was_left_out_stays_out_and_sizes_stay(tmp_path: Path, remote: Engine) -> None:
    """A worker does not look at all files again; and decodes to the size that the model wants."""
    path = _folder(tmp_path)
    (path / "cat" / "a.png").write_bytes(b"none")
    (path / "cow").mkdir()
    (path / "cow" / "1.png").write_bytes(image(9, 8))
    data = CalibrationSet.of_card(Card(path, resize=(6, 6)), skip_unreadable=True)
    model = load(make_model([node("Relu", "x")], {"x": ["N", 3, 6, 6]}, ["y"]))
    samples = data.for_model(model.inputs)
    expected = samples.read(range(3))["x"]
    assert expected.shape == (3, 3, 6, 6)
    with remote.crew(Keep(samples), [0]) as crew:
        ((skipped, found),) = crew.each(Read(3))
    assert skipped == 1
    np.testing.assert_array_equal(found["x"], expected)


def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path, remote: Engine) -> None:
    path = _folder(tmp_path)
    source = opened(path)
    (path / "cat" / "c.png").write_bytes(image(7))
    with (
        remote.crew(Keep(source), [0]) as crew,
        pytest.raises(CalibrationError, match=r"pets: a worker finds 4 samples there, or other labels, and the"),
    ):
        list(crew.each(Value()))


def test_samples_that_a_worker_cannot_find_are_named(tmp_path: Path, remote: Engine) -> None:
    path = _npz(tmp_path)
    source = opened(path)
    path.unlink()
    with (
        remote.crew(Keep(source), [0]) as crew,
        pytest.raises(CalibrationError, match=r"a\.npz.*; a worker on .* reads samples by itself"),
    ):
        list(crew.each(Value()))
