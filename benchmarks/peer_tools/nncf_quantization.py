"""NNCF: `quantize` (8 bits with fast bias correction), and `compress_weights` to 4 bits.

What `compress_weights` writes for Conv is no valid file for onnxruntime: scales of a channel with an axis for each of
the weights' own. So Conv is left out and stays float.
"""

from __future__ import annotations

import nncf
import onnx
from peer_task import Task, load_for_int4, run


def quantize(task: Task) -> None:
    """Weights and activations of 8 bits."""
    data = nncf.Dataset(task.batches(1))
    onnx.save(nncf.quantize(onnx.load(task.model), data, subset_size=task.samples), task.output)


def compress(task: Task) -> None:
    """Weights of MatMul and Gemm, scales chosen by the error of the layer."""
    compressed = nncf.compress_weights(
        load_for_int4(task.model),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=-1,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Conv"], validate=False),
        dataset=nncf.Dataset(task.batches(1)),
        subset_size=task.samples,
        scale_estimation=True,
    )
    onnx.save(compressed, task.output)


if __name__ == "__main__":
    run({"quantize": quantize, "compress": compress})
