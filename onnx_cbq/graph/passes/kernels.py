"""Write operators in the form that has a fused integer kernel: Gemm for MatMul, GlobalAveragePool for ReduceMean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_cbq.graph.shapes import Example, Shapes, has_other_sizes
from onnx_cbq.graph.surgeon import constant_value, from_surgeon, only_reader, take_output, to_surgeon
from onnx_cbq.model import Model


def matmul_to_gemm(model: Model, example: Example) -> Model:
    """MatMul with a constant matrix on its right becomes a Gemm, which takes a bias.

    Data of more than two axes is laid flat first: [N, T, K] -> [N T, K] -> Gemm -> [N T, O] -> [N, T, O], unless T may
    be anything: it would be a constant then.
    """
    if not any(node.op_type == "MatMul" and model.is_constant(node.input[1]) for node in model.nodes):
        return model
    shapes = example.shapes(model)
    graph = to_surgeon(model)
    most = 2 if has_other_sizes(model) else math.inf
    nodes = [node for node in graph.nodes if node.op == "MatMul" and len(shapes[node.inputs[0].name]) <= most]
    changed = [_to_gemm(graph, node, shapes) for node in nodes]
    return from_surgeon(graph, model) if any(changed) else model


def mean_to_pool(model: Model, example: Example) -> Model:
    """ReduceMean over all positions of [N, C, ...] becomes GlobalAveragePool, and Flatten where axes are dropped."""
    if not any(node.op_type == "ReduceMean" for node in model.nodes):
        return model
    shapes = example.shapes(model)
    graph = to_surgeon(model)
    changed = [_to_pool(graph, node, shapes) for node in list(graph.nodes) if node.op == "ReduceMean"]
    return from_surgeon(graph, model) if any(changed) else model


def _to_gemm(graph: Any, node: Any, shapes: Shapes) -> bool:
    weight = constant_value(node.inputs[1])
    source = node.inputs[0]
    if weight is None or weight.ndim != 2 or shapes.batch_axis[source.name] != 0 or len(shapes[source.name]) < 2:
        return False
    _take_bias(graph, node, weight.shape[1])
    result = node.outputs[0]
    if len(shapes[source.name]) > 2:
        flat, product = (gs.Variable(f"{result.name}_{part}", np.float32) for part in ("rows", "product"))
        rows = gs.Constant(f"{flat.name}_shape", np.array([-1, weight.shape[0]], np.int64))
        back = gs.Constant(f"{product.name}_shape", np.array([-1, *shapes[result.name][1:]], np.int64))
        graph.nodes.append(gs.Node("Reshape", inputs=[source, rows], outputs=[flat]))
        node.inputs[0] = flat
        node.outputs = [product]
        graph.nodes.append(gs.Node("Reshape", inputs=[product, back], outputs=[result]))
    node.op = "Gemm"
    return True


def _take_bias(graph: Any, node: Any, outputs: int) -> None:
    """If the only reader of the product adds a constant vector, that becomes the node's third input."""
    add = only_reader(graph, node.outputs[0])
    if add is None or add.op != "Add" or add.inputs[0] is add.inputs[1]:
        return
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    bias = constant_value(other)
    if bias is None or bias.size != outputs or bias.shape[-1] != outputs:
        return
    node.inputs.append(other if bias.ndim == 1 else gs.Constant(f"{other.name}_vector", bias.reshape(-1)))
    take_output(node, add)


def _to_pool(graph: Any, node: Any, shapes: Shapes) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    rank = len(shapes[source.name])
    given = constant_value(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    if given is None or rank < 3 or sorted(axis % rank for axis in np.asarray(given).tolist()) != list(range(2, rank)):
        return False
    keeps = bool(node.attrs.get("keepdims", 1))
    pooled = result if keeps else gs.Variable(f"{result.name}_pooled", np.float32)
    node.outputs.clear()
    graph.nodes.append(gs.Node("GlobalAveragePool", node.name, inputs=[source], outputs=[pooled]))
    if not keeps:
        graph.nodes.append(gs.Node("Flatten", attrs={"axis": 1}, inputs=[pooled], outputs=[result]))
    return True
