"""Folders of images: order of the classes, decoding, resize and crop as torchvision does them, unreadable files."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.file_source import FolderSource
from onnx_cbq.calibration.places import LocalPlace
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

RANDOM = np.random.default_rng(0)


def picture(height: int = 6, width: int = 5) -> Array:
    """Smooth, so that a pixel of shift shows, with a different slope in each direction and channel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (2 + c)) + np.cos(x / (3 + c)) for c in range(3)]
    return np.asarray((np.stack(waves, axis=2) + 2) * 60, np.uint8)


def write(folder: Path, name: str, pixels: Array, mode: str | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def source(folder: Path, *, skip_unreadable: bool = False, **settings: Any) -> FolderSource:
    return FolderSource([LocalPlace(folder)], Card(folder, **settings), skip_unreadable=skip_unreadable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats, one dog, a file that is no image and a hidden folder of none."""
    for name in ("dog/0.png", "cat/b.PNG", "cat/a.png"):
        write(tmp_path, name, np.full((4, 4, 3), len(list(tmp_path.rglob("*.*"))), np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no class")
    return tmp_path


def test_classes_are_the_folders_in_alphabetical_order(folder: Path) -> None:
    found = source(folder)
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.read("x", [0, 1, 2])[:, 0, 0, 0].tolist() == [2, 1, 0]


def test_card_gives_the_order_of_the_classes_and_leaves_some_out(folder: Path) -> None:
    write(folder, "ant/0.png", picture())
    found = source(folder, classes=("dog", "cat"))
    assert found.class_names == ("dog", "cat")
    assert found.labels.tolist() == [0, 1, 1]


def test_class_without_a_folder_is_named(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="no folder for class 'cow'; it holds: cat, dog"):
        source(folder, classes=("cat", "cow"))


def test_folder_without_classes_is_explained(tmp_path: Path) -> None:
    write(tmp_path, "0.png", picture())
    with pytest.raises(CalibrationError, match="no sub-folders; expected one folder of images per class"):
        source(tmp_path)


def test_one_image_is_no_source(tmp_path: Path) -> None:
    path = write(tmp_path, "0.png", picture())
    (tmp_path / "card.toml").write_text('source = "0.png"')
    with pytest.raises(CalibrationError, match=f"{path}: one file is no data set"):
        CalibrationSet.from_card(tmp_path / "card.toml")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    path = write(tmp_path, f"a/0.{suffix}", picture(), mode)
    found, grey = source(tmp_path), source(tmp_path, channels="grey").fitted_to(())
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(found.read("x", [0])[0], np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(grey.read("x", [0])[0, :, :, 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize(("channels", "shape"), [(1, (1, 6, 5)), (3, (3, 6, 5)), (1, (6, 5, 1)), (3, (6, 5, 3))])
def test_model_decides_about_colour_and_layout(tmp_path: Path, channels: int, shape: tuple[int, ...]) -> None:
    write(tmp_path, "a/0.png", picture())
    data = CalibrationSet(source(tmp_path), Card(tmp_path))
    found = data.for_model([InputSpec("x", np.dtype(np.float32), (None, *shape))]).read([0])["x"][0]
    assert found.shape == shape
    with Image.fromarray(picture()) as image:
        expected = np.asarray(image if channels == 3 else image.convert("L")).reshape(6, 5, channels)
    np.testing.assert_array_equal(found, expected if shape[2] == channels else expected.transpose(2, 0, 1))


def torchvision(pixels: Array, resize: int, crop: int) -> Array:
    """torchvision.transforms.functional.resize and center_crop of a PIL image, written down from their source."""
    height, width = pixels.shape[:2]
    short, long = sorted((height, width))
    new_long = int(resize * long / short)
    new_width, new_height = (resize, new_long) if width <= height else (new_long, resize)
    image = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = round((new_height - crop) / 2.0), round((new_width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize("height", [30, 37, 41, 50, 75])
@pytest.mark.parametrize("width", [30, 40, 43, 61])
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (29, 22), (60, 31)])
def test_resize_and_crop_are_those_of_torchvision(
    tmp_path: Path, height: int, width: int, resize: int, crop: int
) -> None:
    """A pixel of shift costs accuracy that nobody can explain."""
    write(tmp_path, "a/0.png", picture(height, width))
    found = source(tmp_path, resize=(resize,), crop=(crop,)).read("x", [0])[0]
    np.testing.assert_array_equal(found, torchvision(picture(height, width), resize, crop))


def test_resize_and_crop_take_height_and_width(tmp_path: Path) -> None:
    write(tmp_path, "a/0.png", picture(30, 40))
    assert source(tmp_path, resize=(20, 26)).read("x", [0]).shape == (1, 20, 26, 3)
    cropped = source(tmp_path, crop=(20, 26)).read("x", [0])[0]
    np.testing.assert_array_equal(cropped, picture(30, 40)[5:25, 7:33])


def test_crop_larger_than_an_image_names_it(tmp_path: Path) -> None:
    """Pillow would fill the rest with black and say nothing."""
    path = write(tmp_path, "a/0.png", picture(30, 40))
    with pytest.raises(CalibrationError, match=f"{path}: 40x30 is smaller than crop 31x31; set a larger resize"):
        source(tmp_path, crop=(31,)).read("x", [0])


def test_images_of_different_sizes_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a/0.png", picture(30, 40))
    path = write(tmp_path, "a/1.png", picture(30, 41))
    with pytest.raises(
        CalibrationError, match=rf"{path}: images differ in size \(41x30 and 40x30\); set resize and crop"
    ):
        source(tmp_path).read("x", [0, 1])


def damaged(path: Path, kind: str) -> Path:
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "cut": content[: len(content) // 2]}[kind])
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_unreadable_image_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    write(tmp_path, f"a/0.{suffix}", picture(40, 40))
    path = damaged(write(tmp_path, f"a/1.{suffix}", picture(40, 40)), kind)
    with pytest.raises(CalibrationError, match=f"{path}: cannot be read as an image .* --skip-unreadable"):
        source(tmp_path).read("x", [0, 1])


def test_unreadable_images_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    """The labels must follow: a file that is left out must not shift those behind it."""
    for i, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")):
        write(tmp_path, name, np.full((8, 8, 3), i, np.uint8))
    for name, kind in (("a/0.png", "cut"), ("b/0.png", "empty"), ("b/2.png", "text")):
        damaged(tmp_path / name, kind)
    found = source(tmp_path, skip_unreadable=True)
    assert found.skipped == 3
    assert found.labels.tolist() == [0, 1]
    assert found.read("x", [0, 1])[:, 0, 0, 0].tolist() == [1, 3]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_changed_bytes_never_get_an_error_of_pillow_through(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, f"a/0.{suffix}", RANDOM.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    content = path.read_bytes()
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        changed[RANDOM.integers(0, len(content))] ^= int(RANDOM.integers(1, 256))
        path.write_bytes(changed)
        readable = source(tmp_path, skip_unreadable=True).skipped == 0
        try:
            source(tmp_path).read("x", [0])
        except CalibrationError:
            refused += 1
            assert not readable
    assert refused > 10


def test_missing_folders_are_classes_without_samples(folder: Path) -> None:
    """500 images of ImageNet's classes have fewer than 1,000 folders."""
    found = source(folder, classes=("ant", "cat", "cow", "dog"))
    assert found.class_names == ("ant", "cat", "cow", "dog")
    assert found.labels.tolist() == [1, 1, 3]


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_not_decoded_whatever_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Pillow starts Ghostscript, or any program of that name, on PostScript that is named .png."""
    ran = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(picture()).save(tmp_path / "images" / "a" / "0.png", kind)
    with pytest.raises(CalibrationError, match=r"0\.png: cannot be read as an image \(neither a PNG nor a JPEG\)"):
        source(tmp_path / "images").read("x", [0])
    assert not ran.exists()


def test_grey_images_of_16_bits_keep_their_high_bytes(tmp_path: Path) -> None:
    """Pillow cuts everything above 255: they were all white."""
    grey = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    write(tmp_path, "a/0.png", grey)
    expected = (grey >> 8).astype(np.uint8)
    np.testing.assert_array_equal(source(tmp_path, channels="grey").fitted_to(()).read("x", [0])[0, :, :, 0], expected)
    np.testing.assert_array_equal(source(tmp_path).read("x", [0])[0], expected[:, :, None].repeat(3, axis=2))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that claims a size, with other chunks before its data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min((width + 1) * height, 1 << 20)))
    parts = ((b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


BOMB = zlib.compress(bytes(3 << 20))
HOSTILE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "iccp": (png(8, 8, (b"iCCP", b"x\0\0" + BOMB)), {}, "cannot be read as an image"),
    "ztxt": (png(8, 8, *[(b"zTXt", b"x\0\0" + BOMB)] * 40), {}, "cannot be read as an image"),
    "pixels": (png(9000, 9000), {}, r"claim 9000x9000 pixels; set ONNX_CBQ_ALLOWANCE=\d+ if you trust"),
    "more-pixels": (png(1 << 20, 1 << 20), {}, "cannot be read as an image"),
    "thin": (png(1, 60_000), {"resize": (2000,), "crop": (8,)}, "1x60000 resized to 2000x120000000 is too large"),
    "high": (png(1, 60_000), {"resize": (8, 60_000)}, "1x60000 resized to 60000x8 is too large"),
    "text": (b"no image", {}, "neither a PNG nor a JPEG"),
    "small": (png(4, 4), {"crop": (8,)}, "4x4 is smaller than crop 8x8"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_images_that_are_traps_are_named_and_can_be_skipped(tmp_path: Path, kind: str) -> None:
    """Each got an exception of Pillow through, or took all memory, with --skip-unreadable too."""
    content, settings, expected = HOSTILE[kind]
    write(tmp_path, "a/0.png", picture(8, 8))
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"1\.png: .*{expected}"):
        source(tmp_path, **settings).read("x", [1])
    found = source(tmp_path, skip_unreadable=True, **(settings if kind == "small" else {}))
    assert (found.skipped, len(found.labels)) == ((0, 2) if kind in ("thin", "high") else (1, 1))


def test_scans_of_a_jpeg_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan over 64 million pixels takes 95 bytes and a third of a second: a file of 250 kB took an hour."""
    (tmp_path / "a").mkdir()
    out = io.BytesIO()
    Image.new("L", (64, 64), 128).save(out, "JPEG", progressive=True)
    content = out.getvalue()
    last = content[content.rfind(b"\xff\xda") : -2]
    (tmp_path / "a" / "0.jpg").write_bytes(content)
    (tmp_path / "a" / "1.jpg").write_bytes(content[:-2] + 3000 * last + content[-2:])
    monkeypatch.setenv("ONNX_CBQ_ALLOWANCE", "0.001")
    with pytest.raises(CalibrationError, match=r"1\.jpg: .*64x64 pixels in 3,006 scans; set ONNX_CBQ_ALLOWANCE="):
        source(tmp_path).read("x", [0, 1])
    assert source(tmp_path).read("x", [0]).shape == (1, 64, 64, 3)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """From a pipe one would wait for ever."""
    write(tmp_path, "a/0.png", picture(8, 8))
    os.mkfifo(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "3.png").symlink_to("3.png")
    (tmp_path / "a" / "4.png").mkdir()
    for i in range(1, 5):
        with pytest.raises(CalibrationError, match=rf"{i}\.png: cannot be read as an image"):
            source(tmp_path).read("x", [i])
    found = source(tmp_path, skip_unreadable=True)
    assert (found.skipped, found.labels.tolist()) == (4, [0])


def test_what_systems_leave_beside_images_is_no_class(tmp_path: Path) -> None:
    """Folders with a dot sort first, and shift the labels of all classes."""
    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    (tmp_path / "cat" / "._1.png").write_bytes(b"resource fork")
    found = CalibrationSet(source(tmp_path), Card(tmp_path))
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 1]
