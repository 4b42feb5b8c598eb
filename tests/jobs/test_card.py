"""The first card: nets that were made for one preparation are found to want it, and nothing is guessed in silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_cbq.errors import CalibrationError, ModelError, OnnxCbqError, VerificationError
from onnx_cbq.jobs.card import find_card
from onnx_cbq.jobs.card_result import CardConfig, CardResult
from onnx_cbq.model import Array
from tests.calibration.test_candidates import LIBRARIES
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

CLASSES, EACH, SIDE = 30, 12, 6


def colours(seed: int = 0) -> tuple[Array, Array]:
    """Images of a colour for each class, half of each lighter, with noise: uint8 NHWC, and their labels."""
    random = np.random.default_rng(seed)
    palette = np.random.default_rng(7).uniform(50, 200, (CLASSES, 1, 1, 3))
    labels = np.arange(CLASSES * EACH) % CLASSES
    light = np.where(np.arange(SIDE) < SIDE // 2, 30, -30)[:, None, None]
    images = palette[labels] + light + random.normal(0, 12, (len(labels), SIDE, SIDE, 3))
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def nearest_centre(prepared: Array, labels: Array, *, nhwc: bool) -> onnx.ModelProto:
    """A net that takes the class whose mean is nearest to the mean of an image, both prepared as `prepared` is.

    -|m - c|^2 / 2 less what all classes have in common is m c - |c|^2 / 2, over the variance within classes.
    """
    means = prepared.mean(axis=(1, 2))
    centres = np.stack([means[labels == m].mean(axis=0) for m in range(CLASSES)])
    variance = float(np.square(means - centres[labels]).mean())
    constants = {"w": centres.T / variance, "b": -np.square(centres).sum(axis=1) / 2 / variance}
    axes = np.array([1, 2] if nhwc else [2, 3])
    nodes = [node("ReduceMean", "x axes", "m", keepdims=0), node("MatMul", "m w", "s"), node("Add", "s b", "y")]
    shape = ("N", SIDE, SIDE, 3) if nhwc else ("N", 3, SIDE, SIDE)
    return make_model(
        nodes, {"x": shape}, ["y"], {**{k: v.astype(np.float32) for k, v in constants.items()}, "axes": axes}
    )


def found(tmp_path: Path, model: onnx.ModelProto, x: Array, y: Array, **settings: Any) -> CardResult:
    np.savez(tmp_path / "a.npz", x=x, y=y)
    return find_card(model, tmp_path / "a.npz", CardConfig(**settings))


@pytest.mark.parametrize("nhwc", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_net_is_found_to_want_what_it_was_made_for(tmp_path: Path, name: str, order: str, nhwc: bool) -> None:
    """Samples that it was made from, and others that it is tried on."""
    x, y = colours()
    prepared = np.stack([LIBRARIES[name](image.astype(np.float64)) for image in x])
    prepared = prepared if order == "RGB" else prepared[..., ::-1]
    result = found(tmp_path, nearest_centre(prepared, y, nhwc=nhwc), *colours(1))
    # They differ by a hundredth, which no net sees.
    alike = {"(x - 127) / 128": "-1..1", "-1..1": "(x - 127) / 128"}
    accepted = {name, alike.get(name, name)}
    best = result.best.candidate
    assert (best.values in accepted, best.card.channels) == (True, order), result.verdict()
    assert result.refusal is None
    assert result.best.outcome.accuracy > 0.8
    assert best.card.layout == (None if nhwc else "NHWC")


def test_what_is_plainly_behind_drops_out_early(tmp_path: Path) -> None:
    x, y = colours()
    result = found(tmp_path, nearest_centre(x / 255, y, nhwc=True), *colours(1), samples=300)
    counts = [row.outcome.samples for row in result.rows]
    assert counts[0] == 300
    assert min(counts) == 60
    behind = [row for row in result.rows if not row.tied]
    assert all(row.outcome.accuracy < result.best.outcome.accuracy for row in behind)


def folder_of(path: Path, images: list[Array], labels: Array, names: list[str]) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (path / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / names[label] / f"{i:03}.png")
    return path


PALETTE = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [210, 210, 30]], np.uint8)


def colour_at(rows: slice, columns: slice, side: int) -> onnx.ModelProto:
    """A net that names the colour of a part of an image of 0..1: the class whose colour is nearest to its mean."""
    mask = np.zeros((1, 1, side, side), np.float32)
    mask[..., rows, columns] = 1
    centres = PALETTE / 255
    nodes = [node("Mul", "x mask", "p"), node("ReduceSum", "p axes", "m", keepdims=0)]
    nodes += [node("MatMul", "m w", "s"), node("Add", "s b", "y")]
    constants = {
        "mask": mask / mask.sum(),
        "axes": np.array([2, 3]),
        "w": (20 * centres.T).astype(np.float32),
        "b": (-10 * np.square(centres).sum(axis=1)).astype(np.float32),
    }
    return make_model(nodes, {"x": ["N", 3, side, side]}, ["y"], constants)


def test_squashed_images_are_told_from_cropped_ones(tmp_path: Path) -> None:
    """What counts is in a band at the left, which crops of an oblong image cut off; a border lies above it."""
    random, labels = np.random.default_rng(0), np.arange(80) % 4
    images = []
    for label in labels:
        image = np.empty((32, 32 + 8 * int(random.integers(4, 8)), 3), np.uint8)
        image[:] = PALETTE[random.integers(4)]
        image[:, : image.shape[1] // 8] = PALETTE[label]
        images.append(image)
    source = folder_of(tmp_path / "images", images, labels, list("abcd"))
    result = find_card(colour_at(slice(0, 2), slice(0, 2), 16), source, CardConfig(samples=80))
    assert result.best.candidate.card.resize == (16, 16)
    assert result.best.candidate.framing.startswith("squash")
    assert result.best.outcome.accuracy == 1.0
    assert not any(row.tied and row.candidate.framing.startswith("crop") for row in result.rows)


def test_the_share_of_a_crop_is_told(tmp_path: Path) -> None:
    """A frame that says nothing, as wide as a crop share of 0.875 cuts off."""
    random, labels = np.random.default_rng(0), np.arange(80) % 4
    images = []
    for label in labels:
        image = np.empty((128, 128, 3), np.uint8)
        image[:] = PALETTE[random.integers(4)]
        image[8:-8, 8:-8] = PALETTE[label]
        images.append(image)
    source = folder_of(tmp_path / "images", images, labels, list("abcd"))
    result = find_card(colour_at(slice(0, 1), slice(None), 14), source, CardConfig(samples=80))
    tied = {row.candidate.card.crop_share for row in result.rows if row.tied}
    assert tied == {0.875}
    assert (result.best.candidate.card.crop, result.best.outcome.accuracy) == ((14,), 1.0)


def test_images_of_the_model_s_size_are_left_as_they_are(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = [np.broadcast_to(PALETTE[label], (14, 14, 3)).copy() for label in labels]
    source = folder_of(tmp_path / "images", images, labels, list("abcd"))
    result = find_card(colour_at(slice(None), slice(None), 14), source, CardConfig(samples=40))
    assert {row.candidate.framing for row in result.rows} == {""}
    assert result.best.candidate.card.resize is None
    assert result.best.candidate.card.crop is None


def digits(**other: Array) -> dict[str, Array]:
    with np.load(DIGITS_CARD.with_suffix(".npz")) as file:
        return {"x": file["x"], "y": file["y"], **other}


def written(path: Path, **arrays: Array) -> Path:
    np.savez(path / "a.npz", **arrays)  # type: ignore[arg-type]
    return path / "a.npz"


def test_labels_in_another_order_are_told(tmp_path: Path) -> None:
    """Nothing that is tried is right then, and the preparation would be blamed."""
    order = np.random.default_rng(1).permutation(10)
    result = find_card(DIGITS_MODEL, written(tmp_path, **digits(y=order[digits()["y"]])), CardConfig())
    assert result.refusal is not None
    assert "the labels have another order than the model's classes" in result.refusal
    label = min(int(order[m]) for m in range(10) if order[m] != m)
    assert f"(label {label}) is taken for class {int(np.flatnonzero(order == label)[0])}" in result.refusal
    assert "number 'y' as it does" in result.refusal
    # The right preparation is named, though by the labels it is among the worst.
    best = re.search(r"numbered so ([\d.]+) % would be right \((.*)\);", result.refusal)
    assert best is not None
    assert float(best[1]) > 95
    assert best[2] in {"0..1 of 0..16", "per image 0..1", "features to 0..1"}
    with pytest.raises(VerificationError, match="another order"):
        result.text(tmp_path)


def test_two_classes_that_changed_places_are_told(tmp_path: Path) -> None:
    """Eight of ten are right, so that accuracy alone says little."""
    y = digits()["y"]
    swapped = np.where(y == 3, 8, np.where(y == 8, 3, y))
    result = find_card(DIGITS_MODEL, written(tmp_path, **digits(y=swapped)), CardConfig())
    assert result.best.outcome.accuracy > 0.7
    assert "'3' (label 3) is taken for class 8, '8' (label 8) is taken for class 3; numbered so 9" in str(
        result.refusal
    )


@pytest.mark.parametrize("kind", ["labels", "samples"])
def test_what_is_no_better_than_guessing_is_told(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    x, y = digits()["x"], digits()["y"]
    noise = random.permutation(x.ravel()).reshape(x.shape)
    chosen = {"x": x, "y": random.permutation(y)} if kind == "labels" else {"x": noise, "y": y}
    result = find_card(DIGITS_MODEL, written(tmp_path, **chosen), CardConfig())
    assert "no better than the 10.0 % of a constant answer" in str(result.refusal)


def test_folders_are_brought_into_order_by_the_names_of_the_classes(tmp_path: Path) -> None:
    """Folders are sorted; what the model calls its classes has another order."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    given = digits()
    images = [np.asarray(image[..., 0]) for image in given["x"]]
    source = folder_of(tmp_path / "images", images, given["y"], names)
    result = find_card(DIGITS_MODEL, source, CardConfig())
    assert "another order than the model's classes" in str(result.refusal)
    assert "--classes FILE" in str(result.refusal)
    result = find_card(DIGITS_MODEL, source, CardConfig(), names)
    assert result.refusal is None
    assert result.best.candidate.card.classes == tuple(names)


