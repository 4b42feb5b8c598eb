"""Bring a model into the form that the gradient rules work on: one operator set, and nothing that is a shorthand.

Operators that the ONNX standard defines as a function of simpler ones (LayerNormalization, Gelu, HardSwish, ...) are
replaced by that function, unless they have a rule. The result is for analysis only; what is saved is never expanded.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import NodeProto, helper

from onnx_cbq.errors import ModelError, UnsupportedOperatorError
from onnx_cbq.gradient.rules import NO_GRADIENT, RULES
from onnx_cbq.gradient.site import RULES_OPSET
from onnx_cbq.gradient.unroll import MOST_STEPS, inputs_of, sums_of, unroll
from onnx_cbq.graph.load import raise_opset
from onnx_cbq.graph.normalise import Normalised, normalise
from onnx_cbq.graph.passes.constants import QUANTIZING, fold_constants, freeze_shapes
from onnx_cbq.graph.passes.defaults import is_function, state_defaults
from onnx_cbq.graph.quantized import is_stored
from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.tensors import with_constant_types
from onnx_cbq.model import STANDARD, Model
from onnx_cbq.records import Layer, Use
from onnx_cbq.runtime import Session


def expand(model: Model, example: Example) -> Normalised:
    """`model` with the rules' operator set and standard functions expanded; every site is checked on `example`.

    Of a model that is quantized already, the float model behind its grids is differentiated (straight-through).
    """
    return normalise(
        _without_grids(model), example, (_to_rules_opset, _expand_functions, fold_constants, freeze_shapes, unroll)
    )


def scored_at(layer: Layer, use: Use, expanded: Model) -> tuple[str, str]:
    """The tensors of an expanded model that hold z of a use, and whose gradient is that of z.

    Raises:
        UnsupportedOperatorError: a recurrent node could not be written out.
    """
    if layer.kind != "recurrent":
        return use.output, use.output
    if sums_of(use.output) not in expanded.producers:
        raise UnsupportedOperatorError(
            f"layer {layer.name!r}: {layer.operator} of more than {MOST_STEPS} steps, or with these activation "
            f"functions, has no gradient rule; use --method uniform, which needs no gradients"
        )
    return sums_of(use.output), inputs_of(use.output)


def _without_grids(model: Model) -> Model:
    """Grids of activations pass on what they are given; so does DynamicQuantizeLinear in front of one."""
    passing = {
        node.output[0]
        for node in model.nodes
        if (node.op_type in QUANTIZING and not is_stored(model, node.output[0])) or _is_dynamic_grid(model, node)
    }
    if not passing:
        return model
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        if node.output[0] in passing:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], node.name))
    return Model(skeleton, model.weights)


def _is_dynamic_grid(model: Model, node: NodeProto) -> bool:
    readers = [reader for name in node.output for reader in model.consumers.get(name, ())]
    return node.op_type == "DynamicQuantizeLinear" and all(reader.op_type == "DequantizeLinear" for reader in readers)


def _to_rules_opset(model: Model, example: Example) -> Model:
    if model.opset >= RULES_OPSET:
        return model
    try:
        return raise_opset(model, RULES_OPSET)
    except ModelError as error:
        raise UnsupportedOperatorError(
            f"{str(error).partition(';')[0]}, for which gradient rules are written"
        ) from error


def _expand_functions(model: Model, example: Example) -> Model:
    # A function may be written in terms of others: HardSwish by HardSigmoid, GroupNormalization by several.
    while shorthand := _shorthand(model):
        model = state_defaults(model, example)
        typed = onnx.shape_inference.infer_shapes(with_constant_types(model.plain_skeleton()))
        _add_types(typed, model, example)
        try:
            expanded = onnx.inliner.inline_selected_functions(typed, shorthand, inline_schema_functions=True)
        except RuntimeError as error:
            names = ", ".join(name for _, name in shorthand)
            raise UnsupportedOperatorError(
                f"onnx cannot write out what defines {names} ({str(error).splitlines()[0]}); use --method uniform, "
                f"which needs no gradients"
            ) from error
        model = Model.from_skeleton(expanded, model.weights)
    return model


def _add_types(typed: onnx.ModelProto, model: Model, example: Example) -> None:
    """Types of the tensors behind operators that onnx does not know, as they are measured."""
    graph = typed.graph
    known = {info.name for info in (*graph.value_info, *graph.input, *graph.output, *graph.initializer)}
    unknown = [name for node in model.nodes for name in node.output if name and name not in known]
    if not unknown:
        return
    values = Session(model.with_graph(outputs=unknown), "off").run(example.feeds)
    tensors = {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.dtype.isbuiltin}
    graph.value_info.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in tensors.items()
    )


def _shorthand(model: Model) -> list[tuple[str, str]]:
    operators = {node.op_type for node in model.nodes if node.domain in STANDARD}
    return [("", name) for name in operators - RULES.keys() - NO_GRADIENT if is_function(name, model.opset)]
