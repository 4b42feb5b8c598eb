"""What samples and a model's input say of each other before anything is run: layouts that fit, sizes, figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_cbq.calibration.candidates import Framings, image_framings, sound_framings
from onnx_cbq.calibration.card import LAYOUTS, Card
from onnx_cbq.calibration.figures import Figures, measured, of_pixels
from onnx_cbq.calibration.prepare import fit, wants_grey
from onnx_cbq.calibration.samples import CalibrationSet
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec

# Samples that figures are taken of, and files whose sizes are compared, evenly spread over the source. Of large
# samples as many are taken as have so many bytes, at least a few.
_MEASURED, _MEASURED_BYTES, _FEW, _COMPARED, _BATCH = 5000, 64 << 20, 200, 60, 50
# Height and width where a model takes any and images have several.
_USUAL_SIZE = (224, 224)
_CHANNELS = (1, 3)
# Share of sounds that a model's length is taken to be made for.
_MOST = 0.9


@dataclass(frozen=True)
class Survey:
    """What is known before anything is run.

    Attributes:
        layouts: those that fit the model, None for the model's own, each with figures of the samples.
        image: whether the samples are images of 1 or 3 channels.
        whole: whether the model takes whole numbers.
        sound: whether the samples are sounds.
        framings: how files may come to the size that the model takes, the usual way first; none if they have it.
        notes: what a user should know.
    """

    layouts: Mapping[str | None, Figures]
    image: bool
    whole: bool
    sound: bool = False
    framings: Framings = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def survey(data: CalibrationSet, inputs: Sequence[InputSpec], size: int | None) -> Survey:
    """What samples and the inputs of a model say of each other; `size` is for a model that takes files of any.

    Raises:
        CalibrationError: samples cannot be read, or fit no layout.
    """
    data = replace(data, source=data.source.fitted_to(inputs))
    if data.source.rate is not None:
        return _of_sounds(data, inputs, data.source.rate, size)
    return _of_images(data, inputs[0], size) if data.are_images else _of_arrays(data, inputs)


def _of_images(data: CalibrationSet, spec: InputSpec, asked: int | None) -> Survey:
    colours = 1 if wants_grey(spec) else 3
    wanted, given = _model_size(spec), _common_size(data)
    notes: tuple[str, ...] = ()
    if wanted is not None and asked not in (None, *wanted):
        raise CalibrationError(f"--size {asked}: the model takes {wanted[0]}x{wanted[1]}; leave --size out")
    found = (wanted if wanted is not None else (asked, asked) if asked is not None else given) or _USUAL_SIZE
    if wanted is None and asked is None:
        what = "and they differ" if given is None else "and they have one"
        notes = (f"the model takes images of any size, {what}: {found[0]}x{found[1]} was taken; --size gives another",)
    whole = not np.issubdtype(spec.dtype, np.floating)
    figures: dict[str | None, Figures] = {"NHWC": of_pixels(colours)}
    framings = {} if given == found else image_framings(found)
    return Survey(figures, image=True, whole=whole, framings=framings, notes=notes)


def _of_sounds(data: CalibrationSet, inputs: Sequence[InputSpec], rate: int, asked: int | None) -> Survey:
    """The survey of sounds, of which the first has so many numbers a second."""
    wanted = _model_length(inputs)
    if wanted is not None and asked not in (None, wanted):
        raise CalibrationError(f"--size {asked}: the model takes {wanted:,} numbers; leave --size out")
    length = asked if wanted is None else wanted
    alike = data.with_card(replace(data.card, sample_rate=rate))
    lengths = [alike.source.read("x", [int(i)])[0].size for i in _spread(len(data.labels), _COMPARED)]
    notes: tuple[str, ...] = ()
    if length is None:
        seconds = max(lengths) / rate
        if len(set(lengths)) > 1:
            notes = (
                f"the model takes sounds of any length: {seconds:g} s, of the longest, was taken; --size gives another",
            )
    else:
        seconds = float(np.quantile(lengths, _MOST)) / rate
    framings = sound_framings(rate, seconds, length)
    if set(lengths) == {length}:
        framings = dict([next(iter(framings.items()))])
    first = data.with_card(replace(data.card, **next(iter(framings.values()))))
    count = min(_MEASURED, max(_MEASURED_BYTES // (4 * max(lengths)), _FEW))
    # All numbers are of one channel, wherever the model has its axis.
    batches = (batch.reshape(len(batch), 1, -1) for batch in _batches(first, "x", count))
    return Survey({None: measured(batches, 0)}, image=False, whole=False, sound=True, framings=framings, notes=notes)


def _model_length(inputs: Sequence[InputSpec]) -> int | None:
    """How many numbers of a sound the model takes, None if any."""
    shape = next((spec.shape for spec in inputs if spec.shape is not None), ())
    if len(shape) == 3:
        return shape[1] if shape[2] == 1 and shape[1] != 1 else shape[2]
    return shape[1] if len(shape) == 2 else None


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
