"""WAV files: rates, channels, lengths and layouts, and files that are traps."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile
from scipy.signal import resample_poly

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.survey import survey
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.system import extras
from tests.calibration.packing import opened, pack

pytest.importorskip("soundfile", reason="needs the extra 'audio'")

RANDOM = np.random.default_rng(0)


def wav(values: Array, rate: int = 8000) -> bytes:
    """A file written by scipy: int16 or float32, [frames] or [frames, channels]."""
    out = io.BytesIO()
    wavfile.write(out, rate, values)
    return out.getvalue()


def tone(frames: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-30_000, 30_000, frames).astype(np.int16)


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "0.wav").write_bytes(content)
    return folder


def test_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    """16-bit ones in -1..1, as training code has them; of two channels the mean."""
    left, right = tone(100), tone(100, 1)
    stereo = np.stack([left, right], axis=1)
    found = opened(write(tmp_path, a=wav(left), b=wav(stereo), c=wav((left / 32768).astype(np.float32))))
    values = found.read("x", range(3))
    assert (str(values.dtype), values.shape, found.class_names) == ("float32", (3, 100), ("a", "b", "c"))
    np.testing.assert_array_equal(values[0], left / np.float32(32768))
    np.testing.assert_allclose(values[1], stereo.astype(np.float64).mean(axis=1) / 32768, atol=1e-7)
    np.testing.assert_array_equal(values[2], values[0])


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8000, 16_000), (48_000, 22_050), (16_000, 16_000)])
@pytest.mark.parametrize("length", [None, 1000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int, wanted: int, length: int | None) -> None:
    """Only as much as is needed is read, which must not change the numbers at the end."""
    found = opened(write(tmp_path, a=wav(tone(9000), rate)), sample_rate=wanted, length=length).read("x", [0])[0]
    expected = resample_poly((tone(9000) / np.float32(32768)).astype(np.float32), wanted, rate)[:length]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("length", "expected"), [(3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (8, [1, 2, 3, 4, 5, 0, 0, 0])])
def test_length_cuts_behind_the_start_and_pads_with_zeros(tmp_path: Path, length: int, expected: list[int]) -> None:
    content = wav(np.arange(1, 6, dtype=np.float32))
    assert opened(write(tmp_path, a=content), length=length).read("x", [0])[0].tolist() == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((None, 50), (50,)), ((1, 1, 50), (1, 50)), ((None, 1, None), (1, 50)), ((1, 50, 1), (50, 1))],
)
def test_model_decides_about_the_axis_of_the_channel(
    tmp_path: Path, shape: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    data = CalibrationSet(opened(write(tmp_path, a=wav(tone(50)))), Card(tmp_path, mean=(0.5,), std=(2.0,)))
    found = data.for_model([InputSpec("x", np.dtype(np.float32), shape)]).read([0])["x"][0]
    np.testing.assert_allclose(found, ((tone(50) / 32768 - 0.5) / 2).reshape(expected), atol=1e-7)


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_archives_and_labels_beside_sounds(tmp_path: Path, ending: str) -> None:
    folders = opened(
        pack(tmp_path / f"a{ending}", {"words/yes/1.wav": wav(tone(9)), "words/no/1.wav": wav(tone(9, 1))})
    )
    assert (folders.class_names, folders.labels.tolist()) == (("no", "yes"), [0, 1])
    np.testing.assert_array_equal(folders.read("x", [1])[0], tone(9) / np.float32(32768))
    shard = opened(pack(tmp_path / f"b{ending}", {"k.wav": wav(tone(9)), "k.cls": b"1"}))
    assert (shard.labels.tolist(), shard.read("x", [0]).shape) == ([1], (1, 9))


def test_lists_of_sounds(tmp_path: Path) -> None:
    write(tmp_path, a=wav(tone(9)), b=wav(tone(9, 1)))
    (tmp_path / "l.csv").write_text("path,label\nb/0.wav,1\na/0.wav,0\n")
    found = opened(tmp_path / "l.csv")
    np.testing.assert_array_equal(found.read("x", [1])[0], tone(9) / np.float32(32768))


def test_rows_of_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": wav(tone(9)), "path": None}]
    pq.write_table(pa.table({"audio": rows, "label": [1]}), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").read("x", [0]).shape == (1, 9)


def test_rates_and_lengths_that_differ_are_explained(tmp_path: Path) -> None:
    write(tmp_path, a=wav(tone(9)), b=wav(tone(9), 16_000), c=wav(tone(12)))
    with pytest.raises(CalibrationError, match=r"b/0\.wav: has 16000 numbers a second, the first file 8000; set"):
        opened(tmp_path).read("x", [1])
    with pytest.raises(CalibrationError, match=r"c/0\.wav: sounds differ in size \(12 and 9\); set length in the card"):
        opened(tmp_path).read("x", [0, 2])
    assert opened(tmp_path, sample_rate=8000, length=9).read("x", [0, 1, 2]).shape == (3, 9)


def header(rate: int = 8000, channels: int = 1, claimed: int = 2, data: bytes = b"\0\0") -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels & 0xFFFFFFFF, 2 * channels, 16)
    parts = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", claimed) + data
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


TRAPS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {}, "no WAV"),
    "flac": (b"fLaC" + bytes(100), {}, "no WAV"),
    "text": (b"RIFF no sound", {}, "Format not rec"),
    "nothing": (header(claimed=0, data=b""), {}, "nothing is to be heard"),
    "rate": (header(rate=0x7FFFFFFF), {"sample_rate": 16_000}, "2,147,483,647 numbers a second, which cannot be"),
    "slow": (header(rate=1, claimed=10_000, data=bytes(10_000)), {"sample_rate": 300_000}, r"numbers; set ONNX_CBQ"),
    "long": (header(), {"length": 1 << 30}, "1,073,741,824 numbers; set ONNX_CBQ_ALLOWANCE=32 if"),
}


@pytest.mark.parametrize("kind", TRAPS)
def test_sounds_that_are_traps_are_named_and_can_be_skipped(tmp_path: Path, kind: str) -> None:
    content, settings, expected = TRAPS[kind]
    write(tmp_path, b=content)
    with pytest.raises(CalibrationError, match=rf"b/0\.wav: cannot be read as sound \(.*{expected}"):
        opened(tmp_path, **settings).read("x", [0])
    assert opened(tmp_path, skip_unreadable=True, **settings).skipped == 1


def test_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    """A header of 44 bytes claims four gigabytes."""
    write(tmp_path, a=header(claimed=0xFFFFFFF0, data=bytes(200)))
    try:
        assert opened(tmp_path).read("x", [0]).size <= 100
    except CalibrationError as error:
        assert "cannot be read as sound" in str(error)  # noqa: PT017, either will do


def test_changed_bytes_never_get_an_error_of_the_library_through(tmp_path: Path) -> None:
    content, refused = wav(tone(40)), 0
    path = write(tmp_path, a=content) / "a" / "0.wav"
    for _ in range(150):
        changed = bytearray(content)
        changed[RANDOM.integers(0, 44)] = int(RANDOM.integers(0, 256))
        path.write_bytes(changed)
        readable = opened(tmp_path, skip_unreadable=True).skipped == 0
        try:
            opened(tmp_path).read("x", [0])
        except CalibrationError:
            refused += 1
            assert not readable
    assert refused > 10


def test_missing_library_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(ConfigError, match=r"WAV files: needs soundfile, .* pip install 'onnx-cbq\[audio\]'"):
        opened(write(tmp_path, a=wav(tone(9))))


@pytest.mark.parametrize("shape", [(None, 40), (None, 1, 40), (None, 40, 1)], ids=str)
def test_sounds_are_surveyed_as_the_model_takes_them(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    """A first card was refused for models with an axis of the channel."""
    data = CalibrationSet.of_card(Card(write(tmp_path, a=wav(tone(40)), b=wav(tone(40, 1)))))
    found = survey(data, [InputSpec("x", np.dtype(np.float32), shape)], None)
    assert (found.image, list(found.layouts)) == (False, [None])


def sizes(tmp_path: Path, shape: tuple[int | None, ...], size: int | None = None) -> tuple[list[dict[str, Any]], Any]:
    found = survey(CalibrationSet.of_card(Card(tmp_path)), [InputSpec("x", np.dtype(np.float32), shape)], size)
    return [dict(keys) for keys in found.framings.values()], found.notes


@pytest.mark.parametrize("shape", [(None, 800), (None, 1, 800), (1, 800, 1)], ids=str)
def test_model_s_length_says_which_rate_is_likeliest(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    """Files of 0.1 s: 800 numbers are a tenth of a second at 8,000. Data sets have sounds of all lengths and rates."""
    write(tmp_path, a=wav(tone(1600), 16_000), b=wav(tone(4410), 44_100), c=wav(tone(1500), 16_000))
    found, notes = sizes(tmp_path, shape)
    assert found[0] == {"sample_rate": 8000, "length": 800}
    assert {keys["sample_rate"] for keys in found} == {8000, 16_000, 22_050, 32_000, 44_100, 48_000}
    assert {keys["length"] for keys in found} == {800}
    assert not notes
    with pytest.raises(CalibrationError, match=r"--size 900: the model takes 800 numbers; leave --size out"):
        sizes(tmp_path, shape, 900)


def test_model_of_any_length_takes_the_longest_or_what_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, a=wav(tone(1100), 11_000), b=wav(tone(2200), 11_000))
    found, notes = sizes(tmp_path, (None, None))
    assert found[:2] == [{"sample_rate": 11_000, "length": 2200}, {"sample_rate": 8000, "length": 1600}]
    assert notes == ("the model takes sounds of any length: 0.2 s, of the longest, was taken; --size gives another",)
    found, notes = sizes(tmp_path, (None, None), 880)
    assert {keys["length"] for keys in found} == {880}
    assert not notes


def test_sounds_that_have_the_model_s_length_keep_their_rate(tmp_path: Path) -> None:
    write(tmp_path, a=wav(tone(500), 11_000), b=wav(tone(500, 1), 11_000))
    assert sizes(tmp_path, (None, 500))[0] == [{"sample_rate": 11_000, "length": 500}]
