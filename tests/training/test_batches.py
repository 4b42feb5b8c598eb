"""Batches: every sample in turn, the same order after a resumption, and what augmentation does to images."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.model import InputSpec
from onnx_cbq.training.batches import Batches

IMAGES = np.random.default_rng(0).normal(size=(10, 2, 16, 8)).astype(np.float32)
LABELS = np.arange(10) % 3


@pytest.fixture
def batches() -> Batches:
    data = CalibrationSet.from_arrays(IMAGES, LABELS)
    samples = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2, 16, 8))])
    return Batches(samples, np.arange(10), 4, (), torch.device("cpu"))


def test_an_epoch_takes_no_sample_twice(batches: Batches) -> None:
    first, second = islice(batches.endless(0), 2)
    seen = torch.cat([first.feeds["x"], second.feeds["x"]]).numpy()
    numbers = [int(np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0]) for image in seen]
    assert len(set(numbers)) == 8
    np.testing.assert_array_equal(torch.cat([first.labels, second.labels]).numpy(), LABELS[numbers])


def test_a_resumed_run_sees_what_it_would_have_seen(batches: Batches) -> None:
    """Else it would not give the file of a run that was not stopped."""
    shaken = replace(batches, augment=("flip", "shift"))
    whole = list(islice(shaken.endless(7), 6))
    resumed = list(islice(shaken.endless(7, start=3), 3))
    for expected, found in zip(whole[3:], resumed, strict=True):
        assert torch.equal(expected.feeds["x"], found.feeds["x"])
    assert not torch.equal(whole[0].feeds["x"], whole[2].feeds["x"])


def test_in_order_gives_every_sample_once_as_it_is(batches: Batches) -> None:
    found = list(replace(batches, augment=("flip", "shift")).in_order())
    np.testing.assert_array_equal(torch.cat([batch.feeds["x"] for batch in found]).numpy(), IMAGES)
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in found]).numpy(), LABELS)


def test_flip_mirrors_some_images_from_left_to_right(batches: Batches) -> None:
    found = torch.cat([b.feeds["x"] for b in islice(replace(batches, augment=("flip",)).endless(1), 20)]).numpy()
    plain = [(image == IMAGES).all(axis=(1, 2, 3)).any() for image in found]
    mirrored = [(IMAGES[..., ::-1] == image).all(axis=(1, 2, 3)).any() for image in found]
    assert all(np.logical_xor(plain, mirrored))
    # Of 80 fair throws, fewer than 20 or more than 60 come once in 100,000 times.
    assert 20 < sum(mirrored) < 60


def test_shift_moves_images_by_an_eighth_at_most_and_repeats_the_edge(batches: Batches) -> None:
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="edge")
    moves = set()
    for batch in islice(replace(batches, augment=("shift",)).endless(2), 30):
        fits = [
            (top, left)
            for top in range(5)
            for left in range(3)
            if all(
                (padded[:, :, top : top + 16, left : left + 8] == image).all(axis=(1, 2, 3)).any()
                for image in batch.feeds["x"].numpy()
            )
        ]
        assert len(fits) == 1
        moves |= set(fits)
    assert len(moves) > 8


def test_cut_pastes_a_box_of_another_image_into_every_second_one(batches: Batches) -> None:
    """What is pasted comes from the same place, and is the smaller part."""
    areas = []
    for batch, before in zip(
        islice(replace(batches, augment=("cut",)).endless(3), 20), batches.endless(3), strict=False
    ):
        images, own = batch.feeds["x"].numpy(), before.feeds["x"].numpy()
        for image, original in zip(images, own, strict=True):
            changed = (image != original).any(axis=0)
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            assert changed.sum() == len(rows) * len(columns)
            assert any((image[:, changed] == other[:, changed]).all() for other in own)
            assert all((np.diff(ends) == 1).all() for ends in (rows, columns))
            areas.append(changed.mean())
    assert 0.35 < np.mean(np.array(areas) == 0) < 0.75
    assert 0.2 < max(areas) <= 0.5


def test_mix_blends_half_of_the_images_with_a_smaller_part_of_another(batches: Batches) -> None:
    """The rest stays as it is; every image is its own by more than half, so that its label still says what it is."""
    plain = batches.endless(3)
    shares = []
    for batch, before in zip(islice(replace(batches, augment=("mix",)).endless(3), 20), plain, strict=False):
        images, own = batch.feeds["x"].numpy(), before.feeds["x"].numpy()
        for image, original in zip(images, own, strict=True):
            others = (own - original).reshape(len(own), -1).astype(np.float64)
            moved = (image - original).reshape(-1).astype(np.float64)
            fits = [
                o @ moved / (o @ o)
                for o in others
                if o.any() and np.allclose(o @ moved / (o @ o) * o, moved, atol=1e-4)
            ]
            shares.append(0.0 if not moved.any() else fits[0])
    assert 0.35 < np.mean(np.array(shares) == 0) < 0.65
    assert min(shares) > -1e-6
    assert 0.3 < max(shares) < 0.5
