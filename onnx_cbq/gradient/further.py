"""Outputs beside the class scores that count too: masks, boxes, embeddings, the answers of further heads.

What quantization does to such a tensor o is its distance from the float model's, relative to how much o itself varies:

    D = 1/2 mean over its elements of (change of o)^2 / variance of o over the samples

It adds to the divergence of the class scores, which it resembles: for a normal distribution of that variance around o,
D is the Kullback-Leibler divergence for each element.

An output that cannot be differentiated (the arg max of a mask, boxes that were sorted out) is represented by the
tensors in front of it that can. What depends on layers only through the logits is theirs already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from onnx_cbq.errors import ConfigError
from onnx_cbq.gradient.rules import NO_GRADIENT, RULES
from onnx_cbq.graph.logits import Logits
from onnx_cbq.graph.passes.defaults import is_function
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import STANDARD, Model, attributes
from onnx_cbq.records import Layers

_REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Further:
    """A tensor that counts beside the logits.

    Attributes:
        output: the graph output that it stands for.
        tensor: the output itself, or what in front of it can be differentiated.
        batch_axis: of its samples.
    """

    output: str
    tensor: str
    batch_axis: int


@dataclass(frozen=True)
class FurtherOutputs:
    """All that count, and the outputs that layers feed but that nothing can be told about; `ignored` as asked for."""

    counted: tuple[Further, ...] = ()
    unknown: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


NO_FURTHER = FurtherOutputs()


def find_further(
    model: Model, shapes: Shapes, layers: Layers, logits: Logits, ignored: Sequence[str] = ()
) -> FurtherOutputs:
    """The outputs beside the class scores that layers feed.

    Raises:
        ConfigError: one of those to ignore is no output, or holds the class scores.
    """
    others = [name for name in model.outputs if name != logits.output]
    for name in ignored:
        if name not in others:
            listing = ", ".join(others) or "there are no others"
            what = "holds the class scores" if name == logits.output else "is no output of the model"
            raise ConfigError(f"--ignore-output {name!r}: {what}; expected one of the other outputs: {listing}")
    made = [use.output for layer in layers for use in layer.uses]
    starts = {name for output in made for name in model.producers[output].output if name} - {logits.tensor}
    fed = _fed(model, starts, logits.tensor, model.nodes)
    smooth = _fed(model, starts, logits.tensor, [node for node in model.nodes if is_differentiable(node, model.opset)])
    found: dict[str, Further] = {}
    unknown = []
    for output in others:
        if output in ignored or output not in fed:
            continue
        tensors = [name for name in _smooth_parts(model, output, fed, smooth) if _batch_axis(shapes, name) is not None]
        for name in tensors:
            found.setdefault(name, Further(output, name, int(_batch_axis(shapes, name) or 0)))
        if not tensors:
            unknown.append(output)
    return FurtherOutputs(tuple(found.values()), tuple(unknown), tuple(ignored))


def is_differentiable(node: NodeProto, opset: int) -> bool:
    """Whether gradients flow back through a node, as far as its operator tells."""
    if node.domain not in STANDARD or node.op_type in NO_GRADIENT:
        return False
    if node.op_type == "Cast":
        return attributes(node)["to"] in _REAL
    return node.op_type in RULES or is_function(node.op_type, opset)


def _fed(model: Model, starts: Iterable[str], cut: str, nodes: Sequence[NodeProto]) -> set[str]:
    """Every tensor that depends on the starts by these nodes, and not only through the tensor `cut`."""
    found = set(starts)
    for node in nodes:
        if any(name in found for name in node.input):
            found.update(name for name in node.output if name != cut)
    return found


def _smooth_parts(model: Model, output: str, fed: set[str], smooth: set[str]) -> list[str]:
    """The output, or the last tensors in front of it that depend on layers smoothly."""
    waiting, seen, parts = [output], {output}, []
    while waiting:
        name = waiting.pop()
        if name in smooth:
            parts.append(name)
            continue
        node = model.producers.get(name)
        for source in node.input if node is not None else ():
            if source in fed and source not in seen:
                seen.add(source)
                waiting.append(str(source))
    return parts


def _batch_axis(shapes: Shapes, name: str) -> int | None:
    return shapes.batch_axis[name] if name in shapes else None
