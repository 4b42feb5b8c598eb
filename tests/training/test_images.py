"""What augmentation does to images, and the views that the float net answers, on numpy's own flip and padding."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from onnx_cbq.model import Array
from onnx_cbq.records.augmentation import AUGMENTATIONS, most_views
from onnx_cbq.training.images import View, augmented, draw_views, views_of

IMAGES = np.random.default_rng(0).normal(size=(10, 2, 16, 8)).astype(np.float32)


def changed(augment: str, seed: int, axis: int = 1) -> Array:
    """The images after a change, channels first."""
    given = torch.from_numpy(IMAGES).movedim(1, axis)
    return np.asarray(augmented(given, (augment,), axis, np.random.default_rng(seed)).movedim(axis, 1).numpy())


def test_flip_mirrors_some_images_from_left_to_right() -> None:
    found = [changed("flip", seed) for seed in range(8)]
    plain = np.array([(images == IMAGES).all(axis=(1, 2, 3)) for images in found])
    mirrored = np.array([(images == IMAGES[..., ::-1]).all(axis=(1, 2, 3)) for images in found])
    assert np.logical_xor(plain, mirrored).all()
    # Of 80 fair throws, fewer than 20 or more than 60 come once in 100,000 times.
    assert 20 < mirrored.sum() < 60


def test_shift_moves_images_by_an_eighth_at_most_and_repeats_the_edge() -> None:
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="edge")
    moves = set()
    for seed in range(30):
        images = changed("shift", seed)
        fits = [
            (top, left)
            for top, left in product(range(5), range(3))
            if (padded[:, :, top : top + 16, left : left + 8] == images).all()
        ]
        assert len(fits) == 1
        moves |= set(fits)
    assert len(moves) > 8


def test_mix_blends_half_of_the_images_with_a_smaller_part_of_another() -> None:
    """The rest stays as it is; every image is its own by more than half, so that its label still says what it is."""
    shares = []
    for seed in range(20):
        for image, original in zip(changed("mix", seed), IMAGES, strict=True):
            others = (IMAGES - original).reshape(len(IMAGES), -1).astype(np.float64)
            moved = (image - original).reshape(-1).astype(np.float64)
            fits = [
                o @ moved / (o @ o)
                for o in others
                if o.any() and np.allclose(o @ moved / (o @ o) * o, moved, atol=1e-4)
            ]
            shares.append(0.0 if not moved.any() else fits[0])
    assert 0.35 < np.mean(np.array(shares) == 0) < 0.75
    assert min(shares) > -1e-6
    assert 0.3 < max(shares) < 0.5


def test_cut_pastes_a_box_of_another_image_into_every_second_one() -> None:
    """What is pasted comes from the same place, and is the smaller part."""
    areas = []
    for seed in range(20):
        for image, original in zip(changed("cut", seed), IMAGES, strict=True):
            pasted = (image != original).any(axis=0)
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            assert pasted.sum() == len(rows) * len(columns)
            assert any((image[:, pasted] == other[:, pasted]).all() for other in IMAGES)
            assert all((np.diff(ends) == 1).all() for ends in (rows, columns))
            areas.append(pasted.mean())
    assert 0.35 < np.mean(np.array(areas) == 0) < 0.75
    assert 0.2 < max(areas) <= 0.5


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_images_with_channels_last_are_changed_alike(augment: str) -> None:
    """Else their colours are mirrored, or their columns taken for channels."""
    np.testing.assert_array_equal(changed(augment, 5, axis=3), changed(augment, 5))


@pytest.mark.parametrize(("mirrored", "down", "right"), list(product((False, True), (-1, 0, 1), (-1, 0, 1))))
@pytest.mark.parametrize("axis", [1, 3])
def test_a_view_is_mirrored_and_moved_by_a_thirty_second(*, mirrored: bool, down: int, right: int, axis: int) -> None:
    """A height of 64 moves by two, a width of 8 by one; the edge is repeated."""
    images = np.random.default_rng(2).normal(size=(3, 2, 64, 8)).astype(np.float32)
    padded = np.pad(images[..., ::-1] if mirrored else images, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="edge")
    expected = padded[:, :, 2 + 2 * down : 66 + 2 * down, 1 + right : 9 + right]
    given = torch.from_numpy(images).movedim(1, axis)
    np.testing.assert_array_equal(View(down, right, mirrored=mirrored)(given, axis).movedim(axis, 1).numpy(), expected)


@pytest.mark.parametrize("augment", [(), ("mix",), ("flip",), ("shift", "cut"), ("flip", "shift", "mix")])
def test_views_differ_and_begin_with_the_image_as_it_is(augment: tuple[str, ...]) -> None:
    found = views_of(augment)
    assert found[0] == View()
    assert len(set(found)) == len(found) == most_views(augment)
    assert any(view.mirrored for view in found) == ("flip" in augment)
    assert any(view.down for view in found) == ("shift" in augment)


@pytest.mark.parametrize("augment", [(), ("flip",), ("shift",), ("flip", "shift")])
def test_drawn_views_differ_and_are_as_often_mirrored_as_not(augment: tuple[str, ...]) -> None:
    random = np.random.default_rng(4)
    for count in range(1, most_views(augment) + 1):
        found = draw_views(augment, count, random)
        assert len(set(found)) == len(found) == count
        assert set(found) <= set(views_of(augment))
        if "flip" in augment:
            assert sum(view.mirrored for view in found) == count // 2
