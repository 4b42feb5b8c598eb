"""Cards: every key, its default, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.errors import CalibrationError
from tests.conftest import ROOT


def write(folder: Path, text: str) -> Path:
    path = folder / "card.toml"
    path.write_text(text)
    return path


def test_everything_but_the_source_has_a_default(tmp_path: Path) -> None:
    assert load_card(write(tmp_path, 'source = "a.npz"')) == Card(
        source=tmp_path / "a.npz",
        layout=None,
        channels="RGB",
        per_sample=None,
        scale=1.0,
        mean=(0.0,),
        std=(1.0,),
        resize=None,
        resize_side="shorter",
        interpolation="bilinear",
        antialias=True,
        crop=None,
        crop_share=None,
        pad=None,
        classes=None,
        limit=None,
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    card = load_card(
        write(
            tmp_path,
            """
            source = "images"
            layout = "NCHW"
            channels = "BGR"
            per_sample = "range"
            scale = 0.5
            mean = [1, 2.5]
            std = 3
            resize = 40
            resize_side = "longer"
            interpolation = "bicubic"
            antialias = false
            crop = [20, 30]
            pad = 114
            classes = ["b", "a"]
            limit = 7
            """,
        )
    )
    assert card == Card(
        source=tmp_path / "images",
        layout="NCHW",
        channels="BGR",
        per_sample="range",
        scale=0.5,
        mean=(1.0, 2.5),
        std=(3.0,),
        resize=(40,),
        resize_side="longer",
        interpolation="bicubic",
        antialias=False,
        crop=(20, 30),
        pad=114,
        classes=("b", "a"),
        limit=7,
    )
    assert load_card(write(tmp_path, 'source = "images"\ncrop = 224\ncrop_share = 0.875')).crop_share == 0.875


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sorce", "source"),
        ("layuot", "layout"),
        ("mena", "mean"),
        ("Std", "std"),
        ("size", "resize"),
        ("croop", "crop"),
        ("class", "classes"),
        ("limits", "limit"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(CalibrationError, match=f"unknown key '{key}'; did you mean '{nearest}'"):
        load_card(write(tmp_path, f'source = "a.npz"\n{key} = 1'))


def test_key_unlike_any_other_lists_all(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"unknown key 'zzz'; known keys: antialias, channels, .*, source, std"):
        load_card(write(tmp_path, 'source = "a.npz"\nzzz = 1'))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("source = 3", "source: expected a path in quotes, got 3"),
        ('source = ""', "source: expected a path in quotes, got ''"),
        ('layout = "HWC"', 'layout: expected "NHWC" or "NCHW", got \'HWC\''),
        ('layout = ["NHWC"]', 'layout: expected "NHWC" or "NCHW"'),
        ('scale = "1/255"', "scale: expected a finite number, got '1/255'"),
        ("scale = true", "scale: expected a finite number, got True"),
        ("scale = [1, 2]", "scale: expected a finite number"),
        ("scale = inf", "scale: expected a finite number, got inf"),
        ("scale = nan", "scale: expected a finite number, got nan"),
        ("mean = []", "mean: expected a number, or one per channel"),
        ('mean = [0.5, "a"]', "mean: expected a finite number, got 'a'"),
        ("mean = nan", "mean: expected a finite number"),
        ("std = 0", "std: expected numbers above 0, got 0"),
        ("std = [1.0, -1.0]", "std: expected numbers above 0"),
        ("std = {a = 1}", "std: expected a finite number"),
        ("resize = 0", "resize: expected a whole number above 0, got 0"),
        ("resize = 3.5", "resize: expected a whole number above 0, got 3.5"),
        ("resize = [1, 2, 3]", r"resize: expected one size, or \[height, width\]"),
        ("crop = []", r"crop: expected one size, or \[height, width\]"),
        ("crop = [8, true]", "crop: expected a whole number above 0, got True"),
        ('channels = "rgb"', 'channels: expected "RGB" or "BGR" or "grey", got \'rgb\''),
        ("per_sample = true", 'per_sample: expected "standardise" or "normalise" or "range", got True'),
        ('resize = 8\nresize_side = "long"', 'resize_side: expected "shorter" or "longer"'),
        ('resize = 8\ninterpolation = "cubic"', 'interpolation: expected "nearest" or "bilinear" or "bicubic"'),
        ("resize = 8\nantialias = 1", "antialias: expected true or false, got 1"),
        ("crop = 8\ncrop_share = 0", "crop_share: expected a share from 0.01 to 1, got 0"),
        ("crop = 8\ncrop_share = 87.5", "crop_share: expected a share from 0.01 to 1, got 87.5"),
        ("crop = 8\npad = 256", "pad: expected a whole number from 0 to 255, got 256"),
        ("crop = 8\npad = true", "pad: expected a whole number from 0 to 255, got True"),
        # Keys that mean nothing, or two things, beside the others.
        ("crop_share = 0.9", "crop_share: stands beside crop and in place of resize"),
        ("crop = 8\nresize = 9\ncrop_share = 0.9", "crop_share: stands beside crop and in place of resize"),
        ('resize = [8, 9]\nresize_side = "longer"', "resize_side: is of a resize that is one number"),
        ('interpolation = "bicubic"', "interpolation: nothing is resized; set resize or crop_share"),
        ("crop = 8\nantialias = false", "antialias: nothing is resized"),
        ("pad = 0", "pad: fills images up to crop"),
        ('resize = 8\ninterpolation = "lanczos"\nantialias = false', 'antialias: false is for interpolation "nearest"'),
        ('classes = "cat"', "classes: expected a list of names, got 'cat'"),
        ("classes = []", "classes: expected a list of names"),
        ("classes = [1, 2]", "classes: expected a list of names"),
        ('classes = ["cat", "cat"]', "classes: expected names that differ"),
        ("limit = 0", "limit: expected a whole number above 0, got 0"),
        ("limit = 1.0", "limit: expected a whole number above 0, got 1.0"),
        ("limit = true", "limit: expected a whole number above 0, got True"),
        ("limit = 9223372036854775808", "limit: expected a whole number up to 2147483647, got 9223372036854775808"),
        ("crop = [8, 4294967296]", "crop: expected a whole number up to 2147483647"),
        (f"scale = 1{'0' * 400}", "scale: expected a number of single precision, up to 3.4e"),
        ("mean = -1e308", "mean: expected a number of single precision, up to 3.4e"),
        ("std = 1e-50", "std: expected numbers of single precision, above 1.2e-38, got 1e-50"),
        (f"limit = 0x{'f' * 5000}", "limit: expected a whole number up to 2147483647, got a number of thousands"),
        (f"layout = '{'x' * 5000}'", "layout: expected .* got 'x{1,60}\\.\\.\\.x{1,60}'$"),
    ],
)
def test_wrong_values_say_what_was_expected(tmp_path: Path, line: str, expected: str) -> None:
    text = line if line.startswith("source") else f'source = "a.npz"\n{line}'
    with pytest.raises(CalibrationError, match=rf"card\.toml: {expected}"):
        load_card(write(tmp_path, text))


def test_paths_are_relative_to_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cards"
    folder.mkdir()
    write(folder, 'source = "../data/a.npz"')
    monkeypatch.chdir(tmp_path)
    assert Path(load_card(Path("cards/card.toml")).source).resolve() == tmp_path / "data" / "a.npz"


def test_absolute_path_stays(tmp_path: Path) -> None:
    assert load_card(write(tmp_path, 'source = "/data/a.npz"')).source == Path("/data/a.npz")


@pytest.mark.parametrize("text", ['source = "a.npz"\nscale = 2', "scale = 2"], ids=["with", "without"])
def test_given_source_replaces_the_card_s_and_is_not_relative_to_it(tmp_path: Path, text: str) -> None:
    card = load_card(write(tmp_path, text), Path("other.npz"))
    assert (card.source, card.scale) == (Path("other.npz"), 2.0)


def test_card_without_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no key 'source'; .* give --source"):
        load_card(write(tmp_path, "scale = 1"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"source = 'a'\nscale = = 1", "not a TOML file: .*line 2"),
        (b"\xff\xfe\x00", "not a TOML file"),
        (b"source = 'a'\nsource = 'b'", "not a TOML file: Cannot overwrite"),
        (b"mean = " + b"[" * 5000, "not a TOML file: maximum recursion depth"),
        (b"limit = 1" + b"0" * 5000, "not a TOML file: Exceeds the limit"),
        (b"a." * 100_000 + b"a = 1", "not a TOML file: a key of more than 1000 parts"),
        (b"[" + b"a." * 100_000 + b"a]", "not a TOML file: a key of more than 1000 parts"),
        (b"#" * (5 << 20), "cannot be read: has 5,242,880 bytes, expected at most 4,194,304"),
    ],
    ids=["syntax", "bytes", "twice", "nesting", "digits", "dotted-key", "dotted-header", "size"],
)
def test_broken_cards_are_explained(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=expected):
        load_card(path)


def test_missing_card_is_explained(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(CalibrationError, match="no such card"):
            load_card(path)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("mnist", (0.0,), (1.0,)),
    ],
)
def test_ready_cards_are_the_well_known_preprocessings(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    card = load_card(ROOT / "calibration" / f"{name}.toml")
    assert (card.layout, card.mean, card.std) == ("NHWC", mean, std)
    assert card.scale == 1 / 255
    assert (card.resize, card.crop) == (((256,), (224,)) if name == "imagenet" else (None, None))


def test_byte_order_mark_of_windows_is_no_part_of_the_card(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b'source = "a.npz"')
    assert load_card(path).source == tmp_path / "a.npz"


def test_means_of_thousands_of_features_are_no_dotted_key(tmp_path: Path) -> None:
    means = ", ".join(["0.5"] * 9000)
    assert len(load_card(write(tmp_path, f'source = "a.npz"\nmean = [{means}]')).mean) == 9000
    assert len(load_card(write(tmp_path, f'source = "a.npz"\nmean = [\n{means}\n]')).mean) == 9000


def test_a_card_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Reading from a pipe would wait for ever, from /dev/zero until memory is full."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CalibrationError, match="is a device, a socket or a pipe, expected a file"):
            load_card(path)


@pytest.mark.parametrize("path", ["x" * 5000, "loop"])
def test_paths_that_lead_nowhere_are_explained_in_a_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CalibrationError) as caught:
        load_card(tmp_path / path)
    assert len(str(caught.value)) < 400
    with pytest.raises(CalibrationError) as caught:
        CalibrationSet.from_card(write(tmp_path, f'source = "{path}"'))
    assert len(str(caught.value)) < 400
