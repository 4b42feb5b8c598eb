"""The backward graph that scores channels: criticality and squared gradients, summed within the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand, scored_at
from onnx_cbq.gradient.further import Further
from onnx_cbq.gradient.site import Builder
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.shapes import Example, Shape
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Layers, Use


@dataclass(frozen=True)
class UseSums:
    """Graph outputs that hold one batch's sums for one use of a layer."""

    critical: str  # samples for which each neuron is critical, the use's output shape without the batch
    saliency: str  # sum of |z g| per output channel
    negative_square: str  # -sum of g^2 per output channel
    channel_axis: int  # of `critical`


@dataclass(frozen=True)
class ScoringGraph:
    """A model that gives the sums for one batch, fed with the samples and with seeds, the gradients of Phi.

    Attributes:
        model: gives the sums.
        forward: gives the logits and the tensors that count beside them, which the sums need not read.
        logits: where the logits are.
        seeds: tensor -> graph input with dPhi/dtensor, for the logits and for each of `further`.
        shapes: of those tensors at run time, the samples of the batch to be put in.
        sums: by layer; uses that nothing of it depends on are left out.
        dtype: of the seeds.
    """

    model: Model
    forward: Model
    logits: Logits
    further: tuple[Further, ...]
    seeds: Mapping[str, str]
    shapes: Mapping[str, Shape]
    sums: Mapping[str, tuple[UseSums, ...]]
    dtype: np.dtype[Any]

    def feeds(self, fed: int, seeds: Mapping[str, Array]) -> dict[str, Array]:
        """Seeds for a batch of `fed` samples; 0 for the tensors that are not given."""
        return {
            name: seeds.get(tensor, np.zeros(self.shape(tensor, fed))).astype(self.dtype)
            for tensor, name in self.seeds.items()
        }

    def shape(self, tensor: str, fed: int) -> list[int]:
        """The shape of a tensor in a batch of `fed` samples."""
        axes = {self.logits.tensor: self.logits.phi.batch} | {one.tensor: one.batch_axis for one in self.further}
        found = list(self.shapes[tensor])
        found[axes[tensor]] = fed
        return found


def scoring_graph(
    model: Model,
    layers: Layers,
    logits: Logits,
    example: Example,
    config: ScoringConfig,
    further: Sequence[Further] = (),
) -> ScoringGraph:
    """Build the graph that scores `layers`.

    Raises:
        UnsupportedOperatorError: a node between a layer and the logits, or a further output, has no gradient rule.
    """
    tensors = list(dict.fromkeys((logits.tensor, *(one.tensor for one in further))))
    expanded = expand(model, example).model
    shapes = example.shapes(expanded)
    scored = {(layer.name, use): scored_at(layer, use, expanded) for layer in layers for use in layer.uses}
    targets = [gradient for _, gradient in scored.values()]
    backward = build_backward(expanded, shapes, logits.tensor, targets, [one.tensor for one in further])
    sums = {
        layer.name: tuple(
            _add_sums(backward.build, use, layer, (z, backward.gradients[target]), config)
            for use in layer.uses
            for z, target in (scored[layer.name, use],)
            if target in backward.gradients
        )
        for layer in layers
    }
    outputs = [name for uses in sums.values() for s in uses for name in (s.critical, s.saliency, s.negative_square)]
    attached = attach(expanded, backward, logits.tensor, shapes, outputs)
    forward = expanded.with_graph(outputs=tensors)
    measured = {name: shapes[name] for name in tensors}
    seeds = {logits.tensor: backward.seed, **backward.further}
    dtype = backward.build.dtype
    return ScoringGraph(attached, forward, logits, tuple(further), seeds, measured, sums, dtype)


def _add_sums(build: Builder, use: Use, layer: Layer, tensors: tuple[str, str], config: ScoringConfig) -> UseSums:
    """Add the sums over one batch of what output z of `use` and its gradient g, the `tensors`, give."""
    if use.lookup is not None:
        return _add_row_sums(build, use, tensors, layer.channels, config)
    z, g = tensors
    shape, batch_axis, channel_axis = list(use.output_shape), use.batch_axis, use.channel_axis
    merged = shape[batch_axis] // layer.samples
    if merged > 1:
        # Samples and positions share an axis, samples first: [..., N T, ...] -> [..., N, T, ...]
        split = [*shape[:batch_axis], -1, merged, *shape[batch_axis + 1 :]]
        z, g = (build.op("Reshape", name, build.ints(split)) for name in (z, g))
        shape, channel_axis = split, channel_axis + (channel_axis > batch_axis)
    others = [axis for axis in range(len(shape)) if axis != channel_axis]
    criticality = build.op("Abs", build.op("Mul", z, g))
    critical = build.not_zero(_excess(build, criticality, [a for a in range(len(shape)) if a != batch_axis], config))
    # g (-g), because onnxruntime turns a sum of g g into an operator that is three times as slow.
    square = build.op("Mul", g, build.op("Neg", g))
    return UseSums(
        critical=build.reduce_sum(critical, [batch_axis], keepdims=False),
        saliency=build.reduce_sum(criticality, others, keepdims=False),
        negative_square=build.reduce_sum(square, others, keepdims=False),
        channel_axis=channel_axis - (channel_axis > batch_axis),
    )


def _add_row_sums(build: Builder, use: Use, tensors: tuple[str, str], channels: int, config: ScoringConfig) -> UseSums:
    """Likewise of a table, by the rows that are looked up: a row is critical each time that any of its numbers is."""
    z, g = tensors
    assert use.lookup is not None
    numbers = list(range(use.channel_axis, len(use.output_shape)))
    criticality = build.op("Abs", build.op("Mul", z, g))
    others = [axis for axis in range(len(use.output_shape)) if axis != use.batch_axis]
    critical = build.not_zero(_excess(build, criticality, others, config))
    square = build.op("Mul", g, build.op("Neg", g))
    # Indices from the end count from there; onnx's Mod has the sign of the divisor.
    flat = build.op("Reshape", build.op("Cast", use.activation, to=TensorProto.INT64), build.ints([-1]))
    entries = build.op("Mod", flat, build.ints([use.lookup.entries]))
    rows = build.op("Div", entries, build.ints([use.lookup.together]))
    zeros = build.constant(np.zeros(channels, build.dtype))

    def by_row(name: str) -> str:
        values = build.op("Reshape", name, build.ints([-1]))
        return build.op("ScatterElements", zeros, rows, values, axis=0, reduction="add")

    return UseSums(
        critical=by_row(build.op("ReduceMax", critical, build.ints(numbers), keepdims=0)),
        saliency=by_row(build.reduce_sum(criticality, numbers, keepdims=False)),
        negative_square=by_row(build.reduce_sum(square, numbers, keepdims=False)),
        channel_axis=0,
    )


def _excess(build: Builder, criticality: str, axes: list[int], config: ScoringConfig) -> str:
    """What is above 0 just where a neuron is critical."""
    if config.relative:
        mean = build.op("ReduceMean", criticality, build.ints(axes))
        return build.op("Sub", criticality, build.op("Mul", mean, build.number(config.epsilon)))
    if config.epsilon < np.finfo(np.float32).smallest_normal:
        return criticality
    return build.op("Sub", criticality, build.number(config.epsilon))
