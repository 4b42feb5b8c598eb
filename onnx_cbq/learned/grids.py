"""Activations on their grids in the net that learns, and the gradients that pass through these.

With z the zero point, an activation x becomes y = s (round(c / s)), where c = clip(x, s (bottom - z), s (top - z)).
Rounding passes gradients on as they are (straight-through; Bengio et al., arXiv 1308.3432), the ends of a grid none,
and a scale that is learned has

    dy / ds = (y - c) / s within        bottom - z or top - z beyond

(learned step sizes; Esser et al., ICLR 2020, arXiv 1902.08153). Grids of 8 bits are so fine that gradients need not
know of their ends, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.gradient.elementwise import clip
from onnx_cbq.gradient.site import Builder, Gradients, Rule, Site
from onnx_cbq.model import Array, Model
from onnx_cbq.records import ActivationGrid
from onnx_cbq.settings import MOST_BITS


@dataclass(frozen=True)
class LearnedScale:
    """The scale of activations while it is learned.

    Attributes:
        tensors: that have it.
        grid: to start from.
        log_scale: logarithm of what its scale is multiplied by, float32 [].
    """

    tensors: tuple[str, ...]
    grid: ActivationGrid
    log_scale: Array = field(default_factory=lambda: np.zeros((), np.float32))

    @property
    def value(self) -> Array:
        """The scale, float32 []."""
        return np.asarray(self.grid.scale * np.exp(self.log_scale), np.float32)

    def grids(self) -> dict[str, ActivationGrid]:
        """The grids of its tensors as they are now."""
        return dict.fromkeys(self.tensors, replace(self.grid, scale=float(self.value)))


@dataclass(frozen=True)
class OnGrids:
    """A model with activations on their grids.

    Attributes:
        stand_ins: what stands for each of these tensors where it is read.
        scales: by the constant that holds each.
        rules: of gradients through the grids.
    """

    model: Model
    stand_ins: Mapping[str, str]
    scales: Mapping[str, LearnedScale]
    rules: Mapping[str, Rule]


def learned_scales(work: Workload, grids: Mapping[str, ActivationGrid]) -> list[LearnedScale]:
    """The scales that can be learned: of less than 8 bits, and no powers of two; those to be alike are learned once."""
    if work.target.activation.power_of_two:
        return []
    coarse = {name: grid for name, grid in grids.items() if grid.bits < MOST_BITS}
    found = []
    for group in (*work.placement.alike, *(frozenset({name}) for name in coarse)):
        while members := [name for name in sorted(group) if name in coarse]:
            same = tuple(name for name in members if coarse[name] == coarse[members[0]])
            found.append(LearnedScale(same, coarse[same[0]]))
            for name in same:
                del coarse[name]
    return found


def on_grids(model: Model, grids: Mapping[str, ActivationGrid], work: Workload) -> OnGrids:
    """A model with some tensors on their grids.

    Raises:
        UnsupportedOperatorError: a tensor is not in the model.
    """
    build = Builder(model.fresh_names(), np.dtype(np.float32))
    inputs = {spec.name for spec in model.inputs}
    scales = {build.fresh("scale"): one for one in learned_scales(work, grids)}
    constant_of = {name: constant for constant, one in scales.items() for name in one.tensors}
    stand_ins, after, clipped = {}, {}, {}
    for name, grid in grids.items():
        if name not in inputs and name not in model.producers:
            raise UnsupportedOperatorError(f"tensor {name!r} has a grid, but is gone once operators are expanded")
        inside = _clipped(build, name, grid, constant_of.get(name))
        scale, zero = constant_of.get(name) or build.number(grid.scale), build.constant(grid.stored_zero)
        codes = build.op("QuantizeLinear", inside, scale, zero)
        clipped[codes] = inside
        stand_ins[name] = build.op("DequantizeLinear", codes, scale, zero)
        after[name] = list(build.nodes)
        build.nodes.clear()
    whole = _with_nodes(model, after, stand_ins)
    constants = {**build.constants, **{constant: one.value for constant, one in scales.items()}}
    return OnGrids(whole.with_graph(constants=constants), stand_ins, scales, _rules(clipped))


def _clipped(build: Builder, name: str, grid: ActivationGrid, scale: str | None) -> str:
    """A tensor within the ends of a grid; those of 8 bits clip by themselves."""
    if grid.bits == MOST_BITS:
        return name
    if scale is None:
        return build.op("Clip", name, *map(build.number, grid.ends))
    ends = (grid.bottom - grid.zero_point, grid.top - grid.zero_point)
    # An end at 0 is there whatever the scale.
    return build.op(
        "Clip", name, *(build.op("Mul", scale, build.number(end)) if end else build.number(0) for end in ends)
    )


def _with_nodes(model: Model, after: Mapping[str, list[NodeProto]], stand_ins: Mapping[str, str]) -> Model:
    """The model with nodes behind some tensors, and others read in place of these."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    nodes = list(skeleton.graph.node)
    skeleton.graph.ClearField("node")
    for spec in model.inputs:
        skeleton.graph.node.extend(after.get(spec.name, ()))
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = stand_ins.get(name, name)
        skeleton.graph.node.append(node)
        for name in node.output:
            skeleton.graph.node.extend(after.get(name, ()))
    return Model(skeleton, model.weights)


def _rules(clipped: Mapping[str, str]) -> dict[str, Rule]:
    """Gradients through QuantizeLinear, DequantizeLinear and Clips; `clipped` is what became each of these codes."""

    def quantized(site: Site) -> Gradients:
        return [site.grad, None, None]

    def dequantized(site: Site) -> Gradients:
        if not site.needed[1]:
            return [site.grad, None, None]
        build = site.build
        error = build.op("Sub", site.y, clipped[site.x])
        total = build.op("ReduceSum", build.op("Mul", site.grad, error), keepdims=0)
        return [site.grad, build.op("Div", total, site.node.input[1]), None]

    def cut(site: Site) -> Gradients:
        return clip(site, finite=site.y in ours)

    ours = set(clipped.values())
    return {"QuantizeLinear": quantized, "DequantizeLinear": dequantized, "Clip": cut}
