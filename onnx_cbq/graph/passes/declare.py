"""Declare what a graph takes and gives: ONNX wants a type and a shape for every input and output.

onnxruntime runs models without, and some converters leave them out; the quantized model is to be valid all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from onnx_cbq.graph.shapes import Example, fixed_batch, has_other_sizes
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session


def declare_interface(model: Model, example: Example) -> Model:
    """Fill in the types and shapes of inputs and outputs that have none, as they were measured.

    A size is declared where the batch does not change it, as long as nothing but the batch can change.
    """
    graph = model.skeleton.graph
    if not any(_is_undeclared(info) for info in (*graph.input, *graph.output)):
        return model
    session, feeds = Session(model, "off"), example.runs(model)
    runs: list[Mapping[str, Array]] = [{**fed, **session.run(fed)} for fed in feeds]
    known = not has_other_sizes(model) and (len(runs) > 1 or fixed_batch(model) is not None)
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for info in (*skeleton.graph.input, *skeleton.graph.output):
        values = [run[info.name] for run in runs]
        is_tensor = all(isinstance(value, np.ndarray) for value in values) and len({np.ndim(v) for v in values}) == 1
        if is_tensor and _is_undeclared(info):
            info.CopyFrom(_declared(info.name, values, known=known))
    return Model(skeleton, model.weights)


def _is_undeclared(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not info.type.tensor_type.HasField("shape"))


def _declared(name: str, values: list[Array], *, known: bool) -> onnx.ValueInfoProto:
    """A tensor like `values`, which differ in nothing but the batch; its sizes stay open unless they are `known`."""
    shape = [
        sizes[0] if known and len({*sizes}) == 1 else None for sizes in zip(*(v.shape for v in values), strict=True)
    ]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[0].dtype), shape)
