"""Model-local functions, inlined, once it is known how large that makes the graph: each may call the next twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx.inliner
import onnx.shape_inference
from onnx import FunctionProto, ModelProto, NodeProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.tensors import every_node, with_constant_types
from onnx_cbq.system.allowance import advice, allowed

# Nodes after inlining: at least so many, or so many times those of the file.
_LEAST_NODES = 10_000
_TIMES_THE_FILE = 8

_Key = tuple[str, str, str]


def inline_functions(proto: ModelProto, label: str) -> ModelProto:
    """The model without functions.

    Raises:
        ModelError: a function calls itself, or there would be far more nodes than the file has.
    """
    if not proto.functions:
        return proto
    functions = {_name(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes = _sizes(functions, label)
    own = [node for f in functions.values() for node in every_node(f.node)] + list(every_node(proto.graph.node))
    total, limit = _size(proto.graph.node, sizes), allowed(max(_LEAST_NODES, _TIMES_THE_FILE * len(own)))
    if total > limit:
        raise ModelError(
            f"{label}: its functions expand to {_rounded(total)} nodes, expected at most {limit} of a file with "
            f"{len(own)}; {advice(total, limit)}"
        )
    try:
        inlined = onnx.inliner.inline_local_functions(_with_defaults(proto, functions))
    except Exception as error:
        raise ModelError(
            f"{label}: onnx cannot inline its functions: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            f"; export it again"
        ) from error
    return _converted(inlined) if inlined.functions else inlined


def _with_defaults(proto: ModelProto, functions: Mapping[_Key, FunctionProto]) -> ModelProto:
    """State the defaults of functions' attributes at every call, which onnx's inliner forgets."""
    if not any(function.attribute_proto for function in functions.values()):
        return proto
    stated = ModelProto()
    stated.CopyFrom(proto)
    own = (node for function in stated.functions for node in every_node(function.node))
    for node in (*every_node(stated.graph.node), *own):
        called = functions.get(_called(node))
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(a for a in (called.attribute_proto if called else ()) if a.name not in given)
    return stated


def _converted(proto: ModelProto) -> ModelProto:
    """Functions of another operator set are inlined as they are converted, if onnx can; else onnxruntime runs them."""
    try:
        # The converter wants to know the types of what a function is given.
        typed = onnx.shape_inference.infer_shapes(with_constant_types(proto))
        inlined = onnx.inliner.inline_local_functions(typed, convert_version=True)
    except Exception:  # noqa: BLE001, whatever onnx finds wrong, onnxruntime will say
        return proto
    inlined.graph.ClearField("value_info")
    return inlined


def _sizes(functions: Mapping[_Key, FunctionProto], label: str) -> dict[_Key, int]:
    """Nodes that each function expands to, those that it calls before itself; without recursion, as deep as it goes."""
    sizes: dict[_Key, int] = {}
    for start in functions:
        path = [start]
        while path:
            key = path[-1]
            called = {_called(node) for node in every_node(functions[key].node)} & functions.keys()
            missing = [other for other in called if other not in sizes]
            if not missing:
                sizes[key] = _size(functions[key].node, sizes)
                path.pop()
            elif missing[0] in path:
                raise ModelError(
                    f"{label}: function {missing[0][1]!r} calls itself; expected functions that end; export it again"
                )
            else:
                path.append(missing[0])
    return sizes


def _size(nodes: Iterable[NodeProto], sizes: Mapping[_Key, int]) -> int:
    return sum(sizes.get(_called(node), 1) for node in every_node(nodes))


def _called(node: NodeProto) -> _Key:
    return _name(node.domain, node.op_type, node.overload)


def _name(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _rounded(count: int) -> str:
    """A number that may have thousands of digits."""
    return f"{count}" if count < 10**9 else f"more than 10^{len(str(min(count, 10**100))) - 1}"
