"""onnxsim: 4-bit weights in blocks of 32, and its AdaRound and BRECQ, which need no torch.

Layers whose sums have no multiple of 32 terms stay float. AdaRound and BRECQ take MatMul and Gemm only; a block of
BRECQ is a chain of them with nothing in between, so here it is a layer each.
"""

from __future__ import annotations

import onnx
import onnxsim
from peer_task import Task, load_for_int4, run

BATCH = 32


def models(task: Task) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float model, simplified, and the same with weights of 4 bits."""
    simple, _ = onnxsim.simplify(load_for_int4(task.model))
    return simple, onnxsim.quantize_weight_only_int4(simple)


def adaround(task: Task) -> None:
    """Rounded layer by layer."""
    onnx.save(onnxsim.apply_adaround(*models(task), task.batches(BATCH)), task.output)


def brecq(task: Task) -> None:
    """Rounded block by block."""
    simple, quantized = models(task)
    layers = [node for node in simple.graph.node if node.op_type in ("MatMul", "Gemm")]
    blocks = [(node.input[0], node.output[0]) for node in layers]
    onnx.save(onnxsim.apply_brecq(simple, quantized, blocks, task.batches(BATCH)), task.output)


if __name__ == "__main__":
    run({"adaround": adaround, "brecq": brecq})
