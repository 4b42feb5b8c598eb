"""What samples and a model's input say of each other before anything is run: layouts that fit, sizes, figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.calibration.card import LAYOUTS, Card
from onnx_cbq.calibration.figures import Figures, measured, of_pixels
from onnx_cbq.calibration.prepare import fit, wants_grey
from onnx_cbq.calibration.samples import CalibrationSet
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

# Samples that figures are taken of, and images whose sizes are compared, evenly spread over the source. Of large
# samples as many are taken as have so many bytes, at least a few.
_MEASURED, _MEASURED_BYTES, _FEW, _COMPARED, _BATCH = 5000, 64 << 20, 200, 60, 50
# Height and width where a model takes any and images have several.
_USUAL_SIZE = 224
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Survey:
    """What is known before anything is run.

    Attributes:
        layouts: those that fit the model, None for the model's own, each with figures of the samples.
        image: whether the samples are images of 1 or 3 channels.
        whole: whether the model takes whole numbers.
        size: height and width that the model takes images in.
        is_resized: whether images have to be brought to it.
        notes: what a user should know.
    """

    layouts: Mapping[str | None, Figures]
    image: bool
    whole: bool
    size: tuple[int, int] | None = None
    is_resized: bool = False
    notes: tuple[str, ...] = ()


def survey(data: CalibrationSet, inputs: Sequence[InputSpec], size: int | None) -> Survey:
    """What samples and the inputs of a model say of each other; `size` is for a model that takes images of any.

    Raises:
        CalibrationError: samples cannot be read, or fit no layout.
    """
    data = replace(data, source=data.source.fitted_to(inputs))
    return _of_images(data, inputs[0], size) if data.are_images else _of_arrays(data, inputs)


def _of_images(data: CalibrationSet, spec: InputSpec, asked: int | None) -> Survey:
    colours = 1 if wants_grey(spec) else 3
    wanted, given = _model_size(spec), _common_size(data)
    notes: tuple[str, ...] = ()
    if wanted is not None and asked not in (None, *wanted):
        raise CalibrationError(f"--size {asked}: the model takes {wanted[0]}x{wanted[1]}; leave --size out")
    found = wanted if wanted is not None else (asked, asked) if asked is not None else given
    if wanted is None and asked is None:
        what = "and they differ" if found is None else "and they have one"
        found = found or (_USUAL_SIZE, _USUAL_SIZE)
        notes = (f"the model takes images of any size, {what}: {found[0]}x{found[1]} was taken; --size gives another",)
    whole = not np.issubdtype(spec.dtype, np.floating)
    figures: dict[str | None, Figures] = {"NHWC": of_pixels(colours)}
    return Survey(figures, image=True, whole=whole, size=found, is_resized=given != found, notes=notes)


def _model_size(spec: InputSpec) -> tuple[int, int] | None:
    """Height and width of the model's input, None if it takes any."""
    if spec.shape is None or len(spec.shape) != 4:
        return None
    height, width = spec.shape[1:3] if spec.shape[3] in _CHANNELS and spec.shape[1] not in _CHANNELS else spec.shape[2:]
    return None if height is None or width is None else (height, width)


def _common_size(data: CalibrationSet) -> tuple[int, int] | None:
    """Height and width of the images, None if they differ."""
    source, found = data.source, set()
    for index in _spread(len(data.labels), _COMPARED):
        found.add(source.read(source.inputs[0], [int(index)]).shape[1:3])
        if len(found) > 1:
            return None
    height, width = found.pop()
    return height, width


def _of_arrays(data: CalibrationSet, inputs: Sequence[InputSpec]) -> Survey:
    """The survey of arrays; where a model has several inputs, of the first that is of real numbers."""
    spec = next((one for one in inputs if np.issubdtype(one.dtype, np.floating)), inputs[0])
    names = data.source.inputs
    name = spec.name if spec.name in names else "x" if "x" in names else names[0]
    sample = data.source.read(name, [0])[0]
    layouts: dict[tuple[tuple[int, ...] | None, int], str | None] = {}
    failure: CalibrationError | None = None
    for layout in (None, *LAYOUTS) if sample.ndim == 3 else (None,):
        try:
            step = fit(Card(data.card.source, layout=layout), spec, sample, data.source.label)
        except CalibrationError as error:
            failure = failure or error
            continue
        layouts.setdefault((step.permutation, step.axis), layout)
    if failure is not None and not layouts:
        raise failure
    whole = not np.issubdtype(spec.dtype, np.floating)
    count = min(_MEASURED, max(_MEASURED_BYTES // max(sample.nbytes, 1), _FEW))
    figures = {layout: measured(_batches(data, name, count), axis) for (_, axis), layout in layouts.items()}
    if sample.ndim != 3:
        return Survey(figures, image=False, whole=whole)
    # A square image in colour is one of as many channels as rows in the other layout, which nobody means.
    images = {layout: one for layout, one in figures.items() if one.channels in _CHANNELS}
    return Survey(images or figures, image=bool(images), whole=whole)


def _batches(data: CalibrationSet, name: str, count: int) -> Iterator[Array]:
    """Samples that figures are taken of."""
    indices = _spread(len(data.labels), count)
    for start in range(0, len(indices), _BATCH):
        yield data.source.read(name, [int(index) for index in indices[start : start + _BATCH]])


def _spread(count: int, most: int) -> Array:
    """At most so many places, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
