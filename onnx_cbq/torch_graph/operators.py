"""Every operator that runs in torch, by name."""

from __future__ import annotations

from onnx_cbq.torch_graph import (
    arithmetic,
    convolution,
    elementwise,
    logic,
    matrices,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    shaping,
)
from onnx_cbq.torch_graph.node import Compile

OPERATORS: dict[str, Compile] = {
    **arithmetic.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **logic.OPERATORS,
    **matrices.OPERATORS,
    **movement.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **recurrent.OPERATORS,
    **reduction.OPERATORS,
    **resize.OPERATORS,
    **shaping.OPERATORS,
}
