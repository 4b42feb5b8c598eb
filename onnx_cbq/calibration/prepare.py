"""From a raw sample to a model's input: type, scale, mean and deviation, layout. What does not fit is explained."""

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


@dataclass(frozen=True)
class Preparation:
    """How raw samples of one shape become one model input.

    Attributes:
        channel_axis: that of the channels in a prepared sample, 0 or 2; None if it is no image.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    scale: float
    mean: Array  # broadcasts against a raw sample
    std: Array
    permutation: tuple[int, ...] | None
    channel_axis: int | None

    def apply(self, raw: Array, indices: Sequence[int] | npt.NDArray[np.int64], label: str) -> Array:
        """A raw batch [n, ...] as the model's input: (x scale - mean) / std, then the model's layout.

        Raises:
            CalibrationError: a sample has another shape than the first one, or holds NaN or infinity.
        """
        if raw.shape[1:] != self.shape:
            raise CalibrationError(
                f"{label}: sample {indices[0]} is {raw.shape[1:]}, the first one {self.shape}; expected one size for "
                f"all, set resize and crop in the card"
            )
        values = raw
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # what comes of it is found right below
            if np.issubdtype(self.dtype, np.floating):
                values = (raw.astype(np.float32) * np.float32(self.scale) - self.mean) / self.std
            prepared = values.astype(self.dtype)
        if np.issubdtype(self.dtype, np.floating):
            right, expected = np.isfinite(prepared), "holds NaN or infinity; expected finite numbers"
        else:
            right, expected = prepared == raw, f"holds a number beyond the model's {self.dtype}"
        whole = np.asarray(right).reshape(len(values), -1).all(axis=1)
        if not whole.all():
            raise CalibrationError(f"{label}: sample {indices[int(np.argmin(whole))]} {expected}")
        if self.permutation is not None:
            prepared = prepared.transpose(self.permutation)
        return np.ascontiguousarray(prepared)


def fit(card: Card, spec: InputSpec, sample: Array, label: str, *, from_images: bool = False) -> Preparation:
    """How samples like `sample`, perhaps decoded from image files, become the input `spec`.

    Raises:
        CalibrationError: they cannot; the message says what the card gives, what the model wants, which key to change.
    """
    accepted = "biuf" if np.issubdtype(spec.dtype, np.floating) else "biu"
    if sample.dtype.kind not in accepted or spec.dtype.kind not in "biuf":
        raise CalibrationError(f"{label}: samples are {sample.dtype}, model input {spec.name!r} wants {spec.dtype}")
    layout = card.layout or ("NHWC" if from_images else None)
    permutation = _permutation(layout, spec, sample.shape, label, from_images=from_images)
    axis = _channel_axis(layout, spec, sample.shape)
    mean, std = (card.mean, card.std) if np.issubdtype(spec.dtype, np.floating) else ((0.0,), (1.0,))
    return Preparation(
        shape=sample.shape,
        dtype=spec.dtype,
        scale=card.scale,
        mean=_per_channel(mean, sample.shape, axis, f"{label}: mean"),
        std=_per_channel(std, sample.shape, axis, f"{label}: std"),
        permutation=permutation,
        channel_axis=None if len(sample.shape) != 3 else axis if permutation is None else 2 - axis,
    )


def wants_grey(spec: InputSpec) -> bool:
    """Whether the input is an image with a single channel."""
    return spec.shape is not None and len(spec.shape) == 4 and 1 in (spec.shape[1], spec.shape[3])


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
