"""Archives: classes by folders and by labels beside samples, several shards, and archives that are traps."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration.places import LocalPlace, expanded
from onnx_cbq.errors import CalibrationError
from tests.calibration.decoding.test_images import png
from tests.calibration.packing import PETS, image, opened, pack, values

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
NUMBERS = {"a.png": image(1), "a.cls": b"4\n", "b.png": image(2), "b.json": b'{"label": 2, "cls": 9}'}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("top", ["", "pets/", "./", "all/pets/"])
def test_folders_inside_are_classes_in_alphabetical_order(tmp_path: Path, ending: str, top: str) -> None:
    """With or without folders that all files share, as people pack them."""
    found = opened(pack(tmp_path / f"a{ending}", {top + name: content for name, content in PETS.items()}))
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert values(found) == [1, 2, 3]
    assert found.of_images


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_archive_gives_what_its_folder_gives(tmp_path: Path, ending: str) -> None:
    for name, content in PETS.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    folder, packed = opened(tmp_path / "pets"), opened(pack(tmp_path / f"a{ending}", PETS))
    assert packed.class_names == folder.class_names
    np.testing.assert_array_equal(packed.labels, folder.labels)
    np.testing.assert_array_equal(packed.read("x", range(3)), folder.read("x", range(3)))
    assert packed.describe(2) == f"{tmp_path}/a{ending}/dog/1.png"


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_one_class_alone_is_a_class(tmp_path: Path, ending: str) -> None:
    found = opened(pack(tmp_path / f"a{ending}", {"cat/1.png": image(1), "cat/2.png": image(2)}))
    assert (found.class_names, found.labels.tolist()) == (("cat",), [0, 0])


def test_card_gives_the_order_of_classes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", PETS)
    assert opened(path, classes=("dog", "cat", "cow")).labels.tolist() == [0, 1, 1]
    with pytest.raises(CalibrationError, match=r"a\.zip: no folder for class 'cow'; it holds: cat, dog"):
        opened(path, classes=("cat", "cow"))


def test_samples_in_folders_of_folders_are_named(tmp_path: Path) -> None:
    """Parts for training and testing would be taken for classes."""
    path = pack(tmp_path / "a.zip", {"train/cat/1.png": image(1), "test/cat/2.png": image(2)})
    with pytest.raises(CalibrationError, match=r"a\.zip/train/cat/1\.png: lies in a folder of a folder; expected one"):
        opened(path)


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_labels_beside_samples_are_taken(tmp_path: Path, ending: str) -> None:
    found = opened(pack(tmp_path / f"a{ending}", NUMBERS))
    assert (found.labels.tolist(), values(found), found.class_names) == ([4, 2], [1, 2], None)


@pytest.mark.parametrize("key", ["label", "cls", "class"])
def test_each_key_of_a_json_can_hold_the_label(tmp_path: Path, key: str) -> None:
    found = opened(pack(tmp_path / "a.tar", {"x/0001.png": image(1), "x/0001.json": json.dumps({key: "cat"}).encode()}))
    assert found.labels.tolist() == ["cat"]


def test_names_beside_samples_are_numbered_by_the_card(tmp_path: Path) -> None:
    files = {"a.png": image(1), "a.cls": b"cat", "b.png": image(2), "b.cls": b"ant"}
    assert opened(pack(tmp_path / "a.tar", files)).labels.tolist() == ["cat", "ant"]
    assert opened(tmp_path / "a.tar", classes=("cat", "ant")).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({}, r"b\.png: no \.cls or \.json beside it"),
        ({"b.json": b"{"}, r"b\.json: cannot be read as a label"),
        ({"b.json": b'{"x": 1}'}, r"b\.json: cannot be read as a label \(expected a key label, cls or class; it has"),
        ({"b.json": b'{"label": [1]}'}, r"b\.json: label \[1\]; expected a whole number or the name of a class"),
        ({"b.json": b'{"label": true}'}, "label True; expected a whole number"),
        ({"b.json": b'{"label": 1e999}'}, "label inf; expected a whole number"),
        ({"b.json": b"[" * 100_000}, r"b\.json: cannot be read as a label"),
        ({"b.json": b'{"label": ' + b"9" * 5000 + b"}"}, r"b\.json: cannot be read as a label"),
        ({"b.cls": b"\xff"}, r"b\.cls: cannot be read as a label"),
        ({"b.cls": b""}, "label ''; expected a whole number"),
        ({"b.cls": b"x" * 2_000_000}, "expected a whole number or the name of a class"),
        ({"b.cls": b"cat"}, r"labels are numbers \(4\) and names \('cat'\)"),
    ],
)
def test_missing_and_wrong_labels_are_named(tmp_path: Path, label: dict[str, bytes], expected: str) -> None:
    path = pack(tmp_path / "a.tar", {"a.png": image(1), "a.cls": b"4", "b.png": image(2), **label})
    with pytest.raises(CalibrationError, match=expected) as caught:
        opened(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["s-*.tar", "s-{0..2}.tar", "s-{0,1,2}.tar", "s-?.tar", "."])
def test_shards_make_one_set(tmp_path: Path, name: str) -> None:
    """In their order, each with keys of its own; a folder of nothing but shards is one, too."""
    for i in range(3):
        pack(tmp_path / f"s-{i}.tar", {"same.png": image(i), "same.cls": str(7 - i).encode()})
    found = opened(tmp_path / name)
    assert (found.labels.tolist(), values(found)) == ([7, 6, 5], [0, 1, 2])


def test_shards_of_class_folders_share_their_classes(tmp_path: Path) -> None:
    pack(tmp_path / "s-000.zip", {"part0/dog/1.png": image(1), "part0/cat/1.png": image(2)})
    pack(tmp_path / "s-001.zip", {"cat/0.png": image(3), "ant/1.png": image(4)})
    found = opened(tmp_path / "s-{000..001}.zip")
    assert found.class_names == ("ant", "cat", "dog")
    assert (found.labels.tolist(), values(found)) == ([0, 1, 1, 2], [4, 3, 2, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s-{000..002}.tar", r"s-001\.tar: no such file or folder of samples; set source in the card"),
        ("t-*.tar", r"t-\*\.tar: no such file or folder of samples"),
        ("s-{2..1}.tar", "stands for no file"),
        ("s-{0..99999999999}.tar", "stands for 100,000,000,000 files or more, expected 100,000 at most"),
        ("{0..999}{0..999}.tar", "stands for 1,000,000 files or more"),
        ("s-*", "is another kind of file than"),
        ("s-000.{npz,npz}", "or none of which several are read"),
    ],
)
def test_patterns_that_name_nothing_are_explained(tmp_path: Path, name: str, expected: str) -> None:
    for ending in ("tar", "zip", "npz"):
        (tmp_path / f"s-000.{ending}").touch()
    with pytest.raises(CalibrationError, match=expected):
        opened(tmp_path / name)


def test_numbers_keep_their_zeros_and_brackets_of_folders_are_no_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]{2,3}"
    folder.mkdir()
    for name in ("09", "10", "11"):
        (folder / name).touch()
    assert [p.name for p in expanded(LocalPlace(folder / "{09..11}"))] == ["09", "10", "11"]
    assert [p.name for p in expanded(LocalPlace(folder / "1*"))] == ["10", "11"]


def test_names_of_the_archive_are_never_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute ones and those that lead upwards are names like any other, and nothing is written anywhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    files = {"/abs/1.png": image(1), "c:\\d/2.png": image(2), "../../up/3.png": image(4), "a\nb/4.png": image(3)}
    for ending in (".zip", ".tar", ".tgz"):
        found = opened(pack(tmp_path / f"a{ending}", files))
        assert sorted(values(found)) == [1, 2, 3]
        assert not any("\n" in found.describe(i) for i in range(3))
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".zip", ".tar", ".tgz")] == ["work"]
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_of_one_name_the_last_file_counts(tmp_path: Path, ending: str) -> None:
    path = pack(tmp_path / f"a{ending}", {"cat/1.png": image(1), "dog/1.png": image(2)})
    if ending == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("cat/1.png", image(9))
    else:
        pack(path, {"cat/1.png": image(9)}, "a")
    found = opened(path)
    assert (found.labels.tolist(), values(found)) == ([0, 1], [9, 2])


def test_links_and_devices_in_a_tar_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(image(7))
    path = pack(tmp_path / "a.tar", PETS)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
            info = tarfile.TarInfo(f"cat/{kind.decode()}.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
    assert values(opened(path)) == [1, 2, 3]


def bomb_of_one_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("cat/1.png", "w") as stream:
        for _ in range(600):
            stream.write(bytes(1 << 20))


def bomb_of_overlapping_files(path: Path) -> None:
    """Every entry of the directory means the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", bytes(4 << 20))
        first = archive.infolist()[0]
        for i in range(1, 200):
            other = zipfile.ZipInfo(f"cat/{i}.png")
            for key in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(other, key, getattr(first, key))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
        archive._didModify = True  # type: ignore[attr-defined]


