"""Batches: every sample in turn, the same order after a resumption, and what the float net answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.sources import ArraySource
from onnx_cbq.model import InputSpec
from onnx_cbq.training.batches import Batches
from onnx_cbq.training.images import View

IMAGES = np.random.default_rng(0).normal(size=(10, 2, 16, 8)).astype(np.float32)
LABELS = np.arange(10) % 3


@pytest.fixture
def batches() -> Batches:
    data = CalibrationSet.from_arrays(IMAGES, LABELS)
    samples = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2, 16, 8))])
    return Batches(samples, np.arange(10), 4, (), 1, torch.device("cpu"))


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


def test_in_order_gives_every_sample_once(batches: Batches) -> None:
    found = list(batches.in_order())
    np.testing.assert_array_equal(torch.cat([batch.feeds["x"] for batch in found]).numpy(), IMAGES)
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in found]).numpy(), LABELS)


def test_in_order_changes_images_in_the_same_way_each_time(batches: Batches) -> None:
    """Else the state that happened to see easy ones would be kept."""
    shaken = replace(batches, augment=("flip", "shift", "mix"))
    first, second = (torch.cat([batch.feeds["x"] for batch in shaken.in_order()]).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != IMAGES).any(axis=(1, 2, 3)).sum() > 5


def test_what_is_taught_is_the_mean_over_all_views(batches: Batches) -> None:
    """By a net that is anything but linear, on numpy's own flip and padding."""
    given = next(replace(batches, augment=("flip", "shift"), views=4).in_order())
    batch = replace(given, feeds={"x": torch.from_numpy(IMAGES)})
    images = batch.feeds["x"].numpy()
    padded = [np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge") for x in (images, images[..., ::-1])]
    views = [
        x[:, :, 1 + d : 17 + d, 1 + r : 9 + r] for x in padded for d in (-1, 0, 1) for r in (-1, 0, 1) if d * d == r * r
    ]
    weights = np.random.default_rng(1).normal(size=(images[0].size, 3)).astype(np.float32)

    def answer(feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy((feeds["x"].numpy().reshape(len(images), -1) @ weights) ** 2)

    expected = np.mean([answer({"x": torch.from_numpy(view.copy())}).numpy() for view in views], axis=0)
    np.testing.assert_allclose(batch.taught(answer).numpy(), expected, rtol=1e-5)


def test_every_batch_is_answered_in_other_views(batches: Batches) -> None:
    """As many as were asked for, half of them mirrored; and again the same after a resumption."""
    shaken = replace(batches, augment=("flip", "shift"), views=2)
    drawn = [batch.views for batch in islice(shaken.endless(7), 40)]
    assert all([view.mirrored for view in views] == [False, True] for views in drawn)
    assert len({view for views in drawn for view in views}) == 10
    assert [batch.views for batch in islice(shaken.endless(7, start=30), 10)] == drawn[30:]
    assert next(replace(shaken, views=1).endless(7)).views == (View(),)


def test_channels_are_found_where_the_model_has_them(batches: Batches) -> None:
    """Samples are stored one way, and the model may take them the other way."""
    data = CalibrationSet(ArraySource({"x": IMAGES}, LABELS, None), Card(Path(), layout="NCHW"))
    samples = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 16, 8, 2))])
    first, last = (next(replace(b, augment=("cut",)).endless(5)) for b in (batches, replace(batches, samples=samples)))
    assert (first.axes, last.axes) == ({"x": 1}, {"x": 3})
    np.testing.assert_array_equal(last.feeds["x"].permute(0, 3, 1, 2).numpy(), first.feeds["x"].numpy())
