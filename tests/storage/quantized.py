"""Small models as `quantize` leaves them: int8 weights, and a plan with any widths that a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_cbq.model import Array


@dataclass(frozen=True)
class Weight:
    """Codes and the bits of each channel."""

    codes: Array
    bits: tuple[int, ...]
    operator: str = "Conv"


def model_of(weights: Mapping[str, Weight], constants: Mapping[str, Array] | None = None) -> ModelProto:
    """A model that holds these weights; what its nodes compute does not matter to an archive."""
    initializers = [numpy_helper.from_array(weight.codes, f"{name}_q") for name, weight in weights.items()]
    initializers.extend(numpy_helper.from_array(value, name) for name, value in (constants or {}).items())
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:], initializers)
    model = helper.make_model(graph, producer_name="onnx-cbq", opset_imports=[helper.make_opsetid("", 17)])
    layers = {n: [w.operator, list(w.codes.shape), "".join(map(str, w.bits))] for n, w in weights.items()}
    plan = {"version": "0.1.0", "method": "uniform", "average_bits": 3.0, "layers": layers}
    model.metadata_props.append(onnx.StringStringEntryProto(key="onnx_cbq", value=json.dumps(plan)))
    return model


def codes_on_grid(
    generator: np.random.Generator, shape: tuple[int, ...], axis: int, bits: tuple[int, ...], *, rise: bool
) -> Array:
    """Random codes, most of them small, each channel on a grid of its width."""
    moved = [size for i, size in enumerate(shape) if i != axis]
    rows = []
    for width in bits:
        spread = generator.standard_normal(moved) / 2
        if width == 0:
            rows.append(np.zeros(moved))
        elif (rise or width == 1) and width < 8:
            top = (1 << width) - 1
            rows.append(np.clip(2 * np.floor(spread * top / 2) + 1, -top, top))
        else:
            top = (1 << (width - 1)) - 1
            rows.append(np.clip(np.rint(spread * top), -top, top))
    return np.ascontiguousarray(np.moveaxis(np.array(rows).astype(np.int8), 0, axis))
