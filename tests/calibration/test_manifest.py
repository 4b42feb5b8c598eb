"""Lists of files, and pairs of `.npy`: paths, labels, and what is wrong is named by its line."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec
from tests.calibration.packing import image, opened, values


def write(folder: Path, rows: list[tuple[object, object]], suffix: str, key: str = "label") -> Path:
    """A list with a column that nobody asked for."""
    path = folder / f"list{suffix}"
    if suffix == ".csv":
        lines = [f"split,{key},path", *(f'train,{label},"{name}"' for name, label in rows)]
    else:
        lines = [json.dumps({"path": name, key: label, "split": "train"}) for name, label in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 1 to 4, one of them elsewhere."""
    (tmp_path / "lists").mkdir()
    for i, name in enumerate(("lists/a, b.png", "lists/deep/down/c.PNG", "d.png", "e.png"), 1):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(i))
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_paths_are_relative_to_the_list_or_absolute(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    rows: list[tuple[object, object]] = [
        ("deep/down/c.PNG", 3),
        ("../d.png", 0),
        (str(folder / "e.png"), 1),
        ("a, b.png", 3),
    ]
    found = opened(write(folder / "lists", rows, suffix))
    assert (found.labels.tolist(), values(found)) == ([3, 0, 1, 3], [2, 3, 4, 1])
    assert found.describe(3) == f"{folder}/lists/a, b.png"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_are_names_or_numbers_as_the_card_lists_them(folder: Path, suffix: str) -> None:
    path = write(folder, [("d.png", "cat"), ("e.png", "ant")], suffix, "species")
    assert opened(path, labels="species").labels.tolist() == ["cat", "ant"]
    assert opened(path, labels="species", classes=("cat", "ant", "bee")).labels.tolist() == [0, 1]
    numbers = write(folder, [("d.png", 7), ("e.png", 3)], suffix)
    assert opened(numbers).labels.tolist() == [7, 3]
    assert opened(numbers, classes=("3", "7")).labels.tolist() == [1, 0]  # names that look like numbers


def test_several_lists_make_one_set(folder: Path) -> None:
    write(folder, [("d.png", 1)], ".csv").rename(folder / "part-1.csv")
    write(folder / "lists", [("a, b.png", 0)], ".csv").rename(folder / "part-0.csv")
    (folder / "a, b.png").write_bytes(image(9))
    found = opened(folder / "part-*.csv")
    assert (found.labels.tolist(), values(found)) == ([0, 1], [9, 3])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.csv", "file,label\nd.png,1\n", r"l\.csv: line 2 has no 'path'; expected 'path' and 'label', got \['file'"),
        ("l.csv", "path,label\nd.png,1\ne.png\n", "line 3 has no 'label'"),
        ("l.csv", "path,label\nd.png,\n", "line 2 has no 'label'"),
        ("l.csv", 'path,label\n"' + "x" * 200_000 + "\n", r"l\.csv: damaged behind line 1: field larger than"),
        ("l.csv", "path,label\nd.png,cat\ne.png,1\n", r"labels are numbers \(1\) and names \('cat'\)"),
        ("l.csv", "path,label\nd.txt,1\n", r"d\.txt: expected all files to be of one kind, \.png"),
        ("l.csv", "path,label\nd.png,1\nx.npy,1\n", r"x\.npy: expected all files to be of one kind"),
        ("l.csv", "", "no samples"),
        ("l.jsonl", '{"path": "d.png", "label": 1}\n[1]\n', r"damaged behind line 1: line 2 is \[1\], expected an obj"),
        ("l.jsonl", '{"path": "d.png"', r"l\.jsonl: damaged behind line 1"),
        ("l.jsonl", "[" * 100_000, r"l\.jsonl: damaged behind line 1"),
        ("l.jsonl", '{"path": 3, "label": 1}', "line 1: path 3; expected a text"),
        ("l.jsonl", '{"path": "d.png\\u0000", "label": 1}', "line 1: path 'd.png.x00'; expected a text"),
        ("l.jsonl", '{"path": "d.png", "label": [0, 1]}', r"line 1: label \[0, 1\]; expected a whole number or"),
        ("l.jsonl", '{"path": "d.png", "label": 0.5}', r"line 1: label 0\.5; expected a whole number or"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_by_its_line(folder: Path, name: str, content: str, expected: str) -> None:
    (folder / name).write_text(content)
    (folder / "card.toml").write_text(f'source = "{name}"')
    with pytest.raises(CalibrationError, match=expected) as caught:
        CalibrationSet.from_card(folder / "card.toml")
    assert len(str(caught.value)) < 1000


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "l.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(CalibrationError, match=r"l\.csv: damaged behind line 1: 'utf-8' codec"):
        opened(folder / "l.csv")


def test_list_of_gigabytes_is_not_read(folder: Path) -> None:
    path = folder / "l.csv"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(CalibrationError, match=r"1,099,511,627,776 bytes, expected 268,435,456 at most for a list"):
        opened(path)


def test_missing_files_are_named_or_skipped(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    path = write(folder, [("d.png", 0), ("gone.png", 1), ("pipe.png", 1), ("e.png", 1)], ".csv")
    with pytest.raises(CalibrationError, match=r"gone\.png: cannot be read as an image \(No such file or directory\)"):
        opened(path).read("x", [1])
    found = opened(path, skip_unreadable=True)
    assert (found.skipped, found.labels.tolist(), values(found)) == (2, [0, 1], [3, 4])


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_arrays_of_a_list_are_read_as_they_are(tmp_path: Path, dtype: type) -> None:
    x: Array = np.arange(24).reshape(4, 2, 3).astype(dtype)
    for i, sample in enumerate(x):
        np.save(tmp_path / f"{i}.npy", sample)
    found = opened(write(tmp_path, [(f"{i}.npy", i % 2) for i in (2, 0, 1)], ".csv"))
    np.testing.assert_array_equal(found.read("x", range(3)), x[[2, 0, 1]])
    assert found.read("x", [0]).dtype == dtype
    fitted = CalibrationSet(found, CalibrationSet.from_arrays([0], [0]).card).for_model(
        [InputSpec("input", np.dtype(dtype), (None, 2, 3))]
    )
    np.testing.assert_array_equal(fitted.read([1])["input"], x[:1])


def pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{}], object), allow_pickle=True)
    return out.getvalue()


def saved(array: Array) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pickled(), "holds pickled Python objects, which are never loaded"),
        (b"no array", "is damaged: no header as np.save writes one"),
        (saved(np.zeros(5))[:-1], "is damaged: expected 168 bytes, got 167"),
        (saved(np.zeros((2, 3), order="F")), "is stored column by column"),
        (saved(np.zeros((3, 3))), r"arrays differ in size \(\(3, 3\) and \(2, 3\)\); bring them to one shape"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "0.npy").write_bytes(saved(np.zeros((2, 3))))
    (tmp_path / "1.npy").write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"1\.npy:? {expected}"):
        opened(write(tmp_path, [("0.npy", 0), ("1.npy", 1)], ".csv")).read("x", [0, 1])


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.arange(60, dtype=np.float32).reshape(10, 2, 3))
    np.save(tmp_path / "y.npy", np.arange(10) % 4)
    (tmp_path / "card.toml").write_text('source = "x.npy"\nlabels = "y.npy"')
    return tmp_path


