"""Fix the sizes that a file leaves open, for runtimes that compile it for one size."""

from __future__ import annotations

from onnx import ModelProto

from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Model
from onnx_cbq.runtime import Session


def fix_sizes(model: Model, example: Example) -> Model:
    """`model` with every size of its inputs and outputs declared as the first sample of the example has it."""
    feeds = {name: value[:1] for name, value in example.feeds.items()}
    values = {**feeds, **Session(model).run(feeds)}
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for info in (*skeleton.graph.input, *skeleton.graph.output):
        shape = info.type.tensor_type.shape
        del shape.dim[:]
        for size in values[info.name].shape:
            shape.dim.add().dim_value = size
    return Model(skeleton, model.weights)
