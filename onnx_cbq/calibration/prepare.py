"""From a raw sample to a model's input: channels, scale, mean and deviation, layout. What does not fit is explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_cbq.calibration.card import Card
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

# How to bring a batch of images of the other layout into this one.
_PERMUTATION = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 2, 3, 1)}
_CHANNEL_AXIS = {"NCHW": 0, "NHWC": 2}
# How much of red, green and blue is in grey, after ITU-R 601-2, as Pillow, OpenCV and TensorFlow have it.
_GREY = (0.299, 0.587, 0.114)
# Added to the variance of a sample, as Hugging Face's feature extractor of Wav2Vec2 does.
_SILENCE = 1e-7


@dataclass(frozen=True)
class Preparation:
    """How raw samples of one shape become one model input.

    Attributes:
        shape: of a raw sample.
        axis: of its channels or features.
        channels: what its channels become, or None if they stay.
        per_sample: how each sample is brought to a common range by itself, or None.
        channel_axis: that of the channels in a prepared sample, 0 or 2; None if it is no image.
    """

    shape: tuple[int, ...]
    axis: int
    dtype: np.dtype[np.generic]
    channels: Channels | None
    per_sample: str | None
    scale: float
    mean: Array  # broadcasts against a raw sample
    std: Array
    permutation: tuple[int, ...] | None
    channel_axis: int | None

    def apply(self, raw: Array, indices: Sequence[int] | npt.NDArray[np.int64], label: str) -> Array:
        """A raw batch [n, ...] as the model's input: channels, (x scale - mean) / std, then the model's layout.

        Raises:
            CalibrationError: a sample has another shape than the first one, or holds NaN or infinity.
        """
        if raw.shape[1:] != self.shape:
            raise CalibrationError(
                f"{label}: sample {indices[0]} is {raw.shape[1:]}, the first one {self.shape}; expected one size for "
                f"all, set resize and crop in the card"
            )
        values = raw if self.channels is None else self.channels.of(raw)
        given = values
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # what comes of it is found right below
            if np.issubdtype(self.dtype, np.floating):
                values = _by_itself(values.astype(np.float32), self.per_sample)
                values = (values * np.float32(self.scale) - self.mean) / self.std
            prepared = values.astype(self.dtype)
        if np.issubdtype(self.dtype, np.floating):
            right, expected = np.isfinite(prepared), "holds NaN or infinity; expected finite numbers"
        else:
            right, expected = prepared == given, f"holds a number beyond the model's {self.dtype}"
        whole = np.asarray(right).reshape(len(values), -1).all(axis=1)
        if not whole.all():
            raise CalibrationError(f"{label}: sample {indices[int(np.argmin(whole))]} {expected}")
        if self.permutation is not None:
            prepared = prepared.transpose(self.permutation)
        return np.ascontiguousarray(prepared)


@dataclass(frozen=True)
class Channels:
    """What becomes of the channels of images, along `axis` of a batch.

    Attributes:
        grey: whether one is made of three.
        turned: whether their order is turned.
        count: how many there are then; a single one is repeated.
    """

    axis: int
    grey: bool
    turned: bool
    count: int

    def of(self, raw: Array) -> Array:
        """The batch with these channels; grey values of whole numbers are rounded."""
        values = raw
        if self.grey and raw.shape[self.axis] == 3:
            weights = np.array(_GREY, np.float32)
            grey = np.expand_dims(np.moveaxis(raw, self.axis, -1).astype(np.float32) @ weights, self.axis)
            values = np.rint(grey).astype(raw.dtype) if raw.dtype.kind in "iu" else grey
        if self.turned:
            values = np.flip(values, self.axis)
        return np.repeat(values, self.count, self.axis) if values.shape[self.axis] < self.count else values


def _by_itself(values: Array, how: str | None) -> Array:
    """Each sample [n, ...] brought to a common range by its own figures, as `Card.per_sample` says."""
    if how is None:
        return values
    found = np.empty_like(values)
    for sample, into in zip(values, found, strict=True):
        if how in ("standardise", "normalise"):
            shift, deviation = sample.mean(dtype=np.float64), sample.std(dtype=np.float64)
            size = max(deviation, sample.size**-0.5) if how == "standardise" else (deviation**2 + _SILENCE) ** 0.5
        else:
            shift, size = sample.min(), sample.max() - sample.min()
        into[...] = (sample - np.float32(shift)) / np.float32(size if size else 1)
    return found


def fit(card: Card, spec: InputSpec, sample: Array, label: str, *, from_images: bool = False) -> Preparation:
    """How samples like `sample`, perhaps decoded from image files, become the input `spec`.

    Raises:
        CalibrationError: they cannot; the message says what the card gives, what the model wants, which key to change.
    """
    accepted = "biuf" if np.issubdtype(spec.dtype, np.floating) else "biu"
    if sample.dtype.kind not in accepted or spec.dtype.kind not in "biuf":
        raise CalibrationError(f"{label}: samples are {sample.dtype}, model input {spec.name!r} wants {spec.dtype}")
    layout = card.layout or ("NHWC" if from_images else None)
    axis = _channel_axis(layout, spec, sample.shape)
    channels, shape = _channels(card.channels, layout, spec, sample.shape, label)
    permutation = _permutation(layout, spec, shape, label, from_images=from_images)
    mean, std = (card.mean, card.std) if np.issubdtype(spec.dtype, np.floating) else ((0.0,), (1.0,))
    return Preparation(
        shape=sample.shape,
        axis=axis,
        dtype=spec.dtype,
        channels=channels,
        per_sample=card.per_sample,
        scale=card.scale,
        mean=_per_channel(mean, shape, axis, f"{label}: mean"),
        std=_per_channel(std, shape, axis, f"{label}: std"),
        permutation=permutation,
        channel_axis=None if len(sample.shape) != 3 else axis if permutation is None else 2 - axis,
    )


def wants_grey(spec: InputSpec) -> bool:
    """Whether the input is an image with a single channel."""
    return spec.shape is not None and len(spec.shape) == 4 and 1 in (spec.shape[1], spec.shape[3])


def _channels(
    wanted: str, layout: str | None, spec: InputSpec, shape: tuple[int, ...], label: str
) -> tuple[Channels | None, tuple[int, ...]]:
    """What becomes of the channels of a raw sample, and its shape then.

    Raises:
        CalibrationError: it is no image of so many channels.
    """
    if wanted == "RGB":
        return None, shape
    axis = _channel_axis(layout, spec, shape)
    given = shape[axis] if len(shape) == 3 else 0
    if given not in ((1, 3) if wanted == "grey" else (3,)):
        expected = "1 or 3" if wanted == "grey" else "3"
        raise CalibrationError(
            f'{label}: channels = "{wanted}" is for images of {expected} channels, samples are {shape}; leave it out'
        )
    if wanted == "BGR":
        return Channels(axis + 1, grey=False, turned=True, count=3), shape
    counts = [(count, (*shape[:axis], count, *shape[axis + 1 :])) for count in (1, 3)]
    sizes = spec.shape[1:] if spec.shape is not None else ()
    fitting = [
        (count, size)
        for count, size in counts
        if any(_fits(_arranged(size, permutation), sizes) for permutation in _permutations(layout, size))
    ]
    count, size = (fitting or counts)[0]
    return Channels(axis + 1, grey=True, turned=False, count=count), size


def _permutation(
    layout: str | None, spec: InputSpec, shape: tuple[int, ...], label: str, *, from_images: bool
) -> tuple[int, ...] | None:
    """How to reorder the axes of a raw batch, or None if they are the model's own."""
    if spec.shape is None:
        return None
    wanted = spec.shape[1:]
    for permutation in _permutations(layout, shape):
        if _fits(_arranged(shape, permutation), wanted):
            return permutation
    sizes = ", ".join("any" if size is None else str(size) for size in wanted)
    given = f'{shape} (layout = "{layout}")' if layout and len(shape) == 3 else str(shape)
    advice = "set resize and crop in the card" if from_images else "prepare samples of that shape"
    for other in _PERMUTATION:
        if other != layout and any(_fits(_arranged(shape, p), wanted) for p in _permutations(other, shape)):
            advice = f'set layout = "{other}" in the card'
    raise CalibrationError(f"{label}: samples are {given}, model input {spec.name!r} wants ({sizes}); {advice}")