def test_more_classes_than_samples_give_one_of_each_of_some(tmp_path: Path) -> None:
    x, y = colours()
    result = found(tmp_path, nearest_centre(x / 255, y, nhwc=True), *colours(1), samples=20)
    assert result.best.outcome.samples == 20
    assert result.guessing == 0.05
    assert result.refusal is None


def test_features_are_standardised_by_their_figures(tmp_path: Path) -> None:
    """A net of standardised features of very unlike size, as tables have them."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    centres = random.standard_normal((4, 5)) * 2
    raw = (centres[labels] + random.standard_normal((200, 5))) * [1, 100, 0.01, 5, 1] + [0, 1000, 3, -20, 50]
    standard = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    means = np.stack([standard[labels == m].mean(axis=0) for m in range(4)])
    constants = {"w": 4 * means.T, "b": -2 * np.square(means).sum(axis=1)}
    nodes = [node("MatMul", "x w", "s"), node("Add", "s b", "y")]
    model = make_model(nodes, {"x": ["N", 5]}, ["y"], {k: v.astype(np.float32) for k, v in constants.items()})
    result = found(tmp_path, model, raw, labels, samples=200)
    assert result.best.candidate.values == "features standardised"
    assert result.best.outcome.accuracy > 0.8
    np.testing.assert_allclose(result.best.candidate.card.mean, raw.mean(axis=0))


def test_token_ids_have_one_way(tmp_path: Path) -> None:
    ids = np.arange(60) % 3
    table = (5 * np.eye(3)).astype(np.float32)
    nodes = [node("Gather", "t x", "e"), node("ReduceMean", "e a", "y", keepdims=0)]
    model = make_model(nodes, {"x": ["N", 4]}, ["y"], {"t": table, "a": np.array([1])}, dtypes={"x": np.int64})
    result = found(tmp_path, model, np.repeat(ids[:, None], 4, axis=1), ids, samples=60)
    assert [(row.candidate.values, row.outcome.accuracy) for row in result.rows] == [("as stored", 1.0)]


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"samples are \(9, 9, 1\), model input 'image' wants"):
        find_card(DIGITS_MODEL, written(tmp_path, x=np.zeros((40, 9, 9, 1)), y=np.arange(40) % 10))


def test_a_model_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    """Every candidate fails alike; what onnxruntime says of the first is passed on."""
    model = make_model(
        [node("Reshape", "x s", "r"), node("MatMul", "r w", "y")],
        {"x": ["N", 5]},
        ["y"],
        {"s": np.array([-1, 7]), "w": np.ones((7, 3), np.float32)},
    )
    with pytest.raises(ModelError, match="onnxruntime cannot run the model"):
        found(tmp_path, model, np.ones((40, 5)), np.arange(40) % 3)


def test_the_draw_follows_the_seed(tmp_path: Path) -> None:
    source = written(tmp_path, **digits())
    first, same, other = (find_card(DIGITS_MODEL, source, CardConfig(seed=seed, samples=100)) for seed in (0, 0, 1))
    rights = [result.best.outcome.loss for result in (first, same, other)]
    np.testing.assert_array_equal(rights[0], rights[1])
    assert not np.array_equal(rights[0], rights[2])


def confusing(tmp_path: Path, taken: Array) -> CardResult:
    """A net of 4 classes whose answers are the samples themselves; `taken` of 10 samples of class 0 are called 1."""
    y = np.repeat(np.arange(4), 20)
    answers = y.copy()
    answers[:20][taken] = 1
    model = make_model([node("Mul", "x t", "y")], {"x": ["N", 4]}, ["y"], {"t": np.array(5, np.float32)})
    return found(tmp_path, model, np.eye(4)[answers].astype(np.float32), y, samples=80)


def test_a_net_that_confuses_two_classes_is_not_refused(tmp_path: Path) -> None:
    """Half of a class is taken for another, which is the net's fault and no order of the labels."""
    assert confusing(tmp_path, np.arange(20) % 2 == 0).refusal is None
    assert confusing(tmp_path, np.ones(20, bool)).refusal is None  # none of its own samples would fit the number 1


