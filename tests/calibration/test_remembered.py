"""Samples that are decoded once give what their source gives, and cost no more than it may take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from onnx_cbq import CalibrationSet, RefineConfig
from onnx_cbq.calibration.remembered import Remembered
from onnx_cbq.calibration.sources import Source
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.torch_graph import EXACT
from onnx_cbq.training.setup import Setup

ALL = np.arange(10)


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
    kept = Remembered(source, ALL)
    for indices in ([3, 1, 3], [1, 9, 0, 3], list(range(10)), [9, 9]):
        np.testing.assert_array_equal(kept.read("x", indices), Counting().read("x", indices))
    assert sorted(source.reads) == list(range(10))
    np.testing.assert_array_equal(kept.read("z", [2, 1]), Counting().read("z", [2, 1]))


def test_what_is_given_is_no_view_of_what_is_kept() -> None:
    kept = Remembered(Counting(), ALL)
    kept.read("x", [4])[:] = -1
    assert kept.read("x", [4])[0, 0] == 4


def test_more_than_may_be_kept_is_read_again_and_not_twice_each_time() -> None:
    source = Counting()
    kept = Remembered(source, ALL, most=10 * 12 - 1)
    for _ in range(3):
        np.testing.assert_array_equal(kept.read("x", [7, 2]), Counting().read("x", [7, 2]))
    # Twice for the first, which had to be seen.
    assert len(source.reads) == 8


def test_only_what_is_asked_for_counts_and_the_rest_is_read_as_before() -> None:
    """A few samples of a large archive are kept; guards against room for all of them."""
    source = Counting()
    kept = Remembered(source, np.array([8, 2, 8]), most=2 * 12)
    for indices in ([8, 2], [2, 8, 8], [2, 5], [5]):
        np.testing.assert_array_equal(kept.read("x", indices), Counting().read("x", indices))
    assert source.reads == [2, 8, 2, 5, 5]


def test_samples_of_another_shape_end_the_keeping() -> None:
    kept = Remembered(Counting(varying=True), ALL)
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
    batches = Setup(torch.device("cpu"), EXACT).batches(samples, np.arange(2), RefineConfig(batch=2))
    first = next(iter(batches.in_order())).feeds["x"]
    for path in tmp_path.glob("*/a.png"):
        path.unlink()
    assert torch.equal(next(iter(batches.in_order())).feeds["x"], first)
