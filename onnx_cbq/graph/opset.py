"""Operator sets: older ones are raised with onnx's converter, and the result is run beside the original.

13 is the lowest that is needed: the first in which per-channel DequantizeLinear exists.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx.shape_inference
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.defs import onnx_opset_version

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.normalise import TOLERANCE, outputs_of, relative_error
from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.tensors import every_node
from onnx_cbq.model import STANDARD, Array, Model, attributes, opset_version
from onnx_cbq.runtime import EndlessRunError

OLDEST_OPSET = 7  # that onnxruntime runs
LOWEST_OPSET = 13
# From here on a Resize says how it maps coordinates; before, it did as `asymmetric` and `floor` do.
_RESIZE_OPSET = 11


def with_known_opset(proto: ModelProto, label: str) -> ModelProto:
    """The model, with a default operator set if it imports none: then it uses none.

    Raises:
        ModelError: it is too old, or newer than onnx.
    """
    opset = opset_version(proto)
    if not any(entry.domain in STANDARD for entry in proto.opset_import):
        used = next((node for node in every_node(proto.graph.node) if node.domain in STANDARD), None)
        if used is not None:
            raise ModelError(
                f"{label}: imports no version of ONNX's own operators, but has a node of them "
                f"({used.op_type} {used.name!r}); export it again"
            )
        own = ModelProto()
        own.CopyFrom(proto)
        own.opset_import.add(domain="", version=LOWEST_OPSET)
        return own
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{label}: opset {opset} is too old, expected {OLDEST_OPSET} or later; export it again, "
            f"or raise it with onnx.version_converter"
        )
    if opset > onnx_opset_version():
        raise ModelError(
            f"{label}: opset {opset} is later than this version knows, expected {onnx_opset_version()} or earlier; "
            f"export it with an earlier opset, or update onnx"
        )
    return proto


def raise_to_lowest(model: Model, label: str) -> Model:
    """`model` in the lowest operator set that is needed, or a later one that it came in.

    Raises:
        ModelError: onnx's converter cannot do it, or what it makes computes something else.
    """
    if model.opset >= LOWEST_OPSET:
        return model
    raised = raise_opset(model, LOWEST_OPSET)
    error = _deviation(model, raised)
    if error > TOLERANCE:
        raise ModelError(
            f"{label}: onnx raises it from opset {model.opset} to {LOWEST_OPSET}, but an output then differs by "
            f"{error:.1e} of its largest value; export it again with opset {LOWEST_OPSET} or later"
        )
    return raised


def raise_opset(model: Model, opset: int) -> Model:
    """`model` in a later operator set.

    The converter sees the weights as inputs: it needs their types, not their values.

    Raises:
        ModelError: onnx's version converter cannot do it.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model.plain_skeleton())
    kept = [t for t in skeleton.graph.initializer if t.name not in model.weights]
    stubs = [t for t in skeleton.graph.initializer if t.name in model.weights]
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(kept)
    skeleton.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stubs)
    try:
        converted = onnx.version_converter.convert_version(skeleton, opset)
    except Exception as error:
        raise ModelError(
            f"onnx cannot raise the model from opset {model.opset} to {opset}: {_first_line(error)}; "
            f"export it again with opset {opset} or later"
        ) from error
    if not converted.functions:  # which the converter forgets
        converted.functions.extend(skeleton.functions)
        known = {entry.domain for entry in converted.opset_import}
        converted.opset_import.extend(entry for entry in skeleton.opset_import if entry.domain not in known)
    inputs = [info for info in converted.graph.input if info.name not in model.weights]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(stubs)
    if model.opset < _RESIZE_OPSET <= opset:
        _state_coordinates(every_node(converted.graph.node))
        _match_types(converted, skeleton)
    return Model.from_skeleton(converted, model.weights)


def _state_coordinates(nodes: Iterable[NodeProto]) -> None:
    """The converter leaves out what was implied before, and by default something else is implied now."""
    for node in nodes:
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in attributes(node):
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            if attributes(node).get("mode", "nearest") == "nearest":
                node.attribute.append(helper.make_attribute("nearest_mode", "floor"))


def _match_types(converted: ModelProto, before: ModelProto) -> None:
    """Bounds of Clip and the fill of Pad were attributes, and the converter makes float32 of them for any type."""
    typed = onnx.shape_inference.infer_shapes(before).graph
    infos = (*typed.value_info, *typed.input, *typed.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    types |= {tensor.name: tensor.data_type for tensor in typed.initializer}
    made = {node.output[0]: node for node in converted.graph.node if node.op_type == "Constant"}
    for node in converted.graph.node:
        kind = types.get(node.input[0]) if node.op_type in ("Clip", "Pad") else None
        for name in node.input[1 if node.op_type == "Clip" else 2 :]:
            value = next((a.t for a in made[name].attribute if a.name == "value"), None) if name in made else None
            if kind and value is not None and value.data_type != kind:
                with np.errstate(over="ignore"):  # what a narrower type cannot reach bounds nothing
                    number = numpy_helper.to_array(value).astype(helper.tensor_dtype_to_np_dtype(kind))
                value.CopyFrom(numpy_helper.from_array(number))


def _deviation(model: Model, raised: Model) -> float:
    """How far the outputs are apart on made-up inputs, relative to the largest; 0 where nobody can know.

    That is where no input can be made up, where onnxruntime does not run the original, and where two runs of it differ.
    """
    try:
        example = Example.made_up(model)
        reference: list[Array] = outputs_of(model, example)
        again = outputs_of(model, example)
    except EndlessRunError:
        raise
    except ModelError:
        return 0.0
    if relative_error(again, reference) > TOLERANCE:
        return 0.0
    return relative_error(outputs_of(raised, example), reference)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
