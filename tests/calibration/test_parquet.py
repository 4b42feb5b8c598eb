"""Parquet files as they are published: columns, classes, groups of rows, and files that are traps."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.calibration.parquet import ParquetSource
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.system import extras
from tests.calibration.packing import image, opened, values

pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}


def write(
    path: Path,
    numbers: Sequence[int],
    labels: Sequence[Any] | None = None,
    features: dict[str, Any] | None = FEATURES,
    **columns: Any,
) -> Path:
    """A file of images as the `datasets` library writes one, in groups of two rows."""
    found = {
        "image": [{"bytes": image(i), "path": f"{i}.png"} for i in numbers],
        "label": [i % 2 for i in numbers] if labels is None else labels,
    }
    table = pa.table({name: pa.array(column) for name, column in {**found, **columns}.items() if column is not None})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_published_set_is_read_with_its_classes(tmp_path: Path) -> None:
    found = opened(write(tmp_path / "a.parquet", range(5)))
    assert (found.class_names, found.labels.tolist()) == (("dog", "cat"), [0, 1, 0, 1, 0])
    assert values(found) == [0, 1, 2, 3, 4]
    assert [int(x) for x in found.read("x", [4, 1, 4])[:, 0, 0, 0]] == [4, 1, 4]
    assert found.describe(3) == f"{tmp_path}/a.parquet: row 3"
    assert found.of_images


@pytest.mark.parametrize("name", ["t-*.parquet", "t-{0..1}.parquet", "."])
def test_several_files_make_one_set(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t-1.parquet", [7])
    write(tmp_path / "t-0.parquet", [3, 4, 5])
    found = opened(tmp_path / name)
    assert (values(found), found.labels.tolist()) == ([3, 4, 5, 7], [1, 0, 1, 1])


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(("cat", "dog"), [1, 0]), (("dog", "cat"), [0, 1]), (("Hund", "Katze"), [0, 1])],
)
def test_card_gives_the_order_or_other_names(tmp_path: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    """The same names in another order are another order; other names are translations."""
    found = opened(write(tmp_path / "a.parquet", [0, 1]), classes=classes)
    assert found.labels.tolist() == labels


def test_plain_bytes_and_names_do_without_what_the_library_says(tmp_path: Path) -> None:
    columns = {"image": None, "file": [image(1), image(2)], "width": [4, 4]}
    found = opened(write(tmp_path / "a.parquet", [1, 2], ["cat", "ant"], None, **columns))
    assert (found.class_names, found.labels.tolist(), values(found)) == (None, ["cat", "ant"], [1, 2])
    ordered = opened(tmp_path / "a.parquet", classes=("cat", "ant", "bee"))
    assert ordered.labels.tolist() == [0, 1]


def test_card_names_the_column_of_the_labels(tmp_path: Path) -> None:
    """CIFAR-100 has fine and coarse ones."""
    features = {"fine": FEATURES["label"], "coarse": FEATURES["label"]}
    path = write(tmp_path / "a.parquet", [1, 2], None, features, label=None, fine=[1, 0], coarse=[0, 0])
    with pytest.raises(
        CalibrationError, match=r'2 columns may hold .*; set labels = "\.\.\." in the card to one of \['
    ):
        opened(path)
    assert opened(path, labels="fine").labels.tolist() == [1, 0]
    assert opened(path, labels="coarse").labels.tolist() == [0, 0]
    with pytest.raises(CalibrationError, match=r"'find' is no column of numbers or names"):
        opened(path, labels="find")


def test_what_a_file_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(CalibrationError, match=r"0 columns hold files, expected one of bytes, or of a struct"):
        opened(write(path, [1], image=None))
    with pytest.raises(CalibrationError, match=r"2 columns hold files"):
        opened(write(path, [1], mask=[image(3)]))
    with pytest.raises(CalibrationError, match=r"row 1: 'label': label None; expected a whole number"):
        opened(write(path, [1, 2], [0, None]))
    with pytest.raises(CalibrationError, match=r"a\.parquet: row 1: cannot be read as an image \(there are no bytes"):
        opened(write(path, [1, 2], image=[{"bytes": image(1)}, {"bytes": None}])).read("x", [0, 1])
    assert opened(path, skip_unreadable=True).skipped == 1


def test_files_of_two_sets_are_no_set(tmp_path: Path) -> None:
    write(tmp_path / "t-0.parquet", [1])
    write(tmp_path / "t-1.parquet", [1], None, {"label": {"names": ["a", "b"], "_type": "ClassLabel"}})
    with pytest.raises(CalibrationError, match=r"t-1\.parquet: has other classes than .*t-0\.parquet; name files of"):
        opened(tmp_path / "t-*.parquet")


@pytest.mark.parametrize("metadata", [b"", b"[]", b'{"info": 3}', b'{"info": {"features": []}}', b"[" * 100_000])
def test_damaged_metadata_says_nothing(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [image(1)], "label": [3]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    found = opened(tmp_path / "a.parquet")
    assert (found.class_names, found.labels.tolist()) == (None, [3])


def test_value_that_many_rows_share_is_held_once(tmp_path: Path) -> None:
    """A kilobyte stands for 15 GB of images."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([image(1) + bytes(5_000_000)]))
    table = pa.table({"image": pa.StructArray.from_arrays([shared], ["bytes"]), "label": pa.array([0] * 3000)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    found = opened(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    assert found.read("x", [0, 2999]).shape == (2, 4, 4, 3)
    assert pa.total_allocated_bytes() - before < 20_000_000


def test_rows_that_take_no_bytes_are_refused(tmp_path: Path) -> None:
    count = 2_000_000
    table = pa.table({"image": pa.nulls(count, pa.binary()), "label": pa.nulls(count, pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(CalibrationError, match=r"2,000,000 rows in [\d,]+ bytes, expected 1,048,576 at most; set ONNX"):
        opened(tmp_path / "a.parquet")


def test_group_of_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_CBQ_ALLOWANCE", "0.000001")
    monkeypatch.setattr("onnx_cbq.calibration.parquet._MOST_ROWS", 1 << 40)
    path = write(tmp_path / "a.parquet", range(4), image=[image(i) + bytes(5000) for i in range(4)])
    with pytest.raises(CalibrationError, match=r"a group of rows takes [\d,]+ bytes, expected 1,073 at most; write it"):
        opened(path)


def refusal(path: Path) -> str:
    """What is said of a file whose samples are read; nothing if they can be."""
    try:
        found = opened(path, resize=(4, 4))
        found.read("x", range(len(found.labels)))
    except CalibrationError as error:
        return str(error)
    return ""


def test_changed_and_cut_files_are_used_or_refused_in_one_line(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = write(tmp_path / "a.parquet", range(6))
    content, refused = path.read_bytes(), 0
    for trial in range(150):
        changed = bytearray(content)
        changed[random.integers(0, len(content))] = int(random.integers(0, 256))
        path.write_bytes(changed[: random.integers(1, len(content))] if trial % 5 == 0 else changed)
        message = refusal(path)
        refused += bool(message)
        assert "\n" not in message
        assert len(message) < 1000
    assert refused >= 10


def test_memory_does_not_grow_with_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of rows are kept up to some bytes, whatever the number of files."""
    monkeypatch.setattr("onnx_cbq.calibration.parquet._KEPT_BYTES", 100_000)
    peaks = []
    for count in (2, 12):
        (tmp_path / str(count)).mkdir()
        for i in range(count):
            rows = [image(row % 200) + bytes([i, row]) + bytes(9998) for row in range(40)]
            write(tmp_path / str(count) / f"{i}.parquet", range(40), image=rows)
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        found, highest = opened(tmp_path / str(count)), 0
        assert isinstance(found, ParquetSource)
        for start in range(0, 40 * count, 8):
            found.read("x", range(start, start + 8))
            highest = max(highest, pa.total_allocated_bytes() - before)
        peaks.append(highest + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10 * 40_000 + 400_000


def test_missing_library_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras, "import_module", missing)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ConfigError, match=r"a\.parquet: needs pyarrow\.parquet, .* pip install 'onnx-cbq\[parquet\]'"):
        opened(tmp_path / "a.parquet")
