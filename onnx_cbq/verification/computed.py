"""Weights that a file computes from constants on every run, as tools do that cut them into blocks."""

from __future__ import annotations

from onnx import ModelProto

from onnx_cbq.evidence.relay import dependents
from onnx_cbq.graph.load import LAYER_OPERATORS
from onnx_cbq.model import Model
from onnx_cbq.runtime import Session
from onnx_cbq.targets.reading import DEQUANTIZE


def with_computed_weights(model: Model) -> Model:
    """The same model with these weights as float constants; those behind a DequantizeLinear alone stay as they are.

    Cost: a run of what computes them.

    Raises:
        ModelError: it cannot be run.
    """
    depending = dependents(model, [spec.name for spec in model.inputs])
    products = [node for node in model.nodes if node.op_type in LAYER_OPERATORS]
    operands = dict.fromkeys(name for node in products for name in node.input[node.op_type != "MatMul" : 2])
    made = [name for name in operands if name in model.producers and name not in depending]
    wanted = [name for name in made if model.producers[name].op_type != DEQUANTIZE]
    if not wanted:
        return model
    values = Session(model.with_graph(outputs=wanted).without_idle_inputs(), "off").run({})
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = f"{name} computed again" if name in values else name
    return Model(skeleton, model.weights).with_graph(constants=values, outputs=model.outputs)
