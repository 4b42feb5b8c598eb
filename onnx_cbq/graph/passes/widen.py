"""Compute in float32 what a model computes in float16, bfloat16 or double.

Integer kernels stand between floats of 32 bits only, and onnxruntime's CPU widens half precision in most operators
itself, by a Cast on either side of each. What the model takes and gives keeps its type:

    x float16 -> nodes in float16 -> y float16    becomes    x float16 -> Cast -> nodes in float32 -> Cast -> y float16
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model
from onnx_cbq.runtime import Session

_WIDENED = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# What deviation, relative to an output's largest value, rounding in a type explains: 32 units in its last place, for
# nets of about a thousand roundings that add up like noise.
_TOLERANCES: dict[int, float] = {TensorProto.FLOAT16: 2.0**-5, TensorProto.BFLOAT16: 2.0**-2}
# Attributes that name the type of what a node gives.
_TYPES = ("to", "dtype")


def widen_floats(model: Model, example: Example) -> Model:
    """`model` in float32; itself where it is already."""
    if not types_of(model):
        return model
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.plain_skeleton())
    fresh = model.fresh_names()
    outer = skeleton.graph
    given = _output_types(model, example)
    names = {info.name: fresh(f"{info.name}_float32") for info in outer.input if _is_wide(info)}
    made = {name: fresh(f"{name}_float32") for name in given if name not in names}
    weights = {name: v.astype(np.float32) if _widens(v.dtype) else v for name, v in model.weights.items()}
    _widen(outer, names | made)
    casts = [_cast(name, wide, TensorProto.FLOAT) for name, wide in names.items()]
    back = [_cast(made[name], name, given[name]) for name in made]
    nodes = [*casts, *outer.node, *back]
    outer.ClearField("node")
    outer.node.extend(nodes)
    return Model.from_skeleton(skeleton, weights)


def widening_tolerance(model: Model) -> float:
    """What deviation of the outputs is due to the types that `model` computes in; 0 where it is float32."""
    return max((_TOLERANCES.get(kind, 0.0) for kind in types_of(model)), default=0.0)


def types_of(model: Model) -> set[int]:
    """Types other than float32 that floating-point numbers have in `model`."""
    return set(_types(model.plain_skeleton().graph)) & set(_WIDENED)


def _types(graph: GraphProto) -> list[int]:
    found = [info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)]
    found += [tensor.data_type for tensor in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.type == AttributeProto.INT:
                found.append(attribute.i)
            found += [tensor.data_type for tensor in _tensors(attribute)]
            for inner in _graphs(attribute):
                found += _types(inner)
    return found


def _widen(graph: GraphProto, names: dict[str, str]) -> None:
    """Rename tensors by `names` and give every constant and every attribute of another float type float32."""
    graph.ClearField("value_info")  # types that no longer hold
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            _widen_attribute(attribute, names)


def _widen_attribute(attribute: AttributeProto, names: dict[str, str]) -> None:
    if attribute.name in _TYPES and attribute.type == AttributeProto.INT and attribute.i in _WIDENED:
        attribute.i = TensorProto.FLOAT
    for tensor in _tensors(attribute):
        _widen_tensor(tensor)
    for inner in _graphs(attribute):
        for info in (*inner.input, *inner.output):
            if _is_wide(info):
                info.type.tensor_type.elem_type = TensorProto.FLOAT
        _widen(inner, names)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type not in _WIDENED:
        return
    if tensor.data_location == TensorProto.EXTERNAL:  # a stub, whose value has been widened
        tensor.data_type = TensorProto.FLOAT
        return
    value = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _output_types(model: Model, example: Example) -> dict[str, int]:
    """Those of the outputs that are to be cast back; types that are not declared are measured."""
    found = {info.name: info.type.tensor_type.elem_type for info in model.skeleton.graph.output}
    if not all(found.values()):
        values = Session(model).run(example.feeds)
        kinds = {name: v.dtype for name, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        found |= {name: helper.np_dtype_to_tensor_dtype(kind) for name, kind in kinds.items()}
    return {name: kind for name, kind in found.items() if kind in _WIDENED}


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind)


def _widens(dtype: np.dtype[np.generic]) -> bool:
    return dtype in (np.float16, np.float64)


def _is_wide(info: onnx.ValueInfoProto) -> bool:
    return info.type.tensor_type.elem_type in _WIDENED


def _tensors(attribute: AttributeProto) -> list[TensorProto]:
    return [attribute.t] if attribute.type == AttributeProto.TENSOR else list(attribute.tensors)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
