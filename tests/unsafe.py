"""A file whose pairs of weights overflow in 16 bits, and what kernels make of it with and without saturation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnx_cbq.model import Array
from tests.graphs import make_model, node
from tests.saturation import exact_product, saturating_product

# Of the output's grid, from 0.
STEP = 600


def unsafe_file(tmp_path: Path) -> tuple[Path, Array, Array]:
    """A Conv of pairs that are too large, with the activations that show it, beside a Conv of pairs that fit.

    Returns the path, the input, and what the large one's sums are: [saturating and exact, positions, channels].
    """
    random = np.random.default_rng(0)
    weights = random.integers(90, 128, (8, 4, 1, 1)).astype(np.int8)
    x = random.integers(200, 256, (1, 4, 3, 3)).astype(np.float32)
    nodes = [
        node("QuantizeLinear", "x one zero", "q"),
        node("DequantizeLinear", "q one zero", "d"),
        node("DequantizeLinear", "v ones4 zeros4", "vd", axis=0),
        node("Conv", "d vd", "a"),
        node("QuantizeLinear", "a one zero", "aq"),
        node("DequantizeLinear", "aq one zero", "ad"),
        node("DequantizeLinear", "w ones zeros", "wd", axis=0),
        node("Conv", "ad wd", "p"),
        node("QuantizeLinear", "p step zero", "r"),
        node("DequantizeLinear", "r step zero"),
    ]
    identity = np.eye(4, dtype=np.int8).reshape(4, 4, 1, 1)
    constants: dict[str, Array] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "v": identity,
        "w": weights,
        "ones": np.ones(8, np.float32),
        "zeros": np.zeros(8, np.int8),
        "ones4": np.ones(4, np.float32),
        "zeros4": np.zeros(4, np.int8),
        "step": np.array(STEP, np.float32),
    }
    path = tmp_path / "unsafe.onnx"
    onnx.save(make_model(nodes, {"x": [1, 4, 3, 3]}, ["y"], constants, opset=17), path)
    rows = x[0].reshape(4, -1).T.astype(np.uint8)
    return path, x, np.stack([f(rows, weights.reshape(8, 4).T) for f in (saturating_product, exact_product)])
