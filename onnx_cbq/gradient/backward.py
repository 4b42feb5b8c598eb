"""Build dPhi/dz for chosen tensors z as ONNX nodes behind the forward graph.

Reverse accumulation: nodes are visited from the logits back; each node's rule turns the gradients of its outputs into
those of its inputs, and a tensor that several nodes read gets the sum. Only tensors on a path from a target to the
logits are visited.

Phi is chosen at run time by the graph input `seed` = dPhi/dlogits: a one-hot row per sample for the logit of the
sample's class; a row of zeros leaves a padding sample out of every sum. Further tensors that Phi may be made of have
seeds of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.gradient.rules import NO_GRADIENT, RULES
from onnx_cbq.gradient.site import Builder, Rule, Site
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import STANDARD, Model


@dataclass(frozen=True)
class Backward:
    """The nodes to add, the graph input `seed`, and where the gradient of each target comes out.

    A target that Phi does not depend on is missing from `gradients`. `further` are the seeds of further tensors.
    """

    build: Builder
    seed: str
    gradients: Mapping[str, str]
    further: Mapping[str, str] = field(default_factory=dict)


def build_backward(
    model: Model,
    shapes: Shapes,
    logits: str,
    targets: Iterable[str],
    further: Sequence[str] = (),
    rules: Mapping[str, Rule] = RULES,
) -> Backward:
    """The backward graph of `logits`, and of `further` tensors, with respect to `targets`, which may be constants.

    Raises:
        UnsupportedOperatorError: a node on the way has no rule.
    """
    wanted = list(dict.fromkeys(targets))
    seeds = dict.fromkeys((logits, *further), "")
    path = _path(model, wanted, list(seeds))
    names = model.fresh_names()
    build = Builder(names, _number_type(model))
    seeds = {source: names("seed") for source in seeds}
    gradients: dict[str, str] = dict(seeds)
    for node in reversed(model.nodes):
        dy = tuple(gradients.get(name) for name in node.output)
        needed = tuple(name in path for name in node.input)
        if not any(dy) or not any(needed):
            continue
        site = Site(node, model, shapes, build, dy, needed)
        for name, gradient in _contributions(site, rules):
            known = gradients.get(name)
            gradients[name] = gradient if known is None else build.op("Add", known, gradient)
    found = {name: gradients[name] for name in wanted if name in gradients}
    return Backward(build, seeds.pop(logits), found, seeds)


def attach(model: Model, backward: Backward, logits: str, shapes: Shapes, outputs: Iterable[str]) -> Model:
    """`model` with the backward graph behind it, the input `seed` (shaped like the logits) and other graph outputs."""
    element = helper.np_dtype_to_tensor_dtype(backward.build.dtype)
    infos = [
        helper.make_tensor_value_info(seed, element, [None] * len(shapes[source]))
        for source, seed in {logits: backward.seed, **backward.further}.items()
    ]
    return model.with_graph(backward.build.nodes, backward.build.constants, infos, list(outputs))


def _number_type(model: Model) -> np.dtype[Any]:
    """The type that the model computes in."""
    # Where a model was not brought to float32 its constants are double, whatever it takes and gives.
    constants = (model.constant(tensor.name) for tensor in model.skeleton.graph.initializer)
    doubles = any(value is not None and value.dtype == np.float64 for value in constants)
    return np.dtype(np.float64 if doubles else np.float32)


def _contributions(site: Site, rules: Mapping[str, Rule]) -> Iterable[tuple[str, str]]:
    node = site.node
    rule = rules.get(node.op_type) if node.domain in STANDARD else None
    if rule is None:
        title = node.name or next(filter(None, node.output))
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise UnsupportedOperatorError(
            f"node {title!r}: operator {operator} has no gradient rule; use --method uniform, which needs no gradients"
        )
    gradients = rule(site)
    return [
        (name, gradient)
        for name, wanted, gradient in zip(node.input, site.needed, gradients, strict=False)
        if wanted and gradient is not None
    ]


def _path(model: Model, targets: list[str], sources: Sequence[str]) -> set[str]:
    """Every tensor that depends on a target and that a source depends on, targets included."""
    below = set(targets)
    for node in model.nodes:
        if any(name in below for name in _differentiable_inputs(node)):
            below.update(node.output)
    above = set(sources)
    for node in reversed(model.nodes):
        if any(name in above for name in node.output):
            above.update(_differentiable_inputs(node))
    return below & above


def _differentiable_inputs(node: NodeProto) -> list[str]:
    if node.op_type in NO_GRADIENT:
        return []
    # The second input of CastLike gives only its type.
    return list(node.input[:1] if node.op_type == "CastLike" else node.input)
