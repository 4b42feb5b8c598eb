"""Gradients of reductions: dy is widened back over the reduced axes."""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.step import Gradients, Rule, Step


def reduce_sum(step: Step) -> Gradients:
    """y = sum of x: dx = dy everywhere."""
    return [step.build.op("Expand", _kept(step, step.grad), step.build.op("Shape", step.x))]


def reduce_mean(step: Step) -> Gradients:
    """y = mean of x: dx = dy / n."""
    count = float(np.prod([step.shape()[axis] for axis in _axes(step)]))
    if any(axis == step.shapes.batch_axis[step.x] for axis in _axes(step)):
        raise step.unsupported("a mean over the samples of a batch")
    share = step.build.op("Div", _kept(step, step.grad), step.build.number(count))
    return [step.build.op("Expand", share, step.build.op("Shape", step.x))]


def reduce_extremum(step: Step) -> Gradients:
    """y = max or min of x: dy goes to the elements that attain it, in equal shares."""
    b = step.build
    hits = b.indicator(b.op("Equal", step.x, _kept(step, step.y)))
    share = b.op("Div", _kept(step, step.grad), b.reduce_sum(hits, _axes(step)))
    return [b.op("Mul", hits, share)]


def _axes(step: Step) -> list[int]:
    rank = len(step.shape())
    axes = step.constant(1, np.zeros(0, np.int64)).tolist()
    if not axes and not step.attrs.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return sorted(axis % rank for axis in axes)


def _kept(step: Step, name: str) -> str:
    """`name`, shaped like the output, with the reduced axes kept as 1."""
    if step.attrs.get("keepdims", 1) or not _axes(step):
        return name
    return step.build.op("Unsqueeze", name, step.build.ints(_axes(step)))


RULES: dict[str, Rule] = {
    "ReduceSum": reduce_sum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_extremum,
    "ReduceMin": reduce_extremum,
}
