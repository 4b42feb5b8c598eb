"""A model cut in front of its layers, each of which then reads an input of its own and depends on no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, helper

from onnx_cbq.model import Model


def cut(model: Model, places: Mapping[str, tuple[int, int]], outputs: Sequence[str]) -> Model:
    """The model whose nodes read the inputs `input_of(tensor)` instead of what they read.

    Args:
        model: any; it is not changed.
        places: by the first output of a node, which of its inputs, and ONNX's number of the type of that.
        outputs: the tensors that it gives.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    made = []
    for node in skeleton.graph.node:
        if node.output and node.output[0] in places:
            index, kind = places[node.output[0]]
            node.input[index] = input_of(node.output[0])
            made.append(helper.make_tensor_value_info(node.input[index], kind, None))
    skeleton.graph.input.extend(made)
    return Model(skeleton, model.weights).with_graph(outputs=outputs).without_idle_inputs()


def input_of(output: str) -> str:
    """The name of what the node that makes a tensor reads once it is cut off."""
    return f"{output} reads"
