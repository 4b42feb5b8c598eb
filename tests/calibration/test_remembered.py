"""Samples that are decoded once give what their source gives, and cost no more than it may take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from onnx_cbq import CalibrationSet
from onnx_cbq.calibration.remembered import Remembered
from onnx_cbq.calibration.sources import Source
from onnx_cbq.model import Array, InputSpec


class Counting(Source):
    """Ten samples of 12 bytes that say who they are; `reads` are the numbers that were asked for."""

    def __init__(self, *, varying: bool = False) -> None:
        self.label, self.inputs, self.labels = "counting", ("x", "z"), np.arange(10)
        self.reads: list[int] = []
        self._varying = varying

    def read(self, name: str, indices: Sequence[int]) -> Array:
        self.reads += indices
        length = 3 if not self._varying or max(indices) < 5 else 4
        first = np.asarray(indices, np.float32)[:, None] + (100 if name == "z" else 0)
        return np.repeat(first, length, axis=1)


def test_each_sample_is_read_once_in_any_order_and_number() -> None:
    source = Counting()
    kept = Remembered(source)
    for indices in ([3, 1, 3], [1, 9, 0, 3], list(range(10)), [9, 9]):
        np.testing.assert_array_equal(kept.read("x", indices), Counting().read("x", indices))
    assert sorted(source.reads) == list(range(10))
    np.testing.assert_array_equal(kept.read("z", [2, 1]), Counting().read("z", [2, 1]))


def test_what_is_given_is_no_view_of_what_is_kept() -> None:
    kept = Remembered(Counting())
    kept.read("x", [4])[:] = -1
    assert kept.read("x", [4])[0, 0] == 4


def test_more_than_may_be_kept_is_read_again_and_not_twice_each_time() -> None:
    source = Counting()
    kept = Remembered(source, most=10 * 12 - 1)
    for _ in range(3):
        np.testing.assert_array_equal(kept.read("x", [7, 2]), Counting().read("x", [7, 2]))
    # Twice for the first, which had to be seen.
    assert len(source.reads) == 8


def test_samples_of_another_shape_end_the_keeping() -> None:
    kept = Remembered(Counting(varying=True))
    for indices in ([1, 2], [8, 1], [1, 2]):
        np.testing.assert_array_equal(kept.read("x", indices), Counting(varying=True).read("x", indices))


def test_files_of_a_card_are_decoded_once(tmp_path: Path) -> None:
    """Training over a folder of images; guards against a source that is asked for the files again."""
    for m, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (m * 90, 10, 20)).save(tmp_path / name / "a.png")
    (tmp_path / "card.toml").write_text(f'source = "{tmp_path.as_posix()}"\nlayout = "NHWC"\n')
    inputs = [InputSpec("x", np.dtype(np.float32), (None, 3, 4, 4))]
    samples = CalibrationSet.from_card(tmp_path / "card.toml").for_model(inputs)
    kept = samples.remembered()
    first = kept.read([0, 1])["x"]
    for path in tmp_path.glob("*/a.png"):
        path.unlink()
    np.testing.assert_array_equal(kept.read([1, 0])["x"], first[::-1])
