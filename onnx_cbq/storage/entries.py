"""Entries of a table whose codes are looked up as they are stored: only what is looked up becomes float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto

from onnx_cbq.model import Array
from onnx_cbq.records import LayerWeights, Use


def float_entries(
    node: NodeProto,
    use: Use,
    weights: LayerWeights,
    add: Callable[..., str],
    constant: Callable[[Array, str], str],
) -> list[str]:
    """Two tensors that, multiplied, are the entries whose codes `node` looks up: less their zero points, and scales.

    Args:
        node: a Gather of codes.
        use: how the table is used.
        weights: the table.
        add: makes a node: operator, inputs, name of the output, attributes.
        constant: makes a constant: value, name.
    """
    lookup, codes, rows = use.lookup, node.output[0], node.input[1]
    assert lookup is not None
    if lookup.together > 1:
        # The remainder has the sign of the divisor, so that indices from the end count from there.
        rows = add("Cast", [rows], f"{codes}_at", to=TensorProto.INT64)
        rows = add("Mod", [rows, constant(np.array(lookup.entries), "entries")], f"{codes}_entry")
        rows = add("Div", [rows, constant(np.array(lookup.together), "together")], f"{codes}_row")
    shape = [-1, *(1 for _ in use.output_shape[use.channel_axis :])]

    def of_rows(values: Array, name: str) -> str:
        return add("Gather", [constant(values.reshape(shape), name), rows], f"{codes}_{name}", axis=0)

    plain = add("Cast", [codes], f"{codes}_float", to=TensorProto.FLOAT)
    if weights.grid.zero_point is not None:
        plain = add("Sub", [plain, of_rows(weights.grid.zero_point.astype(np.float32), "zero")], f"{codes}_centred")
    return [plain, of_rows(weights.scale, "scale")]