def resizable(side: int) -> onnx.ModelProto:
    model = colour_at(slice(None), slice(None), side)
    nodes = [node("ReduceMean", "x axes", "m", keepdims=0), *model.graph.node[2:]]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return make_model(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], {name: constants[name] for name in ("axes", "w", "b")})


@pytest.mark.parametrize(
    ("sizes", "size", "note", "crop"),
    [
        ((20, 24), None, "and they differ: 224x224 was taken; --size gives another", (224,)),
        ((20, 24), 16, None, (16,)),
        ((20, 20), None, "and they have one: 20x20 was taken; --size gives another", None),
        ((20, 20), 16, None, (16,)),
    ],
)
def test_a_model_of_any_size_is_told_of(
    tmp_path: Path, sizes: tuple[int, int], size: int | None, note: str | None, crop: tuple[int, ...] | None
) -> None:
    labels = np.arange(40) % 4
    images = [np.broadcast_to(PALETTE[m], (sizes[i % 2], 20, 3)).copy() for i, m in enumerate(labels)]
    source = folder_of(tmp_path / "images", images, labels, list("abcd"))
    result = find_card(resizable(14), source, CardConfig(samples=40, size=size))
    assert [str(note) in found for found in result.notes] == ([] if note is None else [True])
    assert result.best.candidate.card.crop == crop
    assert result.best.outcome.accuracy == 1.0


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", [np.zeros((9, 9, 3), np.uint8)] * 8, np.arange(8) % 4, list("abcd"))
    with pytest.raises(CalibrationError, match="--size 16: the model takes 14x14; leave --size out"):
        find_card(colour_at(slice(None), slice(None), 14), source, CardConfig(samples=20, size=16))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = [np.broadcast_to(PALETTE[m], (20, 24, 3)).copy() for m in labels]
    source = folder_of(tmp_path / "images", images, labels, list("abcd"))
    (source / "a" / "bad.png").write_bytes(b"no image")
    model = colour_at(slice(None), slice(None), 14)
    with pytest.raises(OnnxCbqError, match=r"bad\.png: cannot be read as an image"):
        find_card(model, source, CardConfig(samples=41))
    result = find_card(model, source, CardConfig(samples=41), skip_unreadable=True)
    assert "1 unreadable images were left out" in result.notes


