"""Tensor shapes by measurement: the model is run and every tensor's shape is read, nothing is inferred.

A model with a dynamic batch is run at two batch sizes. The axis whose size follows the batch is the batch axis, and a
number computed from shapes that stays the same at both is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, InputSpec, Model
from onnx_cbq.runtime import EndlessRunError, Session, trial_seconds
from onnx_cbq.system.allowance import advice, allowed

Shape = tuple[int, ...]

# Measured at this many samples and at one less.
EXAMPLE_BATCH = 3
# What an axis that may have any size gets in made-up inputs: pictures need 64, sounds thousands.
_SIZES = (16, 64, 224, 8, 28, 32, 96, 128, 256, 299, 384, 512, 1024, 16384)
_MOST_TRIED = 1 << 22
# Bytes of inputs that nobody gave: three images of 2,500 x 2,500 in colour fit.
_MOST_MADE_UP = 256 << 20
_SIZED_BY_VALUES = ("Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique")
_NO_TENSOR = ("ZipMap", "SplitToSequence", "Optional")


@dataclass(frozen=True)
class Shapes:
    """Shapes of every tensor at `batch` samples; `batch_axis[name]` is None where no axis follows the batch."""

    batch: int
    sizes: Mapping[str, Shape]
    batch_axis: Mapping[str, int | None]

    def __getitem__(self, name: str) -> Shape:
        return self.sizes[name]

    def __contains__(self, name: str) -> bool:
        return name in self.sizes


@dataclass(frozen=True)
class Example:
    """A few samples that shapes and outputs are measured on: input name -> array of `batch` samples."""

    feeds: Mapping[str, Array]

    @staticmethod
    def made_up(model: Model, seed: int = 0) -> Example:
        """Inputs of the right types and shapes for a model without samples: normal numbers, 0 for integers.

        An axis that may have any size gets the first of a few that onnxruntime runs the model with.

        Raises:
            ModelError: an input has no declared rank, or is declared as more than anybody would have at hand.
        """
        batch = fixed_batch(model) or EXAMPLE_BATCH
        _check_size(model, batch, _SIZES[0])
        first = _made_up(model, batch, _SIZES[0], seed)
        if not has_other_sizes(model) or _runs(model, first.feeds):
            return first
        for size in _SIZES[1:]:
            fits = sum(math.prod(_made_up_shape(spec, batch, size)) for spec in model.inputs) <= _MOST_TRIED
            if fits and _runs(model, (example := _made_up(model, batch, size, seed)).feeds):
                return example
        return first

    @property
    def batch(self) -> int:
        """Number of samples."""
        return next((len(value) for value in self.feeds.values() if value.ndim), 1)

    def runs(self, model: Model) -> list[Mapping[str, Array]]:
        """The feeds to measure on: all samples and, where the batch is dynamic, all but the last."""
        if self.batch == 1 or fixed_batch(model) is not None:
            return [self.feeds]
        return [self.feeds, {name: value[:-1] if value.ndim else value for name, value in self.feeds.items()}]

    def at_another_size(self, model: Model) -> Mapping[str, Array] | None:
        """The samples at twice the size along every axis that may have any, or at half; None where neither runs.

        What a rewrite measures says nothing about other lengths of a text and other sizes of an image.
        """
        if not has_other_sizes(model):
            return None
        for resize in (_doubled, _halved):
            feeds = dict(self.feeds)
            for spec in model.inputs:
                for axis, size in enumerate(spec.shape or ()):
                    if axis and size is None:
                        feeds[spec.name] = resize(feeds[spec.name], axis)
            if _runs(model, feeds):
                return feeds
        return None

    def shapes(self, model: Model) -> Shapes:
        """Run `model` and read the shape of every tensor in it. Cost: one or two runs."""
        names = [n for node in model.nodes if not _makes_no_tensor(node.op_type) for n in node.output if n]
        nodes = [helper.make_node("Shape", [name], [f"shape of {name}"]) for name in names]
        session = Session(model.with_graph(nodes, outputs=[node.output[0] for node in nodes]), "off")
        measured: list[dict[str, Shape]] = []
        for feeds in self.runs(model):
            sizes = {name: value.shape for name, value in feeds.items()}
            read = session.run(feeds, seconds=trial_seconds(model, feeds))
            measured.append(sizes | {name: tuple(read[f"shape of {name}"].tolist()) for name in names})
        full = measured[0]
        axes = {name: _batch_axis([sizes[name] for sizes in measured], self.batch) for name in full}
        constants = {tensor.name: tuple(tensor.dims) for tensor in model.skeleton.graph.initializer}
        return Shapes(self.batch, full | constants, axes | dict.fromkeys(constants))

    def unchanging_values(self, model: Model, names: Iterable[str]) -> dict[str, Array]:
        """The values of those tensors among `names` that do not depend on the batch size."""
        session = Session(model.with_graph(outputs=list(names)), "off")
        values, *rest = (session.run(feeds) for feeds in self.runs(model))
        return {name: v for name, v in values.items() if all(np.array_equal(v, other[name]) for other in rest)}


def has_other_sizes(model: Model) -> bool:
    """Whether an axis other than the batch may have any size."""
    return any(spec.shape is None or None in spec.shape[1:] for spec in model.inputs)


def outputs_of_varying_size(model: Model) -> set[str]:
    """The outputs whose size the values decide: boxes that are left, positions that are not 0."""
    found: set[str] = set()
    for node in model.nodes:
        if node.op_type in _SIZED_BY_VALUES or found.intersection(node.input):
            found.update(node.output)
    return found.intersection(model.outputs)


def fixed_batch(model: Model) -> int | None:
    """The batch size that the model insists on, or None if any will do."""
    sizes = {spec.shape[0] for spec in model.inputs if spec.shape}
    fixed = sizes - {None}
    if len(fixed) > 1:
        listing = ", ".join(f"{spec.name} {spec.shape}" for spec in model.inputs)
        raise ModelError(f"the inputs disagree about the batch size: {listing}; export with one batch size for all")
    return fixed.pop() if fixed else None


def _batch_axis(measured: list[Shape], batch: int) -> int | None:
    """The axis that follows the batch; after a single run the first that equals it, else the first multiple of it."""
    shape = measured[0]
    if len(measured) > 1:
        if len(shape) != len(measured[1]):
            return None
        return next((axis for axis, size in enumerate(shape) if size != measured[1][axis]), None)
    exact = [axis for axis, size in enumerate(shape) if size == batch]
    multiple = [axis for axis, size in enumerate(shape) if size and size % batch == 0]
    return next(iter(exact + multiple), None)


def _check_size(model: Model, batch: int, free: int) -> None:
    limit, total = allowed(_MOST_MADE_UP), 0
    for spec in model.inputs:
        if spec.shape is None:
            raise ModelError(f"input {spec.name!r} has no declared rank; give samples with --data")
        shape = _made_up_shape(spec, batch, free)
        total += math.prod(shape) * spec.dtype.itemsize
        if total > limit:
            raise ModelError(
                f"input {spec.name!r} is declared as {' x '.join(map(str, shape))}: made-up samples take {total} "
                f"bytes, expected at most {limit}; give samples with --data, or {advice(total, limit)}"
            )


def _made_up_shape(spec: InputSpec, batch: int, free: int) -> Shape:
    sizes = spec.shape or ()
    return (batch, *(size or free for size in sizes[1:])) if sizes else ()


def _made_up(model: Model, batch: int, free: int, seed: int) -> Example:
    random = np.random.default_rng(seed)
    return Example({spec.name: _random_input(spec, batch, free, random) for spec in model.inputs})


def _runs(model: Model, feeds: Mapping[str, Array]) -> bool:
    try:
        Session(model, "off").run(feeds, seconds=trial_seconds(model, feeds))
    except EndlessRunError:
        raise
    except ModelError:
        return False
    return True


def _doubled(value: Array, axis: int) -> Array:
    return np.concatenate([value, value], axis)


def _halved(value: Array, axis: int) -> Array:
    return np.split(value, [max(value.shape[axis] // 2, 1)], axis)[0]


def _random_input(spec: InputSpec, batch: int, free: int, random: np.random.Generator) -> Array:
    shape = _made_up_shape(spec, batch, free)
    if np.issubdtype(spec.dtype, np.floating):
        return random.standard_normal(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _makes_no_tensor(operator: str) -> bool:
    return operator in _NO_TENSOR or operator.startswith("Sequence")