def bomb_of_gzip(path: Path) -> None:
    with gzip.open(path, "w", 1) as stream:
        for _ in range(600):
            stream.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("make", "name"), [(bomb_of_one_file, "a.zip"), (bomb_of_overlapping_files, "a.zip"), (bomb_of_gzip, "a.tar.gz")]
)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    tracemalloc.start()
    with pytest.raises(CalibrationError, match=r"unpack.* set ONNX_CBQ_ALLOWANCE=\d+ if you trust the file"):
        opened(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


def test_large_file_of_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", image(1))
        with archive.open("cat/1.png", "w") as stream:
            for _ in range(300):
                stream.write(bytes(1 << 20))
    found = opened(tmp_path / "a.zip")
    tracemalloc.start()
    with pytest.raises(CalibrationError, match=r"cat/1\.png: .*314,572,800 bytes; set ONNX_CBQ_ALLOWANCE="):
        found.read("x", [1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert opened(tmp_path / "a.zip", skip_unreadable=True).skipped == 1


def test_pixels_are_held_against_what_a_file_takes_in_the_archive(tmp_path: Path) -> None:
    """A PNG with megabytes of zeros behind its end may claim a hundred pixels for each, and takes a kilobyte packed."""
    content = png(9000, 9000) + bytes(4 << 20)
    path = pack(tmp_path / "a.zip", {"cat/0.png": content})
    with pytest.raises(CalibrationError, match="claim 9000x9000 pixels"):
        opened(path).read("x", [0])


def test_header_of_a_tar_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(CalibrationError, match=r"a\.tar: not a \.tar file, or cut short \(a header of 1,099,511"):
        opened(path)


def refusal(path: Path) -> str:
    """What is said of an archive whose samples are read; nothing if they can be."""
    try:
        found = opened(path, resize=(4, 4))
        found.read("x", range(len(found.labels)))
    except CalibrationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_changed_and_cut_archives_are_used_or_refused_in_one_line(tmp_path: Path, ending: str) -> None:
    """No exception of a library gets through."""
    random = np.random.default_rng(0)
    path = pack(tmp_path / f"a{ending}", {**PETS, "dog/2.png": image(5, 40)})
    content, refused = path.read_bytes(), 0
    for trial in range(150):
        changed = bytearray(content)
        for _ in range(int(random.integers(1, 4))):
            changed[random.integers(0, len(content))] = int(random.integers(0, 256))
        path.write_bytes(changed[: random.integers(1, len(content))] if trial % 5 == 0 else changed)
        message = refusal(path)
        refused += bool(message)
        assert "\n" not in message
        assert len(message) < 1000
    assert refused >= 10


def test_damaged_header_in_the_middle_of_a_tar_does_not_end_it_in_silence(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", PETS)
    content = bytearray(path.read_bytes())
    second = content.index(b"cat/b.png")
    content[second + 150] ^= 1
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"no header at byte {second:,}"):
        opened(path)


def test_memory_does_not_grow_with_what_an_archive_holds(tmp_path: Path) -> None:
    """Only its listing does: names and places, some hundred bytes for each file."""
    peaks, out = [], io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)).save(out, "PNG")
    for count in (50, 400):
        path = pack(tmp_path / f"{count}.tar", {f"{i % 2}/{i}.png": out.getvalue() for i in range(count)})
        tracemalloc.start()
        found = opened(path)
        for start in range(0, count, 10):
            found.read("x", range(start, start + 10))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 350 * 1000
