"""Small ONNX models made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_cbq.model import Array


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 18,
    dtypes: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """A model from nodes; inputs are float32 unless `dtypes` says otherwise, outputs carry no type."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype((dtypes or {}).get(name, np.float32))) for name in inputs}
    graph = helper.make_graph(
        list(nodes),
        "hand-made",
        [helper.make_tensor_value_info(name, kinds[name], list(shape)) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; input and output names are separated by blanks, `_` is an omitted one."""
    names = [["" if name == "_" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, names[0], names[1], name=f"{operator}_{names[1][0]}", **attributes)
