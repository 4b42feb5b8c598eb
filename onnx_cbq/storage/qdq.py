"""Write integer weights and activation grids into the model as standard QuantizeLinear / DequantizeLinear pairs.

    weight   int8 codes -> DequantizeLinear (scale per channel, zero point 0) -> Conv
    bias     int32      -> DequantizeLinear (scale = activation scale x weight scale, per channel) -> Conv
    x        QuantizeLinear -> DequantizeLinear (uint8, one scale and zero point)

onnxruntime fuses DequantizeLinear -> Conv -> QuantizeLinear into QLinearConv, and so on for the other operators with
integer kernels. Operators that only move numbers are put between the two, on the integers, unless every operator has to
be a unit of its own: DequantizeLinear -> operator -> QuantizeLinear. A Relu in front of a grid that begins at 0 is left
out: the grid saturates there.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_cbq.graph.placement import Placement
from onnx_cbq.model import Model
from onnx_cbq.records import KERNELS, ActivationGrid, FileRules, Layers, LayerWeights, Seen, Written
from onnx_cbq.storage.codes import CodeWriter, PlainCodes
from onnx_cbq.storage.writer import Writer


def emit_qdq(
    model: Model,
    layers: Layers,
    weights: Mapping[str, LayerWeights],
    placement: Placement,
    grids: Mapping[str, ActivationGrid],
    codes: CodeWriter | None = None,
    rules: FileRules = KERNELS,
) -> Model:
    """`model` with the layers' weights as integers, and the tensors of `placement` on their grids.

    `grids` holds one for every tensor in `placement.measured`. `codes` decides what stands for the weights' codes, a
    byte for each if it is left out; where it looks up, weights that share values are stored as ranks
    (`quantize.codebook`) beside an int8 table. `rules` are those of the target.
    """
    writer = Writer(model, placement, grids, codes or PlainCodes(), rules)
    for layer in layers:
        writer.add_weight(layer, weights[layer.name])
    return writer.write()


def emit_seen(
    written: Written, placement: Placement, grids: Mapping[str, ActivationGrid], rules: FileRules = KERNELS
) -> Seen:
    """What `emit_qdq` gives, with the names of what layers read there."""
    writer = Writer(written.model, placement, grids, PlainCodes(), rules)
    for layer in written.layers:
        writer.add_weight(layer, written.weights[layer.name])
    output = writer.write()
    return Seen(output, writer.names())


def simulate_activations(model: Model, placement: Placement, grids: Mapping[str, ActivationGrid]) -> Seen:
    """`model` with the tensors of `placement` on their grids and the weights in float."""
    writer = Writer(model, placement, grids, PlainCodes())
    simulated = writer.write()
    return Seen(simulated, writer.names())
