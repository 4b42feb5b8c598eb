"""Gradients of reductions: dy is widened back over the reduced axes."""

from __future__ import annotations

import numpy as np

from onnx_cbq.gradient.site import Gradients, Rule, Site


def reduce_sum(site: Site) -> Gradients:
    """y = sum of x: dx = dy everywhere."""
    return [site.build.op("Expand", _kept(site, site.grad), site.build.op("Shape", site.x))]


def reduce_mean(site: Site) -> Gradients:
    """y = mean of x: dx = dy / n."""
    count = float(np.prod([site.shape()[axis] for axis in _axes(site)]))
    if any(axis == site.shapes.batch_axis[site.x] for axis in _axes(site)):
        raise site.unsupported("a mean over the samples of a batch")
    share = site.build.op("Div", _kept(site, site.grad), site.build.number(count))
    return [site.build.op("Expand", share, site.build.op("Shape", site.x))]


def reduce_extremum(site: Site) -> Gradients:
    """y = max or min of x: dy goes to the elements that attain it, in equal shares."""
    b = site.build
    hits = b.indicator(b.op("Equal", site.x, _kept(site, site.y)))
    share = b.op("Div", _kept(site, site.grad), b.reduce_sum(hits, _axes(site)))
    return [b.op("Mul", hits, share)]


def _axes(site: Site) -> list[int]:
    rank = len(site.shape())
    axes = site.constant(1, np.zeros(0, np.int64)).tolist()
    if not axes and not site.attrs.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return sorted(axis % rank for axis in axes)


def _kept(site: Site, name: str) -> str:
    """`name`, shaped like the output, with the reduced axes kept as 1."""
    if site.attrs.get("keepdims", 1) or not _axes(site):
        return name
    return site.build.op("Unsqueeze", name, site.build.ints(_axes(site)))


RULES: dict[str, Rule] = {
    "ReduceSum": reduce_sum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_extremum,
    "ReduceMin": reduce_extremum,
}