def test_several_classes_of_a_sample(tmp_path: Path) -> None:
    """Labels of 0 and 1 for each class behind sigmoids, features on a scale that the net was not made for."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, (120, 6))
    x = 40 * (y + random.normal(0, 0.2, y.shape)) + 100
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    assert ((standard > 0) == y).mean() > 0.98
    model = make_model(
        [node("Mul", "x t", "z"), node("Sigmoid", "z", "y")], {"x": ["N", 6]}, ["y"], {"t": np.array(5, np.float32)}
    )
    result = found(tmp_path, model, x, y, samples=120)
    assert result.best.candidate.values in ("features standardised", "all standardised as one")
    assert result.best.outcome.accuracy == pytest.approx(((standard > 0) == y).mean(), abs=0.02)
    assert result.refusal is None


def test_positions_that_have_a_label_each(tmp_path: Path) -> None:
    """A net that takes each token's own number for its class, where some do not count."""
    ids = np.random.default_rng(0).integers(0, 3, (60, 4))
    labels = np.where(np.random.default_rng(1).random(ids.shape) < 0.2, -100, ids)
    nodes = [node("Gather", "t x", "y")]
    table = {"t": (5 * np.eye(3)).astype(np.float32)}
    model = make_model(nodes, {"x": ["N", 4]}, ["y"], table, dtypes={"x": np.int64})
    result = found(tmp_path, model, ids, labels, samples=60)
    assert result.best.outcome.accuracy == 1.0
    assert result.guessing == pytest.approx(np.bincount(labels[labels >= 0]).max() / (labels >= 0).sum())
    assert result.refusal is None


def test_a_net_that_is_surer_the_larger_its_input_is_not_overdriven(tmp_path: Path) -> None:
    """Without an error the loss falls with the scale of the scores, and 0..255 would be taken for the best."""
    labels = np.arange(120) % 4
    x = np.random.default_rng(0).normal(0, 5, (120, 5, 5, 3)) + PALETTE[labels][:, None, None]
    directions = (PALETTE / np.linalg.norm(PALETTE, axis=1, keepdims=True)).T
    nodes = [node("ReduceMean", "x axes", "m", keepdims=0), node("MatMul", "m w", "y")]
    constants = {"w": (30 * directions).astype(np.float32), "axes": np.array([1, 2])}
    model = make_model(nodes, {"x": ["N", 5, 5, 3]}, ["y"], constants)
    result = found(tmp_path, model, np.clip(np.rint(x), 0, 255).astype(np.uint8), labels, samples=120)
    overdriven = next(row for row in result.rows if row.candidate.name == "0..255")
    assert (overdriven.tied, overdriven.outcome.loss.mean() < result.best.outcome.loss.mean()) == (True, True)
    assert result.best.candidate.name == "0..1"
