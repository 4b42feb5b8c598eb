"""Which output holds the class scores, how they are read, and the tensor that the class criterion Phi is taken from.

Behind the logits a model may squash them (Softmax, LogSoftmax, Sigmoid), and move or rename them (Reshape, Flatten,
Identity, Cast and so on). All of that is stepped over: Phi is the logit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.shapes import Shape, Shapes
from onnx_cbq.model import Model, attributes
from onnx_cbq.records.answers import PLAIN, Kind, Reading

_SOFTMAX = ("Softmax", "LogSoftmax")
_IDLE = ("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear")
_MOVING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# Their outputs are whole numbers: a Cast behind them makes no scores.
_WHOLE = ("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "OneHot", "Shape")
_REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.UNDEFINED)
# Softmax has one axis from this operator set on; before, everything from its axis on is one.
_ONE_AXIS_OPSET = 13


@dataclass(frozen=True)
class Logits:
    """The class scores of a model.

    Attributes:
        output: the graph output that predictions are read from, as `reading` says.
        tensor: the logits, which `phi` reads: what Phi is taken from.
        kind: what labels and probabilities go with them.
        scores: a tensor of the same numbers as `output`, which may be no tensor itself (ZipMap).
        names: of the classes, where the model has them.
        squashed: what stands between the logits and the scores: Softmax, LogSoftmax, Sigmoid or nothing.
    """

    output: str
    tensor: str
    kind: Kind
    reading: Reading = PLAIN
    phi: Reading = PLAIN
    scores: str = ""
    names: tuple[str | int, ...] = ()
    squashed: str = ""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.kind.classes

    @property
    def tensors(self) -> tuple[str, str]:
        """The logits, and the tensor that predictions are read from."""
        return self.tensor, self.scores or self.output

    def axis(self, output: str) -> int:
        """The axis of the samples in an output; other outputs are taken to have them first."""
        return self.reading.batch if output == self.output else 0


def find_logits(model: Model, shapes: Shapes, name: str | None = None, labels: Shape = ()) -> Logits:
    """The class scores: the output `name`, or the only one that fits.

    Without `labels`, which is the shape of the labels of one sample, an output fits if it has one axis of classes
    beside that of the samples, or, if there is none, a single number for each sample, which tells two classes apart.
    With labels of several positions it has another axis for each of them; with labels that say 0 or 1 for each class
    it has their shape.

    Raises:
        ModelError: there is no such output, or there are several.
    """
    outputs = {info.name: info for info in model.skeleton.graph.output}
    if name is not None and name not in outputs:
        listing = f"expected one of its outputs: {', '.join(model.outputs)}"
        if name in shapes:
            raise ModelError(f"--logits {name!r}: a tensor inside the model and no output of it; {listing}")
        raise ModelError(f"--logits {name!r}: the model has no such output; {listing}")
    # An output that is an input too holds what the user gave.
    made = [n for n in outputs if n in model.producers]
    real = [n for n in made if outputs[n].type.tensor_type.elem_type in _REAL]
    found = {n: _read(model, shapes, n, labels) for n in ([name] if name is not None else real)}
    fitting = [logits for logits in found.values() if logits is not None]
    if name is None and any(logits.reading.classes is not None for logits in fitting):
        fitting = [logits for logits in fitting if logits.reading.classes is not None]
    # Logits and what a softmax makes of them are the same scores.
    alike = {logits.tensor for logits in fitting}
    if len(alike) == 1:
        return fitting[0]
    expected = _expected(labels)
    if name is not None:
        raise ModelError(f"--logits {name!r}: expected shape {expected}, got {_shape_text(shapes, name)}")
    listing = ", ".join(f"{n} {_shape_text(shapes, n)}" for n in model.outputs)
    several = "several outputs" if fitting else "no output"
    raise ModelError(f"{several} of shape {expected} among: {listing}; name the class scores with --logits")


def _read(model: Model, shapes: Shapes, output: str, labels: Shape) -> Logits | None:
    """The class scores that `output` holds, None if it does not have the right shape."""
    producer = model.producers.get(output)
    keys: tuple[str | int, ...] = ()
    scores = output
    if producer is not None and producer.op_type == "ZipMap":
        scores, keys = str(producer.input[0]), _zip_keys(producer)
    if scores not in shapes or shapes.batch_axis[scores] is None:
        return None
    found = _axes(shapes[scores], int(shapes.batch_axis[scores] or 0), labels)
    if found is None:
        return None
    reading, several = found
    tensor, phi, squashed = _step_back(model, shapes, scores, reading)
    classes = 2 if reading.classes is None else shapes[scores][reading.classes]
    # Yes or no for each class asks whether a probability is above a half.
    if squashed == "Sigmoid" or (several and squashed == "Softmax"):
        reading = replace(reading, threshold=0.5)
    independent = several or (phi.classes is not None and squashed == "Sigmoid")
    kind = Kind(classes, independent, several)
    names = keys or _label_names(model, classes)
    return Logits(output, tensor, kind, replace(reading, keys=keys), phi, scores if keys else "", names, squashed)


def _axes(shape: Shape, batch: int, labels: Shape) -> tuple[Reading, bool] | None:
    """How scores of this shape are read for such labels, and whether those say yes or no for each class."""
    others = [axis for axis in range(len(shape)) if axis != batch]
    wide = [axis for axis in others if shape[axis] > 1]
    wanted = [size for size in labels if size > 1]
    if not wanted:
        # A label for each sample, or for its single position.
        if len(wide) > 1:
            return None
        return Reading(batch, wide[0] if wide else None), False
    if [shape[axis] for axis in wide] == wanted:
        single = len(wanted) == 1
        return Reading(batch, wide[0] if single else None), single
    for axis in wide:
        if [shape[other] for other in wide if other != axis] == wanted:
            return Reading(batch, axis), False
    return None


def _step_back(model: Model, shapes: Shapes, name: str, reading: Reading) -> tuple[str, Reading, str]:
    """The logits behind the scores `name`, how they are read, and what squashed them."""
    squashed = ""
    while (node := model.producers.get(name)) is not None and node.input:
        source, operator = str(node.input[0]), node.op_type
        if source not in shapes or model.is_constant(source):
            break
        if operator in _IDLE and not _is_whole(model, source):
            moved: Reading | None = reading
        elif operator in _MOVING:
            moved = _unmoved(shapes[source], shapes[name], reading)
        elif operator == "Transpose":
            moved = _untransposed(node, len(shapes[name]), reading)
        elif not squashed and _squashes(node, model.opset, shapes[name], reading.classes):
            moved, squashed = reading, operator
        elif not squashed and (exponent := _written_out_softmax(model, shapes, node, reading.classes)):
            source, moved, squashed = exponent, reading, "Softmax"
        elif not squashed and (share := _both_shares(model, shapes, node, reading.classes)):
            source, moved = share, replace(reading, classes=None)
        else:
            break
        if moved is None:
            break
        name, reading = source, moved
    return name, reading, squashed


def _unmoved(before: Shape, after: Shape, reading: Reading) -> Reading | None:
    """How scores are read in front of a node that keeps the order of the numbers; None if no axis stands for one."""

    def place(axis: int) -> int | None:
        leading = int(np.prod(after[:axis]))
        fits = (i for i, size in enumerate(before) if size == after[axis] and int(np.prod(before[:i])) == leading)
        return next(fits, None)

    batch = place(reading.batch)
    classes = None if reading.classes is None else place(reading.classes)
    if batch is None or (reading.classes is not None and classes is None) or batch == classes:
        return None
    return replace(reading, batch=batch, classes=classes)


def _untransposed(node: NodeProto, rank: int, reading: Reading) -> Reading | None:
    """How scores are read in front of a Transpose; None where it changes the order of several positions."""
    order = [int(axis) for axis in attributes(node).get("perm", range(rank)[::-1])]
    others = [order[axis] for axis in range(rank) if axis not in (reading.batch, reading.classes)]
    if others != sorted(others):
        return None
    classes = None if reading.classes is None else order[reading.classes]
    return replace(reading, batch=order[reading.batch], classes=classes)


def _squashes(node: NodeProto, opset: int, shape: Shape, classes: int | None) -> bool:
    """Whether a node makes probabilities of logits: each of its own, or over the axis of the classes."""
    if node.op_type not in _SOFTMAX:
        return node.op_type == "Sigmoid"
    first = int(attributes(node).get("axis", -1 if opset >= _ONE_AXIS_OPSET else 1)) % len(shape)
    axes = [first] if opset >= _ONE_AXIS_OPSET else range(first, len(shape))
    return classes in axes and all(shape[axis] == 1 for axis in axes if axis != classes)


def _written_out_softmax(model: Model, shapes: Shapes, node: NodeProto, classes: int | None) -> str:
    """What exp(x) / sum(exp(x)) over the classes is the softmax of, as exporters write it; "" if it is not that."""
    if node.op_type != "Div" or classes is None:
        return ""
    exponential, total = (model.producers.get(str(name)) for name in node.input)
    if exponential is None or total is None or (exponential.op_type, total.op_type) != ("Exp", "ReduceSum"):
        return ""
    summed = tuple(1 if axis == classes else size for axis, size in enumerate(shapes[str(node.input[0])]))
    if total.input[0] != exponential.output[0] or shapes[str(node.input[1])] != summed:
        return ""
    source = str(exponential.input[0])
    shifted = model.producers.get(source)
    if shifted is not None and shifted.op_type == "Sub":
        largest = model.producers.get(str(shifted.input[1]))
        if largest is not None and largest.op_type == "ReduceMax" and largest.input[0] == shifted.input[0]:
            source = str(shifted.input[0])
    return source if source in shapes else ""


def _both_shares(model: Model, shapes: Shapes, node: NodeProto, classes: int | None) -> str:
    """The share p that 1 - p and p side by side are made of, as scikit-learn's two classes are; "" if they are not."""
    if node.op_type != "Concat" or len(node.input) != 2 or classes is None:
        return ""
    rest = model.producers.get(str(node.input[0]))
    share = str(node.input[1])
    if rest is None or rest.op_type != "Sub" or rest.input[1] != share or share not in shapes:
        return ""
    one = model.constant(str(rest.input[0]))
    sides = attributes(node)["axis"] % len(shapes[share]) == classes and shapes[share][classes] == 1
    return share if sides and one is not None and one.size == 1 and float(one.ravel()[0]) == 1 else ""


