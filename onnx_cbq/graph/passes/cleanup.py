"""Take out the nodes that do nothing at inference: Identity and Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.surgeon import bypass, constant_value, from_surgeon, to_surgeon
from onnx_cbq.model import Model


def remove_idle_nodes(model: Model, example: Example) -> Model:
    """Bypass Identity and Dropout nodes, except where the name of a graph output would be lost."""
    if not any(node.op_type in ("Identity", "Dropout") for node in model.nodes):
        return model
    graph = to_surgeon(model)
    changed = [bypass(graph, node) for node in list(graph.nodes) if _is_idle(node)]
    return from_surgeon(graph, model) if any(changed) else model


def _is_idle(node: Any) -> bool:
    if node.op == "Identity":
        return True
    mask_is_read = len(node.outputs) > 1 and bool(node.outputs[1].outputs)
    has_mode = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    mode = constant_value(node.inputs[2]) if has_mode else np.zeros((), np.bool_)
    return node.op == "Dropout" and not mask_is_read and mode is not None and not mode.any()
