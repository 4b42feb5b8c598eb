"""Compute once what does not depend on the samples.

onnx-graphsurgeon has a folder of its own; it is not used because it removes casts around integer arithmetic, which
changes results, and because it needs every weight in one protobuf.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.shapes import Example, Shapes, has_other_sizes
from onnx_cbq.graph.surgeon import from_surgeon, to_surgeon
from onnx_cbq.model import Array, Model, can_stand_outside
from onnx_cbq.runtime import Session

# A folded tensor larger than this stays computed (Expand or Tile of a scalar can make gigabytes).
LARGEST_FOLDED_BYTES = 64 << 20

_NEVER_FOLDED = frozenset(
    ("Loop", "Scan", "Optional", "Bernoulli", "Multinomial")
    + ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike")
)
QUANTIZING = frozenset(("QuantizeLinear", "DequantizeLinear"))
_READS_SHAPE = ("Shape", "Size")


def fold_constants(model: Model, example: Example, left: Collection[str] = ()) -> Model:
    """Replace everything that is computed from constants alone (Constant nodes included) by its value.

    The operators `left` stay, and what depends on them.
    """
    computed: set[str] = set()
    folded: list[NodeProto] = []
    for node in model.nodes:
        if (
            _foldable(node)
            and node.op_type not in left
            and all(not n or n in computed or model.is_constant(n) for n in node.input)
        ):
            folded.append(node)
            computed.update(name for name in node.output if name)
    outputs = _read_from_outside(model, folded, computed)
    if not outputs:
        return model
    values = Session(_submodel(model, outputs), "off").run({})
    return _with_values(model, {name: value for name, value in values.items() if _is_worth_folding(value)})


def freeze_shapes(model: Model, example: Example) -> Model:
    """Replace arithmetic on shapes by constants: as a whole where the batch does not enter it, else in Reshape as -1.

    Left alone where an axis other than the batch is dynamic: one measurement says nothing about other sizes.
    """
    if has_other_sizes(model):
        return model
    derived: set[str] = set()
    arithmetic: list[NodeProto] = []
    for node in model.nodes:
        sources = [name for name in node.input if name and not model.is_constant(name)]
        from_shapes = bool(sources) and all(name in derived for name in sources)
        if _foldable(node) and (node.op_type in _READS_SHAPE or from_shapes):
            arithmetic.append(node)
            derived.update(name for name in node.output if name)
    read = _read_from_outside(model, arithmetic, derived)
    if not read:
        return model
    values = {name: v for name, v in example.unchanging_values(model, read).items() if _is_worth_folding(v)}
    shapes = example.shapes(model)
    for name in read:
        if name not in values and (target := _reshape_target(model, shapes, name)) is not None:
            values[name] = target
    return _with_values(model, values)


def _is_worth_folding(value: Array) -> bool:
    """Whether it is a tensor of numbers that is not too large; sequences and text stay computed."""
    return isinstance(value, np.ndarray) and can_stand_outside(value.dtype) and value.nbytes <= LARGEST_FOLDED_BYTES


def _foldable(node: NodeProto) -> bool:
    return node.op_type not in _NEVER_FOLDED and not node.op_type.startswith("Sequence")


def _read_from_outside(model: Model, nodes: list[NodeProto], made: set[str]) -> list[str]:
    inside = {id(node) for node in nodes}
    read = (n for n in made if any(id(reader) not in inside for reader in model.consumers.get(n, ())))
    return [name for name in read if name not in model.outputs]


def _reshape_target(model: Model, shapes: Shapes, name: str) -> Array | None:
    """The constant that can stand for shape tensor `name`: the measured output shape with -1 on the batch axis."""
    readers = model.consumers[name]
    if len(readers) != 1 or readers[0].op_type != "Reshape" or readers[0].input[1] != name:
        return None
    output = readers[0].output[0]
    axis = shapes.batch_axis[output]
    if axis is None:
        return None
    target = np.array(shapes[output], np.int64)
    target[axis] = -1
    return target


def _submodel(model: Model, outputs: list[str]) -> Model:
    """The part of `model` that gives `outputs`, which do not depend on its inputs."""
    part = model.with_graph(outputs=outputs)
    part.skeleton.graph.ClearField("input")
    return part


def _with_values(model: Model, values: Mapping[str, Array]) -> Model:
    if not values:
        return model
    graph = to_surgeon(model)
    tensors = graph.tensors()
    for name, value in values.items():
        tensors[name].inputs.clear()
        tensors[name].to_constant(value)
    return from_surgeon(graph, model)
