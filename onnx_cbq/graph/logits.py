"""Which output holds the class scores, and the tensor that the class criterion Phi is taken from."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.shapes import Shapes
from onnx_cbq.model import Model, attributes

_STEPPED_OVER = ("Softmax", "LogSoftmax")


@dataclass(frozen=True)
class Logits:
    """`output` is what predictions are read from; `tensor` is the same, or what a final softmax is applied to."""

    output: str
    tensor: str
    classes: int


def find_logits(model: Model, shapes: Shapes, name: str | None = None) -> Logits:
    """The class scores: the tensor `name`, or the only graph output of shape (samples, classes).

    Raises:
        ModelError: there is no such output, or there are several.
    """
    if name is not None and name not in shapes:
        raise ModelError(f"--logits {name!r}: the model has no such tensor; its outputs: {', '.join(model.outputs)}")
    candidates = [name] if name is not None else [n for n in model.outputs if _classes(shapes, n)]
    if len(candidates) != 1:
        listing = ", ".join(f"{n} {shapes[n]}" if n in shapes else n for n in model.outputs)
        found = "several outputs" if candidates else "no output"
        raise ModelError(f"{found} of shape (samples, classes) among: {listing}; {_advice(model)}")
    output = candidates[0]
    classes = _classes(shapes, output)
    if not classes:
        raise ModelError(f"--logits {output!r}: expected shape (samples, classes), got {shapes[output]}")
    return Logits(output, _before_softmax(model, shapes, output), classes)


def _advice(model: Model) -> str:
    producers = (model.producers.get(name) for name in model.outputs)
    if any(producer is not None and producer.op_type == "ZipMap" for producer in producers):
        return "convert the model with skl2onnx's options={'zipmap': False}, so that the scores are a tensor"
    return "name the class scores with --logits"


def _classes(shapes: Shapes, name: str) -> int:
    """Number of classes if `name` has shape (samples, classes), also with further axes of size 1; else 0."""
    if name not in shapes or shapes.batch_axis[name] != 0:
        return 0
    shape = shapes[name]
    is_flat = len(shape) >= 2 and shape[0] == shapes.batch and all(size == 1 for size in shape[2:])
    return shape[1] if is_flat and shape[1] > 1 else 0


def _before_softmax(model: Model, shapes: Shapes, output: str) -> str:
    producer = model.producers.get(output)
    if producer is None or producer.op_type not in _STEPPED_OVER:
        return output
    axis = attributes(producer).get("axis", -1) % len(shapes[output])
    return str(producer.input[0]) if axis == 1 else output
