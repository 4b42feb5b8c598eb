"""Whether a model gives the same answer twice: one that does not can neither be measured nor held against anything."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.normalise import TOLERANCE, relative_error
from onnx_cbq.graph.shapes import Example
from onnx_cbq.graph.tensors import every_node
from onnx_cbq.model import STANDARD, Model
from onnx_cbq.runtime import Session

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def check_repeatable(model: Model, example: Example) -> None:
    """Run the model twice on the same samples. Cost: two runs.

    Raises:
        ModelError: the outputs differ.
    """
    # onnxruntime's optimizations take a Dropout out even in training mode.
    session = Session(model, "off")
    first, second = (list(session.run(example.feeds).values()) for _ in range(2))
    error = relative_error(second, first)
    if error <= TOLERANCE:
        return
    suspect = next(random_nodes(model), "")
    raise ModelError(
        f"the model gives random answers: two runs on the same samples differ by {error:.1e} of the largest value"
        f"{suspect and f'; {suspect}'}; export it for inference (in PyTorch: model.eval() first)"
    )


def random_nodes(model: Model) -> Iterator[str]:
    """The nodes that draw random numbers, as messages call them."""
    functions = (node for function in model.skeleton.functions for node in function.node)
    for node in every_node([*model.plain_skeleton().graph.node, *functions]):
        title = node.name or next(iter(node.output), "")
        if node.op_type in _RANDOM and node.domain in STANDARD:
            yield f"node {title!r} ({node.op_type}) draws random numbers"
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            training = model.constant(str(node.input[2]))
            if training is None or bool(training.any()):
                yield f"node {title!r} (Dropout) is in training mode"
