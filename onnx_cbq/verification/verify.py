"""Hold a finished file against what it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_cbq.errors import ModelError, VerificationError
from onnx_cbq.graph.load import LAYER_OPERATORS, load
from onnx_cbq.graph.shapes import outputs_of_varying_size
from onnx_cbq.model import Array, Model, attributes
from onnx_cbq.records import UNIFORM, Layers, LayerWeights, WeightGrid
from onnx_cbq.runtime import Feeds, Session

_FINITE_ADVICE = "expected finite numbers; check that the samples are prepared as the model was trained"


def check_file(path: Path, model: Model, layers: Layers, weights: Mapping[str, LayerWeights], feeds: Feeds) -> None:
    """Hold the file that was written against the model and the weights that it was made from.

    Raises:
        VerificationError: its codes are not the planned ones, or `check_outputs` finds something.
    """
    check_outputs(path, model, feeds)
    for layer in layers:
        found = weights[layer.name]
        check_codes(layer.name, layer.rows(found.codes), found.bits, found.grid)


def check_sizes(path: Path, model: Model, feeds: Feeds | None) -> None:
    """Run the file and the float model on samples of another size than those that were seen.

    Raises:
        VerificationError: the file gives outputs of other shapes.
    """
    if feeds is None:
        return
    reference, session = Session(model).run(feeds), Session(path)
    size = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
    try:
        found = session.run(session.fitting(feeds))
    except ModelError as error:
        raise VerificationError(f"the quantized model does not run at another size ({size}): {error}") from error
    varying = outputs_of_varying_size(model)
    for name, value in reference.items():
        if not _alike(found[name], value, varies=name in varying):
            raise VerificationError(
                f"output {name!r} of the quantized model has the shape {list(np.shape(found[name]))} for samples of "
                f"another size ({size}), expected {list(np.shape(value))} as in the float model; report this as a bug"
            )


def check_outputs(path: Path, model: Model, feeds: Feeds) -> None:
    """Run the file that was written beside the float model.

    Raises:
        VerificationError: it is not valid ONNX, its outputs are not those of the float model in name and shape, or not
            finite where the float model's are.
    """
    try:
        # Exporters declare shapes that their own graph does not have; what was wrong before may stay.
        onnx.checker.check_model(str(path), full_check=_declares_its_shapes(model))
        session = Session(path)
        feeds = session.fitting(feeds)
        fused = session.run(feeds)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError) as error:
        raise VerificationError(f"the quantized model is not valid: {str(error).splitlines()[0]}") from error
    reference = Session(model).run(feeds)
    varying = outputs_of_varying_size(model)
    for name, value in reference.items():
        if name not in fused or not _alike(fused[name], value, varies=name in varying):
            raise VerificationError(f"output {name!r} of the quantized model has another shape than in the float model")
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            continue
        new = _new_infinities(value, fused[name])
        if new:
            raise VerificationError(
                f"output {name!r} of the quantized model holds {new}, which the float model does not; {_FINITE_ADVICE}"
            )


def _alike(found: Array, expected: Array, *, varies: bool) -> bool:
    """Whether an output has the right shape; one whose size the values decide, as many axes."""
    one, other = np.shape(found), np.shape(expected)
    return len(one) == len(other) if varies else one == other


def _declares_its_shapes(model: Model) -> bool:
    """Whether the shapes that a model declares are those that its nodes make."""
    try:
        onnx.shape_inference.infer_shapes(model.plain_skeleton(), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _new_infinities(reference: Array, found: Array) -> str:
    """What of NaN, inf and -inf an output holds though the float model's holds none of it."""
    kinds: dict[str, Callable[[Array], Array]] = {"NaN": np.isnan, "inf": np.isposinf, "-inf": np.isneginf}
    return " and ".join(name for name, test in kinds.items() if test(found).any() and not test(reference).any())


def check_equal(path: Path, model: Model, feeds: Feeds) -> None:
    """Hold a file against a model that has the same weights, stored in another way: to the last bit.

    Where the kernels are the same so are the outputs; weights beside float activations may be multiplied by others.

    Raises:
        VerificationError: something differs.
    """
    session = Session(path)
    feeds = session.fitting(feeds)
    stored = load(path)
    found, expected = _weights(stored, feeds), _weights(model, feeds)
    for (_, value), (_, other) in zip(found, expected, strict=True):
        if not np.array_equal(value, other):
            raise VerificationError("a weight differs once it is packed; report this as a bug")
    dequantized = all(
        stored.producers[name].op_type == "DequantizeLinear" for name, _ in found if name in stored.producers
    )
    for name, value in Session(model).run(feeds).items() if dequantized else ():
        if not np.array_equal(np.asarray(value), np.asarray(session.run(feeds)[name])):
            raise VerificationError(f"output {name!r} differs once the weights are packed; report this as a bug")


def _weights(model: Model, feeds: Feeds) -> list[tuple[str, Array]]:
    """What the layers of a model multiply with, in order: names, and values in float, a matrix with channels last."""
    varying = {spec.name for spec in model.inputs}
    found: list[tuple[str, bool]] = []
    for node in model.nodes:
        if varying.intersection(node.input):
            varying.update(node.output)
            if node.op_type in LAYER_OPERATORS:
                turned = node.op_type == "Gemm" and bool(attributes(node).get("transB", 0))
                found += [(name, turned) for name in node.input[:2] if name not in varying]
    values = Session(model.with_graph(outputs=dict.fromkeys(name for name, _ in found)), "off").run(feeds)
    return [(name, values[name].T if turned else values[name]) for name, turned in found]


def check_codes(name: str, rows: Array, bits: Array, grid: WeightGrid = UNIFORM) -> None:
    """Check that the codes of every channel [channels, n] are on its grid, and fit its bits.

    Raises:
        VerificationError: a channel's do not.
    """
    if not grid.holds(rows):
        raise VerificationError(f"layer {name!r}: there is a code that its table of values does not have")
    for channel, (codes, width) in enumerate(zip(rows, bits, strict=True)):
        if not grid.fits(codes, int(width)):
            raise VerificationError(f"layer {name!r}: the codes of channel {channel} do not fit {width} bits")
