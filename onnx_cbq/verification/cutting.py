"""A model whose layers stand for themselves: cut in front of each, or with something added behind each."""

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


def with_offsets(model: Model, kinds: Mapping[str, int], outputs: Sequence[str]) -> Model:
    """The model with an input `offset_of(tensor)` added to some of its tensors.

    Args:
        model: any; it is not changed.
        kinds: by the name of a tensor that a node makes, ONNX's number of its type.
        outputs: the tensors that it gives.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    skeleton.graph.ClearField("node")
    for node in model.nodes:
        own = skeleton.graph.node.add()
        own.CopyFrom(node)
        for i, name in enumerate(node.output):
            if name in kinds:
                own.output[i] = f"{name} alone"
                skeleton.graph.node.append(helper.make_node("Add", [own.output[i], offset_of(name)], [name]))
    skeleton.graph.input.extend(
        helper.make_tensor_value_info(offset_of(name), kind, None) for name, kind in kinds.items()
    )
    return Model(skeleton, model.weights).with_graph(outputs=outputs)


def offset_of(tensor: str) -> str:
    """The name of what is added to a tensor."""
    return f"{tensor} is off by"
