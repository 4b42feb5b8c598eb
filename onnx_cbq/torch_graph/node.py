"""What the function of an operator sees when it is compiled, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from onnx import NodeProto
from torch import Tensor

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.model import Array, Model, attributes

# Takes the node's inputs in order, None for one that is omitted or was resolved; gives its outputs.
Run = Callable[..., "Tensor | tuple[Tensor, ...]"]
Integers = Callable[["Tensor | None"], list[int]]


class OnnxNode:
    """One node, to be compiled.

    `read` holds the tensors that other nodes read or that the graph gives. Constant inputs that are resolved here, by
    `constant`, `number` or `integers`, are noted in `resolved`: they are settings, such as the shape of a Reshape or
    the bounds of a Clip, and are not handed to the node when it runs.
    """

    def __init__(self, node: NodeProto, model: Model, read: Collection[str]) -> None:
        self.operator: str = node.op_type
        self.inputs: tuple[str, ...] = tuple(node.input)
        self.outputs: tuple[str, ...] = tuple(node.output)
        self.opset = model.opset
        self.resolved: set[int] = set()
        self._proto = node
        self._model = model
        self._read = read

    @cached_property
    def attrs(self) -> Mapping[str, Any]:
        """The node's attributes."""
        return attributes(self._proto)

    def has_input(self, index: int) -> bool:
        """Whether the optional input `index` is given."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> Array | None:
        """The value of input `index`, if it is given and constant: a setting of the node from here on."""
        value = self._model.constant(self.inputs[index]) if self.has_input(index) else None
        if value is not None:
            self.resolved.add(index)
        return value

    def number(self, index: int, default: float) -> float | None:
        """A constant input of one element, `default` if it is not given, None if it is computed or has more."""
        if not self.has_input(index):
            return default
        value = self._model.constant(self.inputs[index])
        if value is None or value.size != 1:
            return None
        self.resolved.add(index)
        return float(value.item())

    def integers(self, index: int, default: Sequence[int] = ()) -> Integers:
        """Reads a list such as a shape: from the input's tensor at every run only if it is not constant."""
        if not self.has_input(index):
            return lambda _: list(default)
        value = self.constant(index)
        if value is not None:
            known = [int(number) for number in value.reshape(-1)]
            return lambda _: list(known)
        return _read_integers

    def only_first_output(self) -> None:
        """Make no output behind the first, and make sure that nothing reads one.

        Raises:
            UnsupportedOperatorError: something does.
        """
        for index, name in enumerate(self.outputs[1:], start=2):
            if name in self._read:
                raise self.unsupported(f"its output number {index} ({name!r})")
        self.outputs = self.outputs[:1]

    def inference_only(self) -> None:
        """Make sure that the node does not ask to train, by attribute (BatchNormalization) or by input (Dropout).

        Raises:
            UnsupportedOperatorError: it does.
        """
        mode = self.constant(2) if self.operator == "Dropout" else None
        computed = self.operator == "Dropout" and self.has_input(2) and mode is None
        if computed or self.attrs.get("training_mode", 0) or (mode is not None and mode.any()):
            raise self.unsupported("training_mode; export the model for inference")

    def unsupported(self, what: str) -> UnsupportedOperatorError:
        """The error that torch_graph does not know `what` of this node."""
        return UnsupportedOperatorError(
            f"node {title(self._proto)!r} ({self.operator}) cannot be trained with {what}; quantize without training"
        )


Compile = Callable[[OnnxNode], Run]


def plain(function: Run) -> Compile:
    """An operator that has no attributes: `function` of its inputs."""
    return lambda _: function


def title(node: NodeProto) -> str:
    """The node's name, or its first output if it has none."""
    return node.name or node.output[0]


def _read_integers(tensor: Tensor | None) -> list[int]:
    assert tensor is not None
    return [int(number) for number in tensor.reshape(-1).tolist()]
