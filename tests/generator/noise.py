"""How far 8 bits may move the outputs of a net, found by moving it: noise of the size of rounding, everywhere.

A tensor of range r on 255 steps is rounded by at most r / 510. Each float tensor of a net, weights among them, gets
uniform noise of that size (weights of twice the size, since pairs of products must fit into 16 bits, which may cost
them half their steps), and the outputs are compared with those of the net as it is. That covers what no rule about
layers does: differences of large numbers, normalization of small ones, thresholds, recurrence.

The errors of a quantized net are one draw of such noise, so their square is about that of the mean draw times a
chi-square number over its degrees of freedom. With as few as two degrees a factor of `MARGIN` = 4 is exceeded with
probability e^-16 = 1e-7.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from onnx_cbq.model import Array
from tests.generator.models import Case, run, session

MARGIN = 4.0
_STEPS, _DRAWS = 255, 4
# What float arithmetic in another order does to an output, relative to its largest number.
_FLOOR = 1e-4


def distance(values: Array, reference: Array) -> float:
    """Root mean square of the difference."""
    difference = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    return float(np.sqrt(np.square(difference).mean())) if difference.size else 0.0


def _defined(values: Array, reference: Array) -> tuple[Array, Array]:
    """Those numbers that noise leaves defined."""
    kept = np.isfinite(values)
    return values[kept], reference[kept]


def allowed(case: Case, reference: Mapping[str, Array]) -> dict[str, float]:
    """The distance that rounding explains, for each float output in `reference` (on all samples)."""
    batch = case.fixed_batch or len(case.labels)
    sources = _sources(case, batch)
    noisy = session(_with_noise(case.model, sources), plain=True)
    random = np.random.default_rng(0)
    squares = dict.fromkeys(reference, 0.0)
    for _ in range(_DRAWS):
        parts: list[dict[str, Array]] = []
        for start in range(0, len(case.labels), batch):
            noise = {
                name: np.asarray(random.uniform(-most, most, value.shape)).astype(value.dtype)
                for name, (most, value) in sources.items()
            }
            feeds = {name: value[start : start + batch] for name, value in case.inputs.items()}
            given = run(noisy, feeds | {_noise(name): value for name, value in noise.items()}, None)
            parts.append({name: given[name] + noise.get(name, np.float32(0)) for name in reference})
        for name, value in reference.items():
            moved = np.concatenate([np.atleast_1d(part[name]) for part in parts])
            squares[name] += distance(*_defined(moved, value)) ** 2
    return {
        name: MARGIN * float(np.sqrt(squares[name] / _DRAWS)) + _FLOOR * max(float(np.abs(value).max(initial=0)), 1e-2)
        for name, value in reference.items()
    }


def _noise(name: str) -> str:
    return f"noise on {name}"


def _noisy(name: str) -> str:
    return f"{name} with noise"


def _sources(case: Case, batch: int) -> dict[str, tuple[float, Array]]:
    """Each float tensor -> the most that rounding moves it on any sample, and its values for the first batch."""
    model = case.model
    shown = _without_listed_constants(model)
    declared = {info.name for info in shown.graph.output}
    made = (name for node in shown.graph.node for name in node.output if name and name not in declared)
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) >= 2}
    found: dict[str, tuple[float, Array]] = {}
    whole = session(shown, plain=True)
    for start in range(0, len(case.labels), batch):
        feeds = {name: value[start : start + batch] for name, value in case.inputs.items()}
        values = {**run(whole, feeds, None), **feeds}
        # Exponents, scales and the like are never rounded.
        small = {n.output[0] for n in model.graph.node if n.op_type == "Constant" and values[n.output[0]].ndim < 2}
        for name, value in {**values, **weights}.items():
            if name not in small and _is_float(value):
                reach = max(float(value.max()), 0.0) - min(float(value.min()), 0.0)
                most = (2.0 if name in weights else 1.0) * reach / _STEPS / 2
                before, first = found.get(name, (0.0, value))
                found[name] = max(before, most), first
    return found


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float64, np.float16) and value.size > 0


def _without_listed_constants(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(model.ir_version, 8)
    constants = {tensor.name for tensor in model.graph.initializer}
    del copy.graph.input[:]
    copy.graph.input.extend(info for info in model.graph.input if info.name not in constants)
    return copy


def _with_noise(model: ModelProto, sources: Mapping[str, tuple[float, Array]]) -> ModelProto:
    """The model with noise, an input of its own, added to every source in front of what reads it."""
    noisy = _without_listed_constants(model)
    _read_noisy(noisy.graph, sources.keys())
    nodes = list(noisy.graph.node)
    del noisy.graph.node[:]
    made = {name for node in nodes for name in node.output}
    behind = {name: _add(name, value) for name, (_, value) in sources.items()}
    for name in sources.keys() - made:
        noisy.graph.node.extend(behind[name])
    for node in nodes:
        noisy.graph.node.append(node)
        for name in node.output:
            noisy.graph.node.extend(behind.get(name, []))
    for name, (_, value) in sources.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        noisy.graph.input.append(helper.make_tensor_value_info(_noise(name), kind, None))
    return noisy


def _add(name: str, value: Array) -> list[NodeProto]:
    """Rounding gives no negative numbers where there are none: a root stays a number."""
    if value.min() < 0:  # of the first batch: a later one is as positive, or noise is made smaller
        return [helper.make_node("Add", [name, _noise(name)], [_noisy(name)])]
    return [
        helper.make_node("Add", [name, _noise(name)], [f"{name} and noise"]),
        helper.make_node("Relu", [f"{name} and noise"], [_noisy(name)]),
    ]


def _read_noisy(graph: GraphProto, sources: Set[str]) -> None:
    """Everything in `graph` and its subgraphs reads the tensors with noise."""
    for node in graph.node:
        node.input[:] = [_noisy(name) if name in sources else name for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _read_noisy(inner, sources)