def _permutations(layout: str | None, shape: tuple[int, ...]) -> list[tuple[int, ...] | None]:
    """How images of a layout become NCHW, then NHWC; anything else is left as it is."""
    if layout is None or len(shape) != 3:
        return [None]
    return [None if target == layout else permutation for target, permutation in _PERMUTATION.items()]


def _arranged(shape: tuple[int, ...], permutation: tuple[int, ...] | None) -> tuple[int, ...]:
    return shape if permutation is None else tuple(shape[axis - 1] for axis in permutation[1:])


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _channel_axis(layout: str | None, spec: InputSpec, shape: tuple[int, ...]) -> int:
    """The axis of a raw sample that mean and std run along: the channels of an image or signal, else the features."""
    if len(shape) == 3:
        size = spec.shape
        last = size is not None and len(size) == 4 and size[3] in (1, 3) and size[1] not in (1, 3)
        return _CHANNEL_AXIS[layout or ("NHWC" if last else "NCHW")]
    return 0


def _per_channel(values: tuple[float, ...], shape: tuple[int, ...], axis: int, where: str) -> Array:
    """One number, or one per channel, as an array that broadcasts against a raw sample."""
    numbers = np.array(values, np.float32)
    if len(numbers) == 1:
        return numbers[0:1].reshape((1,) * len(shape)) if shape else numbers[0]
    if not shape or shape[axis] != len(numbers):
        channels = shape[axis] if shape else 1
        raise CalibrationError(f"{where}: {len(numbers)} numbers, but the samples have {channels} channels")
    return numbers.reshape([-1 if a == axis else 1 for a in range(len(shape))])
