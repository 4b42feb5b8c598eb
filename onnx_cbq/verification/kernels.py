"""What onnxruntime's kernels make of a file, held against what the file says.

The fused graph runs once and gives the codes of every QuantizeLinear. Then the plain graph computes each of them again
from the fused graph's own codes in front of it, so that nothing adds up from layer to layer. What may differ is the
rounding of float32 numbers near the middle of two codes: one code. A kernel that saturates, or drops a scale, is off by
more, and the first that is has a name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.integer_rules import MOVEMENT
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import relative_error
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Feeds, Session
from onnx_cbq.storage.files import write_model
from onnx_cbq.system.processor import architecture
from onnx_cbq.system.temporary import temporary_folder

# How far a code may be off, since both ways of computing it round.
MOST_CODES = 1
# Share of codes that rounding moves by one at most: fewer numbers lie near enough to the middle of two.
MOVED = 1e-3
# Outputs in float that are computed from the same codes, relative to the largest.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Deviation:
    """A tensor of codes that the kernels make something else of.

    Attributes:
        node: what computes it.
        tensor: the codes.
        distance: by how many codes the farthest is off.
        off: how many of all its `numbers` are off by more than what was allowed.
    """

    node: str
    tensor: str
    distance: int
    off: int
    numbers: int

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it: by one code, and so many numbers as may well lie next to the middle of two.

        With the mean m of how many are moved by chance, m + 5 sqrt(m) + 5 are hardly ever passed, however few numbers
        there are.
        """
        mean = MOVED * self.numbers
        return self.distance <= MOST_CODES and self.off <= mean + 5 * math.sqrt(mean) + 5

    def __str__(self) -> str:
        share = f"{self.off:,} of its {self.numbers:,} numbers"
        return f"{self.node} is off by up to {self.distance} codes in {share}"


def check_kernels(path: Path, feeds: Feeds) -> None:
    """Run the file fused and plain, code by code.

    Cost: a run of each, and the codes of all activations in memory.

    Raises:
        VerificationError: a kernel gives something else than the file says; the first is named.
        ModelError: the file cannot be run.
    """
    model = load(path)
    found = deviations(model, feeds)
    if found:
        more = f", and {len(found) - 1} tensors behind it" if len(found) > 1 else ""
        raise VerificationError(
            f"onnxruntime's kernels compute something else than the file says: {found[0]}{more}; expected at most "
            f"{MOST_CODES}; this is no fault of the model: give another --target, or report it as a bug"
        )


def deviations(model: Model, feeds: Feeds, most: int = MOST_CODES) -> list[Deviation]:
    """The tensors of codes that are off by more than `most` codes, in the order of the graph.

    Raises:
        VerificationError: no codes differ, but an output does.
        ModelError: the model cannot be run.
    """
    model = as_unsigned(model) if architecture() == "x86_64" else model
    makers = {node.output[0]: node.input[0] for node in model.nodes if node.op_type == "QuantizeLinear"}
    with temporary_folder() as folder:
        # A file, so that no optimization is left out.
        path = folder / "codes.onnx"
        write_model(model.with_graph(outputs=[*model.outputs, *makers]), path)
        fused = Session(path).run(feeds)
    plain = Session(_cut(model, makers, fused), "off").run({**feeds, **{name: fused[name] for name in makers}})
    found = []
    for name, source in makers.items():
        off = np.abs(plain[_again(name)].astype(np.int32) - fused[name].astype(np.int32))
        if off.max(initial=0) > most:
            number = int(np.count_nonzero(off > most))
            found.append(Deviation(_maker(model, source), name, int(off.max()), number, off.size))
    if not found:
        _check_outputs(model, fused, plain)
    return found


def as_unsigned(model: Model) -> Model:
    """The same numbers with uint8 codes where activations have int8 ones, as onnxruntime makes them on x86.

    It does not where codes are outputs, as they are here (`qdq_s8_to_u8.cc`), and its int8 kernels are others.
    """
    moved: dict[str, Array] = {}
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        # The third input of a Pad is the code that it fills with.
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Pad") or len(node.input) < 3:
            continue
        zero = model.constant(node.input[2])
        activation = node.op_type == "QuantizeLinear" or _is_quantized(model, node.input[0])
        if zero is not None and zero.dtype == np.int8 and activation:
            name = f"{node.input[2]} as uint8"
            moved[name] = (zero.astype(np.int16) + 128).astype(np.uint8)
            node.input[2] = name
    return Model(skeleton, model.weights).with_graph(constants=moved)


def _is_quantized(model: Model, tensor: str) -> bool:
    """Whether codes come from a QuantizeLinear; those of weights are stored, or unpacked in the graph."""
    producer = model.producers.get(tensor)
    while producer is not None and producer.op_type in MOVEMENT:
        producer = model.producers.get(producer.input[0])
    return producer is not None and producer.op_type == "QuantizeLinear"


def _check_outputs(model: Model, fused: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
    for name in model.outputs:
        error = relative_error([fused[name]], [plain[name]])
        if not error <= TOLERANCE:
            raise VerificationError(
                f"output {name!r}: onnxruntime's optimized graph differs from the plain one by {error:.1e} of the "
                f"largest value, expected at most {TOLERANCE:.0e}; report this as a bug"
            )


def _cut(model: Model, makers: Mapping[str, str], codes: Mapping[str, Array]) -> Model:
    """The model whose nodes read the codes as inputs, and whose QuantizeLinear nodes give them as outputs once more."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    for node in skeleton.graph.node:
        if node.output and node.output[0] in makers:
            node.output[0] = _again(node.output[0])
    for name in makers:
        kind = helper.np_dtype_to_tensor_dtype(codes[name].dtype)
        skeleton.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    given = Model(skeleton, model.weights)
    return given.with_graph(outputs=[*model.outputs, *map(_again, makers)])


def _again(name: str) -> str:
    return f"{name} computed again"


def _maker(model: Model, tensor: str) -> str:
    """How a message speaks of the node behind a QuantizeLinear; a Relu belongs to what it follows."""
    node = model.producers.get(tensor)
    while node is not None and node.op_type in ("Relu", "Clip") and node.input[0] in model.producers:
        node = model.producers[node.input[0]]
    return f"input {tensor}" if node is None else f"{node.op_type} {node.name or node.output[0]}"
