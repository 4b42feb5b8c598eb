"""Read a model from a path or a `ModelProto` into a `Model`, or say in one line why it cannot be done.

External data is memory-mapped, so a model of any size loads in the time it takes to read its graph (`external`).
Model-local functions are inlined (`functions`), and older operator sets are raised (`opset`). Every name in
what comes out is text, every node stands behind what it reads and has the inputs that its operator needs, and every
constant has a value; whether onnxruntime takes the graph shows when it is first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.extent import check_extent
from onnx_cbq.graph.external import data_files, take_in
from onnx_cbq.graph.functions import inline_functions
from onnx_cbq.graph.opset import LOWEST_OPSET, OLDEST_OPSET, raise_opset, raise_to_lowest, with_known_opset
from onnx_cbq.graph.order import tidy
from onnx_cbq.graph.reading import read_model
from onnx_cbq.graph.schemas import check_nodes
from onnx_cbq.graph.tensors import every_node
from onnx_cbq.model import Array, Model
from onnx_cbq.model.mapped import LARGE, release

LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

__all__ = [
    "LAYER_OPERATORS",
    "LOWEST_OPSET",
    "OLDEST_OPSET",
    "data_files",
    "inputs_with_defaults",
    "load",
    "raise_opset",
]


def load(source: str | Path | ModelProto, *, values: bool = True) -> Model:
    """The model at `source`, ready to be analysed; without `values` many weights are not looked at.

    Raises:
        ModelError: the file is missing, not an ONNX model, of a too old opset, has external data that is missing or
            outside the model's folder, or holds NaN or infinity in a weight.
    """
    if isinstance(source, ModelProto):
        proto, path, label = source, None, "the model"
    else:
        proto, path, label = read_model(Path(source)), Path(source), str(source)
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{label}: not an ONNX model: it has no nodes; export or copy it again")
    try:
        proto = with_known_opset(proto, label)
        _check_names(proto, label)
        _check_types(proto, label)
        model = _split(*take_in(proto, path, label))
        skeleton = tidy(inline_functions(model.plain_skeleton(), label), label)
        check_nodes(skeleton, label)
        names = {tensor.name for tensor in skeleton.graph.initializer}
        model = Model.from_skeleton(skeleton, {n: value for n, value in model.weights.items() if n in names})
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        # protobuf and onnx find some damage only when a field is read, and all that matter were read here.
        raise ModelError(
            f"{label}: damaged ({type(error).__name__}: {error}); expected a valid ONNX model; export or copy it again"
        ) from error
    size = sum(value.nbytes for value in model.weights.values())
    if values or size <= LARGE:
        _check_weights(model, label)
    check_extent(model.plain_skeleton(), size, label)
    return raise_to_lowest(model, label)


def inputs_with_defaults(source: str | Path | ModelProto) -> tuple[str, ...]:
    """The inputs that a user may leave out, since initializers of the same names give their values.

    None where all initializers are inputs too: that is how some exporters write weights.
    """
    proto = source if isinstance(source, ModelProto) else read_model(Path(source))
    initializers = {tensor.name for tensor in proto.graph.initializer}
    found = tuple(info.name for info in proto.graph.input if info.name in initializers)
    return found if len(found) < len(initializers) else ()


def _check_names(proto: ModelProto, label: str) -> None:
    """protobuf hands out bytes where text is not UTF-8."""
    graph = proto.graph
    nodes = [*every_node(graph.node), *(node for function in proto.functions for node in every_node(function.node))]
    texts = [text for node in nodes for text in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    texts += [attribute.name for node in nodes for attribute in node.attribute]
    texts += [entry.name for entry in (*graph.input, *graph.output, *graph.initializer, *proto.functions)]
    texts += [entry.domain for entry in proto.opset_import]
    if any(isinstance(text, bytes) for text in texts):
        raise ModelError(f"{label}: damaged: a name is not UTF-8 text; export or copy it again")


def _check_types(proto: ModelProto, label: str) -> None:
    """What a graph takes and gives has a type that there is, or none."""
    known = set(TensorProto.DataType.values())
    for info in (*proto.graph.input, *proto.graph.output):
        kind = info.type.tensor_type.elem_type
        if kind not in known:
            raise ModelError(f"{label}: damaged: {info.name!r} is declared of the type {kind}, which there is not")


def _split(proto: ModelProto, mapped: Mapping[str, Array]) -> Model:
    """Skeleton and weights, with everything read that is read later."""
    model = Model.from_proto(proto, mapped)
    for tensor in proto.graph.initializer:
        model.constant(tensor.name)
    assert model.inputs is not None
    return model


def _check_weights(model: Model, label: str) -> None:
    """Masks may hold infinity, and a bias that masks a class -inf; what a layer multiplies with may not."""
    readers = [node for node in model.nodes if node.op_type in (*LAYER_OPERATORS, "BatchNormalization")]
    biases = {node.input[2] for node in readers if node.op_type != "BatchNormalization" and len(node.input) > 2}
    for name in dict.fromkeys(name for node in readers for name in node.input):
        value = model.constant(name)
        if value is None or not np.issubdtype(value.dtype, np.floating):
            continue
        finite = _is_finite(value)
        release(value)
        if finite:
            continue
        if name in biases and _is_finite(np.where(np.isneginf(value), np.zeros_like(value), value)):
            continue
        raise ModelError(
            f"{label}: weight {name!r} holds NaN or infinity ({value.size - np.isfinite(value).sum()} of {value.size} "
            f"values); expected finite numbers; export the model again from a healthy checkpoint"
        )


def _is_finite(value: Array) -> bool:
    """By the sum, which reads once what lies in a file; infinities of both signs add up to NaN, with a warning."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(value.sum(dtype=np.float64))) or bool(np.isfinite(value).all())