def _is_whole(model: Model, name: str) -> bool:
    producer = model.producers.get(name)
    return producer is not None and producer.op_type in _WHOLE


def _zip_keys(node: NodeProto) -> tuple[str | int, ...]:
    """The names of the classes in the order of the scores."""
    found = attributes(node)
    strings, whole = found.get("classlabels_strings", []), found.get("classlabels_int64s", [])
    return tuple(key.decode() if isinstance(key, bytes) else key for key in strings) or tuple(map(int, whole))


def _label_names(model: Model, classes: int) -> tuple[str | int, ...]:
    """The names that the model itself gives its classes, beside their scores."""
    for node in model.nodes:
        if node.op_type != "ArrayFeatureExtractor":
            continue
        values = model.constant(str(node.input[0]))
        if values is not None and values.size == classes and values.dtype.kind in "OSUiu":
            found = (value.decode() if isinstance(value, bytes) else value for value in values.ravel().tolist())
            return tuple(found)
    return ()


def _expected(labels: Shape) -> str:
    """The shape that goes with such labels, in words."""
    positions = ", ".join(str(size) for size in labels)
    if not labels:
        return "(samples, classes)"
    return f"(samples, classes, {positions}) or (samples, {positions}), as the labels of a sample are ({positions})"


def _shape_text(shapes: Shapes, name: str) -> str:
    return str(shapes[name]) if name in shapes else "(no tensor)"
