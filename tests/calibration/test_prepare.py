"""From raw samples to a model's input: layout, scale, mean and deviation; what does not fit is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.prepare import fit, wants_grey
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)  # NHWC
MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)


def spec(*shape: int | None, dtype: Any = np.float32) -> InputSpec:
    return InputSpec("image", np.dtype(dtype), (None, *shape))


def prepared(card: Card, wanted: InputSpec, raw: Array) -> Array:
    return fit(card, wanted, raw[0], "a.npz").apply(raw, range(len(raw)), "a.npz")


def card(**settings: Any) -> Card:
    return Card(Path("a.npz"), **settings)


@pytest.mark.parametrize("stored", ["NHWC", "NCHW"])
@pytest.mark.parametrize("wanted", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_either_layout_goes_into_either(stored: str, wanted: str, dynamic: bool) -> None:
    """One pixel at a time, each with the mean and deviation of its channel."""
    raw = PIXELS if stored == "NHWC" else np.stack([np.moveaxis(image, 2, 0) for image in PIXELS])
    height, width = (None, None) if dynamic else (6, 5)
    shape = (height, width, 3) if wanted == "NHWC" else (3, height, width)
    found = prepared(card(layout=stored, scale=1 / 255, mean=MEAN, std=STD), spec(*shape), raw)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    for n, h, w, c in np.ndindex(PIXELS.shape):
        expected = (PIXELS[n, h, w, c] / 255 - MEAN[c]) / STD[c]
        value = found[n, h, w, c] if wanted == "NHWC" else found[n, c, h, w]
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_layout_samples_are_as_the_model_wants_them() -> None:
    nchw = PIXELS.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(prepared(card(), spec(3, 6, 5), nchw), nchw)
    found = prepared(card(mean=MEAN), spec(6, 5, 3), PIXELS)
    np.testing.assert_allclose(found, PIXELS - np.array(MEAN), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((7,), {"mean": tuple(range(7)), "std": tuple(range(1, 8))}), ((2, 40), {"mean": (1.0, 2.0), "std": (3.0, 4.0)})],
    ids=["vector", "signal"],
)
def test_samples_that_are_no_images(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    """A mean per feature of a vector, per channel of a signal."""
    raw = RANDOM.standard_normal((3, *shape))
    found = prepared(card(**settings), spec(*shape), raw)
    for n in range(3):
        for i in range(shape[0]):
            np.testing.assert_allclose(
                found[n, i], (raw[n, i] - settings["mean"][i]) / settings["std"][i], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("length", [12, None])
def test_token_ids_stay_whole_numbers(dtype: Any, length: int | None) -> None:
    """Neither the type nor the scale of a card that is made for another input may touch them."""
    raw = RANDOM.integers(0, 1 << 30, (3, 12))
    found = prepared(card(scale=0.5, mean=MEAN), spec(length, dtype=dtype), raw)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, raw)


def test_half_precision_input_is_prepared_in_single_precision() -> None:
    """40,000 squared would overflow float16 before the scale brings it back."""
    raw = np.full((1, 2), 60000.0)
    found = prepared(card(scale=4.0, mean=(239000.0,), std=(1000.0,)), spec(2, dtype=np.float16), raw)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.ones((1, 2)))


def test_raw_samples_are_not_overwritten() -> None:
    raw = PIXELS.astype(np.float32)
    prepared(card(layout="NHWC", scale=0.5), spec(3, 6, 5), raw)
    np.testing.assert_array_equal(raw, PIXELS)


@pytest.mark.parametrize(
    ("settings", "shape", "wanted", "expected"),
    [
        ({}, (6, 5, 3), (3, 6, 5), "samples are (6, 5, 3), model input 'image' wants (3, 6, 5); set layout = \"NHWC\""),
        ({}, (3, 6, 5), (6, 5, 3), "samples are (3, 6, 5), model input 'image' wants (6, 5, 3); set layout = \"NCHW\""),
        (
            {"layout": "NCHW"},
            (6, 5, 3),
            (3, 6, 5),
            'samples are (6, 5, 3) (layout = "NCHW"), model input \'image\' wants (3, 6, 5); set layout = "NHWC"',
        ),
        (
            {"layout": "NHWC"},
            (6, 5, 3),
            (3, 32, 32),
            "samples are (6, 5, 3) (layout = \"NHWC\"), model input 'image' wants (3, 32, 32); prepare samples of that",
        ),
        ({}, (3, 6, 5), (1, None, None), "wants (1, any, any); prepare samples of that shape"),
        ({}, (784,), (1, 28, 28), "samples are (784,), model input 'image' wants (1, 28, 28); prepare samples"),
        ({}, (), (4,), "samples are (), model input 'image' wants (4); prepare samples"),
        ({"mean": (0.1, 0.2)}, (3, 6, 5), (3, 6, 5), "a.npz: mean: 2 numbers, but the samples have 3 channels"),
        ({"std": (1.0, 2.0)}, (7,), (7,), "a.npz: std: 2 numbers, but the samples have 7 channels"),
        ({"mean": MEAN, "layout": "NHWC"}, (6, 5, 1), (1, 6, 5), "mean: 3 numbers, but the samples have 1 channels"),
    ],
)
def test_mismatch_is_explained(
    settings: dict[str, Any], shape: tuple[int, ...], wanted: tuple[int | None, ...], expected: str
) -> None:
    """What the card gives, what the model wants, which key to change."""
    with pytest.raises(CalibrationError) as error:
        fit(card(**settings), spec(*wanted), np.zeros(shape, np.float32), "a.npz")
    assert expected in str(error.value)


def test_images_of_the_wrong_size_ask_for_resize_and_crop(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="set resize and crop in the card"):
        fit(Card(tmp_path), spec(3, 32, 32), PIXELS[0], "images", from_images=True)


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        (np.zeros(4, np.complex64), np.float32),
        (np.zeros(4, "<U1"), np.float32),
        (np.zeros(4, "datetime64[s]"), np.float32),
        (np.zeros(4, np.float32), np.int64),
        (np.zeros(4, np.int64), np.object_),
    ],
)
def test_types_that_do_not_fit_are_explained(sample: Array, wanted: Any) -> None:
    with pytest.raises(
        CalibrationError, match=f"samples are {sample.dtype}, model input 'image' wants".replace("[", ".")
    ):
        fit(card(), spec(4, dtype=wanted), sample, "a.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("wanted", [(3, 6, 5), (6, 5, 3)])
def test_sample_that_is_not_finite_is_named(bad: float, wanted: tuple[int, ...]) -> None:
    raw = PIXELS.astype(np.float64)
    raw[2, 1, 1, 1] = bad
    step = fit(card(layout="NHWC", mean=MEAN), spec(*wanted), raw[0], "a.npz")
    with pytest.raises(CalibrationError, match=r"a\.npz: sample 72 holds NaN or infinity"):
        step.apply(raw, [70, 71, 72, 73], "a.npz")


def test_sample_of_another_shape_than_the_first_is_named() -> None:
    """A model of any size would run it, and every measured shape would be wrong."""
    step = fit(card(layout="NHWC"), spec(3, None, None), PIXELS[0], "a.npz")
    with pytest.raises(CalibrationError, match=r"sample 8 is \(6, 4, 3\), the first one \(6, 5, 3\); .* set resize"):
        step.apply(PIXELS[:, :, :4], [8, 9, 10, 11], "a.npz")


@pytest.mark.parametrize(
    ("shape", "grey"),
    [((1, 28, 28), True), ((28, 28, 1), True), ((3, 28, 28), False), ((None, 28, 28), False), ((28,), False)],
)
def test_one_channel_makes_an_input_grey(shape: tuple[int | None, ...], grey: bool) -> None:
    assert wants_grey(spec(*shape)) == grey


@pytest.mark.parametrize("stored", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bgr_turns_the_channels_before_the_mean(stored: str, dtype: Any) -> None:
    """Keras' caffe mode: the order is turned, then 103.939, 116.779 and 123.68 are subtracted from B, G and R."""
    raw = (PIXELS if stored == "NHWC" else PIXELS.transpose(0, 3, 1, 2)).astype(dtype)
    caffe = (103.939, 116.779, 123.68)
    found = prepared(card(layout=stored, channels="BGR", mean=caffe), spec(3, 6, 5), raw)
    expected = PIXELS[..., ::-1].astype(np.float32) - np.array(caffe, np.float32)
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_grey_is_that_of_pillow_and_repeated_where_three_are_wanted(channels: int, given: int, layout: str) -> None:
    raw = PIXELS[..., :given]
    if given == 1:
        expected = raw[..., 0]
    else:
        expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in PIXELS])
    stored = raw if layout == "NHWC" else raw.transpose(0, 3, 1, 2)
    found = prepared(card(layout=layout, channels="grey"), spec(channels, 6, 5), np.ascontiguousarray(stored))
    assert found.shape == (4, channels, 6, 5)
    for c in range(channels):
        np.testing.assert_allclose(found[:, c], expected, atol=1)


