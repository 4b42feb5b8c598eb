"""Where activations are quantized, so that a runtime can fuse whatever it has an integer kernel for.

"kernels", for onnxruntime and OpenVINO on the CPU: every layer wants its input quantized, and a Conv its output too
unless nothing but the user reads it. From there the wish walks up the graph: through operators that only move numbers
(their output shares the input's grid) and through additions, pooling and other operators with integer kernels, to
tensors whose producer has none.

"operands", for TensorRT: what layers read, and of a residual Add the branch that does not come from its layer. The
output of a layer stays float, since TensorRT fuses the layer with what follows.

"everywhere", for accelerators that compute in integers or not at all: every float tensor, the outputs of the model
among them.

What a logarithm is taken of stays float in the first two, back to the layers whose power it is (a log-mel spectrogram):
codes of one spacing know loud from louder, and next to nothing of what is soft.

A Relu, or a Clip that the grid's own saturation may stand for, belongs to the operator in front of it: its output is
quantized, its input is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.integer_rules import ARITHMETIC, MOVEMENT, SATURATION
from onnx_cbq.graph.laid import root
from onnx_cbq.graph.load import LAYER_OPERATORS
from onnx_cbq.model import STANDARD, Model
from onnx_cbq.records import FUSED, Layer, Layers, PlacementRules, Use

# What keeps the ratios of numbers, or their squares, on the way to a logarithm.
_SCALING = frozenset(
    {
        *("Add", "Mul", "Div", "Pow", "Sqrt", "Abs", "Clip", "Max", "Sum", "Identity", "Reshape", "Flatten"),
        *("Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "ReduceSum", "ReduceSumSquare", "ReduceMean"),
    }
)
# Other operators whose inputs and outputs are numbers that can be rounded.
_COMPUTING = frozenset(
    ("Sub", "Div", "Max", "Min", "Pow", "Sqrt", "Exp", "Erf", "Tanh", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Mish")
    + ("PRelu", "Softmax", "LayerNormalization", "BatchNormalization", "InstanceNormalization", "LRN", "Where")
    + ("SpaceToDepth", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin")
)


@dataclass(frozen=True)
class Placement:
    """Tensors to quantize.

    Attributes:
        measured: those that get a grid of their own.
        shared: those that only moved: tensor -> the one in front, whose grid they use.
        saturated: outputs of a Relu or Clip that belongs to the operator in front of it.
        alike: groups of tensors in `measured` that have one grid.
    """

    measured: tuple[str, ...]
    shared: Mapping[str, str]
    saturated: frozenset[str]
    alike: tuple[frozenset[str], ...] = ()

    def grid_of(self, name: str) -> str:
        """The tensor whose grid `name` uses."""
        while name in self.shared:
            name = self.shared[name]
        return name


NO_ACTIVATIONS = Placement((), {}, frozenset())


def place_activations(model: Model, layers: Layers, rules: PlacementRules = FUSED) -> Placement:
    """Choose the tensors to quantize."""
    wanted = {"kernels": _for_kernels, "operands": _operands, "everywhere": _everywhere}[rules.style](model, layers)
    wanted = _leave_float(model, layers, wanted)
    if rules.style != "everywhere":
        wanted -= _before_logarithms(model, layers)
    shared = {}
    for name in wanted if rules.style != "operands" else ():
        producer = model.producers.get(name)
        if producer is None or producer.input[0] not in wanted:
            continue
        if moves_integers(model, name) or producer.op_type in rules.keeping:
            shared[name] = str(producer.input[0])
    saturated = frozenset(name for name in wanted if _saturation(model, name) is not None)
    placement = Placement(tuple(sorted(wanted - shared.keys())), shared, saturated)
    return replace(placement, alike=_alike(model, placement, rules.alike)) if rules.alike else placement


def _alike(model: Model, placement: Placement, operators: frozenset[str]) -> tuple[frozenset[str], ...]:
    """Groups of tensors that the operators hold together; those that meet are one."""
    groups: list[frozenset[str]] = []
    for node in model.nodes:
        if node.op_type in operators:
            group = {placement.grid_of(name) for name in (*node.input, *node.output)} & set(placement.measured)
            met = [other for other in groups if other & group]
            groups = [other for other in groups if other not in met]
            groups.append(frozenset(group.union(*met)))
    return tuple(group for group in groups if len(group) > 1)


def _for_kernels(model: Model, layers: Layers) -> set[str]:
    uses = [(layer, use) for layer in layers.products for use in layer.uses if has_integer_kernel(layer, use)]
    pending = [use.activation for _, use in uses]
    pending += [_behind_saturation(model, use.output) for layer, use in uses if layer.operator == "Conv"]
    wanted: set[str] = set()
    while pending:
        name = pending.pop()
        if (
            name not in wanted
            and not model.is_constant(name)
            and (model.consumers.get(name) or name not in model.outputs)
        ):
            wanted.add(name)
            pending.extend(_in_front(model, name))
    return wanted


def _operands(model: Model, layers: Layers) -> set[str]:
    outputs = {use.output for layer in layers.products for use in layer.uses}
    wanted = {use.activation for layer in layers.products for use in layer.uses}
    for node in model.nodes:
        if node.op_type == "Add" and not any(model.is_constant(name) for name in node.input):
            # The Add is fused with one of the layers.
            fused = [name for name in node.input if name in outputs and len(model.consumers[name]) == 1]
            if fused:
                wanted |= set(node.input) - {fused[-1]}
    return wanted


def _everywhere(model: Model, layers: Layers) -> set[str]:
    outputs = {use.output for layer in layers.products for use in layer.uses}
    computing = MOVEMENT.keys() | ARITHMETIC.keys() | SATURATION | _COMPUTING
    wanted = {use.activation for layer in layers.products for use in layer.uses} | outputs
    wanted |= {spec.name for spec in model.inputs if spec.dtype == np.float32}  # others are cast first
    for node in model.nodes:
        if node.output[0] in outputs or (node.op_type in computing and node.domain in STANDARD):
            depends = [name for name in node.input if name in wanted]
            wanted |= {node.output[0]} if depends else set()
    for name in list(wanted):
        behind = _behind_saturation(model, name)
        if behind != name:
            wanted -= {name}
            wanted |= {behind}
    return {name for name in wanted if not model.is_constant(name)}


def _leave_float(model: Model, layers: Layers, wanted: set[str]) -> set[str]:
    """`wanted` without one side of each product whose weight stays float, and of operators that must.

    Between DequantizeLinear and QuantizeLinear onnxruntime would quantize that weight by a grid of its own, and take a
    kernel whose attributes mean something else.
    """
    activations = {use.activation for layer in layers.products for use in layer.uses}
    outputs = {use.output for layer in layers.products for use in layer.uses}
    for node in model.nodes:
        if node.op_type in ARITHMETIC and not _computes_integers(model, node):
            sources = {name for source in node.input for name in _moved_from(model, source)}
            wanted -= {_behind_saturation(model, node.output[0])} if sources & activations else sources
        if node.op_type not in LAYER_OPERATORS or node.output[0] in outputs:
            continue
        if any(map(model.is_constant, node.input[:2])):
            moved = {name for source in node.input[:2] for name in _moved_from(model, source)}
            wanted -= {*moved, _behind_saturation(model, node.output[0])} - activations
    return wanted


def _before_logarithms(model: Model, layers: Layers) -> set[str]:
    """What logarithms are taken of: back through banks of filters, and squares, to the outputs of other layers.

    And what only Convs read whose outputs are among it, since an integer Conv gives integers.
    """
    filters = {use.output: use.activation for layer in layers if layer.positive for use in layer.uses}
    pending = [node.input[0] for node in model.nodes if node.op_type == "Log"]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in found or model.is_constant(name):
            continue
        found.add(name)
        producer = model.producers.get(name)
        if name in filters:
            pending.append(filters[name])
        elif producer is not None and producer.op_type in _SCALING:
            pending.extend(filter(None, producer.input))
    convs = {
        use.activation for layer in layers if layer.operator == "Conv" for use in layer.uses if use.output in found
    }
    return found | {name for name in convs if all(node.output[0] in found for node in model.consumers[name])}


def _moved_from(model: Model, name: str) -> Iterator[str]:
    """`name`, and the tensors that operators which only move numbers made it from: they would carry a grid to it."""
    yield name
    producer = model.producers.get(name)
    while producer is not None and producer.op_type in MOVEMENT:
        yield producer.input[0]
        producer = model.producers.get(producer.input[0])


def has_integer_kernel(layer: Layer, use: Use) -> bool:
    """Whether onnxruntime multiplies integers here.

    It does not for ConvTranspose, nor with the weight on the left or with scales per channel of several matrices.
    """
    is_matrix = len(layer.weight_shape) == 2 and use.weight_index == 1
    return layer.operator in ("Conv", "Gemm") or (layer.operator == "MatMul" and is_matrix)


def moves_integers(model: Model, name: str) -> bool:
    """Whether `name` comes from an operator that can move integers just as well, and not constants."""
    producer = model.producers.get(name)
    if producer is None or producer.op_type not in MOVEMENT or root(model, producer.input[0]) is not None:
        return False
    return MOVEMENT[producer.op_type](model, producer)


def _in_front(model: Model, name: str) -> list[str]:
    """The tensors that should be quantized because `name` is."""
    producer = model.producers.get(name)
    if producer is None:
        return []
    if moves_integers(model, name):
        return [producer.input[0]]
    source = _saturation(model, name)
    if source is not None:
        producer = model.producers[source]
    if _computes_integers(model, producer) and not any(model.is_constant(i) for i in producer.input):
        return list(producer.input)
    return []


def _computes_integers(model: Model, node: NodeProto) -> bool:
    return node.op_type in ARITHMETIC and ARITHMETIC[node.op_type](model, node)


def _saturation(model: Model, name: str) -> str | None:
    """The tensor in front of a Relu, or of a Clip from 0, that makes `name` and is its only reader; else None."""
    producer = model.producers.get(name)
    if producer is None or producer.op_type not in SATURATION:
        return None
    source = str(producer.input[0])
    if len(model.consumers[source]) != 1 or source in model.outputs or source not in model.producers:
        return None
    if producer.op_type == "Clip":
        bounds = [model.constant(bound) if bound else None for bound in producer.input[1:]]
        if not bounds or bounds[0] is None or bounds[0].item() != 0 or (len(bounds) > 1 and bounds[1] is None):
            return None
    return source


def _behind_saturation(model: Model, name: str) -> str:
    """`name`, or the output of the Relu or Clip that is its only reader."""
    readers = model.consumers.get(name, [])
    if len(readers) == 1 and _saturation(model, readers[0].output[0]) == name:
        return str(readers[0].output[0])
    return name
