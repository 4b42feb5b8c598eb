"""Lay the weights of recurrent nodes and tables out as matrices, a row for each scale: codes then lie as the node's do.

    LSTM, GRU, RNN   W [D, G H, I]  ->  rows [D G H, I]                    -> Reshape -> W
    Gather           T [V, ...]     ->  rows [V / k, k x numbers of an entry] -> Reshape (-> Slice) -> T

for D directions, G gates of H hidden units, and k entries of a table that share a scale, so that no row is shorter than
`LEAST_ROW` numbers. The last row is filled up with zeros, which the Slice takes off again. Recurrent nodes give a name
to the hidden states of all steps, which are what R multiplies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.surgeon import constant_value, from_surgeon, to_surgeon
from onnx_cbq.model import Array, FreshNames, Model
from onnx_cbq.records import GATES, TABLES

# A scale of 32 bits beside fewer weights than these would take more than a quarter of a bit for each.
LEAST_ROW = 128


def lay_rows(model: Model, example: Example) -> Model:
    """Every weight of a recurrent node, and every table, behind a Reshape of its rows."""
    if not any(node.op_type in (*GATES, *TABLES) for node in model.nodes):
        return model
    graph, fresh = to_surgeon(model), model.fresh_names()
    laid: dict[str, Any] = {}
    changed = [_lay_recurrent(graph, node, laid, fresh) for node in list(graph.nodes) if node.op in GATES]
    changed += [_counts_from_end(node) for node in graph.nodes if is_lookup(node)]
    changed += [_lay_table(graph, node, laid, fresh) for node in list(graph.nodes) if is_lookup(node)]
    return from_surgeon(graph, model) if any(changed) else model


def is_lookup(node: Any) -> bool:
    """Whether a node of the graph looks entries of a constant table up, by indices that are no constants."""
    if node.op not in TABLES or isinstance(node.inputs[1], gs.Constant):
        return False
    table = constant_value(node.inputs[0])
    if table is None or table.ndim < 2 or not table.size or table.dtype != np.float32:
        return False
    return bool(node.attrs.get("axis", 0) in (0, -table.ndim))


def _counts_from_end(node: Any) -> bool:
    """Whether a lookup names its axis from the end; it names the same one from the front then."""
    if not node.attrs.get("axis", 0):
        return False
    node.attrs["axis"] = 0
    return True


def _lay_recurrent(graph: Any, node: Any, laid: dict[str, Any], fresh: FreshNames) -> bool:
    found = [constant_value(tensor) for tensor in node.inputs[1:3]]
    changed = False
    for index, value in enumerate(found, start=1):
        if value is not None and value.ndim == 3 and value.dtype == np.float32 and value.size:
            changed = True
            rows = value.reshape(-1, value.shape[2])
            node.inputs[index] = _laid(graph, node.inputs[index], rows, value.shape, laid, fresh)
    if changed and not (node.outputs and node.outputs[0].name):
        states = gs.Variable(fresh(f"{node.name or node.op}_states"), np.float32)
        node.outputs = [states, *node.outputs[1:]]
    return changed


def _lay_table(graph: Any, node: Any, laid: dict[str, Any], fresh: FreshNames) -> bool:
    table, value = node.inputs[0], constant_value(node.inputs[0])
    others = [reader for reader in table.outputs if not is_lookup(reader)]
    if value is None or any(_multiplies_rows(reader, table) for reader in others):
        return False
    together = min(max(LEAST_ROW // (value.size // len(value)), 1), len(value))
    if together == 1 and value.ndim == 2 and not others:
        return False
    flat = value.reshape(len(value), -1)
    filled = np.concatenate([flat, np.zeros((-len(flat) % together, flat.shape[1]), np.float32)])
    rows = filled.reshape(-1, together * flat.shape[1])
    node.inputs[0] = _laid(graph, table, rows, value.shape, laid, fresh)
    return True


def _multiplies_rows(node: Any, table: Any) -> bool:
    """Whether a Gemm reads the table as its weight, entries as channels: one layer, with rows that are looked up."""
    return bool(
        node.op == "Gemm"
        and len(node.inputs) > 1
        and node.inputs[1] is table
        and node.attrs.get("transB", 0)
        and not isinstance(node.inputs[0], gs.Constant)
    )


def _laid(graph: Any, tensor: Any, rows: Array, shape: tuple[int, ...], laid: dict[str, Any], fresh: FreshNames) -> Any:
    """The tensor once more, from a constant of its rows; made once for all who read it."""
    if tensor.name in laid:
        return laid[tensor.name]
    alone = all(reader.op in (*GATES, *TABLES) for reader in tensor.outputs)
    constant = gs.Constant(tensor.name if alone else fresh(f"{tensor.name}_rows"), np.ascontiguousarray(rows))
    result = constant
    if rows.shape != shape:
        full = (rows.size // int(np.prod(shape[1:])), *shape[1:]) if rows.size != int(np.prod(shape)) else shape
        result = _add(graph, "Reshape", [constant, np.array(full, np.int64)], fresh(f"{tensor.name}_shaped"))
        if full != shape:
            ends = (np.array([0], np.int64), np.array([shape[0]], np.int64), np.array([0], np.int64))
            result = _add(graph, "Slice", [result, *ends], fresh(f"{tensor.name}_cut"))
    laid[tensor.name] = result
    return result


def _add(graph: Any, operator: str, inputs: list[Any], output: str) -> Any:
    """A node with constants among its inputs; gives what it makes."""
    read = [gs.Constant(f"{output}_{i}", x) if isinstance(x, np.ndarray) else x for i, x in enumerate(inputs)]
    made = gs.Variable(output, np.float32)
    graph.nodes.append(gs.Node(operator, inputs=read, outputs=[made]))
    return made