def test_channels_of_what_is_no_image_are_refused() -> None:
    for wanted, shape in (("BGR", (6, 5, 1)), ("BGR", (7,)), ("grey", (6, 5, 4))):
        with pytest.raises(CalibrationError, match=f'channels = "{wanted}" is for images of .* samples are'):
            fit(card(channels=wanted, layout="NHWC"), spec(*shape), np.zeros(shape), "a.npz")


def test_integer_inputs_take_channels_and_no_figures() -> None:
    found = prepared(card(layout="NHWC", channels="BGR", per_sample="range"), spec(3, 6, 5, dtype=np.uint8), PIXELS)
    np.testing.assert_array_equal(found, PIXELS[..., ::-1].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(3, 6, 5), (40,)])
def test_samples_are_standardised_by_themselves_as_in_tensorflow(shape: tuple[int, ...]) -> None:
    """tf.image.per_image_standardization: (x - mean) / max(stddev, 1 / sqrt(N)), of each image by itself."""
    raw = RANDOM.integers(0, 256, (3, *shape)).astype(np.uint8)
    raw[1] = 9
    found = prepared(card(per_sample="standardise"), spec(*shape), raw)
    for image, got in zip(raw.astype(np.float64), found, strict=True):
        adjusted = max(image.std(), 1 / np.sqrt(image.size))
        np.testing.assert_allclose(got, (image - image.mean()) / adjusted, rtol=1e-5, atol=1e-5)


def test_soft_sounds_are_normalised_as_loud_ones() -> None:
    """As Wav2Vec2's feature extractor does; the least deviation of images left a soft sound a tenth of its size."""
    loud = RANDOM.standard_normal((1, 16_000)) * 0.1
    raw = np.concatenate([loud, loud / 100, np.zeros_like(loud)])
    found = prepared(card(per_sample="normalise"), spec(16_000), raw)
    expected = (raw - raw.mean(axis=1, keepdims=True)) / np.sqrt(raw.var(axis=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[1].std() > 0.9


def test_samples_are_brought_to_a_range_and_then_scaled() -> None:
    raw = np.array([[2.0, 4.0, 10.0], [-1.0, -1.0, -1.0]])
    found = prepared(card(per_sample="range", mean=(0.5,), std=(0.5,)), spec(3), raw)
    np.testing.assert_allclose(found, np.array([[-1, -0.5, 1], [-1, -1, -1]]), atol=1e-6)
