"""Fix the sizes that a file leaves open, for runtimes that compile it for one size."""

from __future__ import annotations

from onnx import ModelProto, helper

from onnx_cbq.graph.shapes import Example, fixed_batch
from onnx_cbq.model import Model
from onnx_cbq.runtime import Session


def fix_sizes(model: Model, example: Example) -> Model:
    """`model` with every size of its inputs and outputs declared as one sample has it, or its fixed batch."""
    batch = fixed_batch(model) or 1
    feeds = {name: value[:batch] for name, value in example.feeds.items()}
    values = {**feeds, **Session(model).run(feeds)}
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for info in (*skeleton.graph.input, *skeleton.graph.output):
        value = values[info.name]
        info.type.CopyFrom(helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))
    return Model(skeleton, model.weights)