def test_pair_of_arrays_is_read_row_by_row(pair: Path) -> None:
    data = CalibrationSet.from_card(pair / "card.toml")
    assert data.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    np.testing.assert_array_equal(data.source.read("x", [7, 0, 7]), np.load(pair / "x.npy")[[7, 0, 7]])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(9), r"x\.npy and .*y\.npy: 'x' has 10 samples but 'y' has 9 labels"),
        (np.linspace(0, 1, 10), "labels 'y' must be whole numbers or names"),
        (None, r"y\.npy: cannot be read: No such file or directory"),
    ],
)
def test_wrong_labels_of_a_pair_are_explained(pair: Path, labels: Array | None, expected: str) -> None:
    (pair / "y.npy").unlink()
    if labels is not None:
        np.save(pair / "y.npy", labels)
    with pytest.raises(CalibrationError, match=expected):
        CalibrationSet.from_card(pair / "card.toml")


def test_samples_without_the_name_of_their_labels_are_explained(pair: Path) -> None:
    with pytest.raises(CalibrationError, match=r'x\.npy: no labels; name the \.npy with them in the card: labels = "'):
        opened(pair / "x.npy")


@pytest.mark.parametrize("name", ["x.npy", "y.npy"])
def test_pickles_are_never_loaded(pair: Path, name: str) -> None:
    (pair / name).write_bytes(pickled())
    with pytest.raises(CalibrationError, match=f"{name} holds pickled Python objects, which are never loaded"):
        CalibrationSet.from_card(pair / "card.toml")


def test_file_cut_short_meanwhile_is_an_error(pair: Path) -> None:
    """Mapped into the memory it would end the process."""
    source = CalibrationSet.from_card(pair / "card.toml").source
    os.truncate(pair / "x.npy", 200)
    with pytest.raises(CalibrationError, match=r"x\.npy ends early; was the file changed meanwhile\?"):
        source.read("x", [9])


def test_memory_does_not_grow_with_the_pair(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 10_000):
        np.save(tmp_path / "x.npy", np.zeros((count, 1000), np.float32))
        np.save(tmp_path / "y.npy", np.zeros(count, np.int64))
        tracemalloc.start()
        found = opened(tmp_path / "x.npy", labels="y.npy")
        for start in range(0, count, 100):
            found.read("x", range(start, start + 100))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 9000 * 4 * 8
