"""onnxruntime's own quantizers: `quantize_static` by three calibrations, and 4-bit weights of MatMul in blocks.

Types and `reduce_range` are what the documentation of `quantize_static` says for the processor: uint8 activations on
x86, and weights of 7 bits where VNNI is missing; int8 activations on ARM.
"""

from __future__ import annotations

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from peer_task import Reader, Task, run

METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
WITHOUT_VNNI = ("sse4_1", "avx", "avx2", "avx512")
# So many samples' activations are held at a time; the number of samples must be a multiple.
LARGEST_STRIDE = 50
BLOCK = 32


class OnnxruntimeReader(Reader, CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The samples, of the class that `quantize_static` insists on."""


def static(task: Task) -> None:
    """Weights of 8 or 4 bits per channel, activations of 8."""
    reader = OnnxruntimeReader(task)
    count = len(reader)
    prepared = task.output.with_suffix(".prepared.onnx")
    quant_pre_process(task.model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        task.output,
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=task.bits == 8 and task.processor in WITHOUT_VNNI,
        activation_type=QuantType.QInt8 if task.processor.startswith("neon") else QuantType.QUInt8,
        weight_type={8: QuantType.QInt8, 4: QuantType.QInt4}[task.bits],
        calibrate_method=METHODS[task.way],
        extra_options={"CalibStridedMinMax": max(n for n in range(1, LARGEST_STRIDE + 1) if count % n == 0)},
    )


def blocks(task: Task) -> None:
    """Weights of MatMul in blocks of 32 along the summed axis; everything else stays float."""
    model = onnx.load(task.model)
    if not any(node.op_type == "MatMul" for node in model.graph.node):
        raise ValueError("the model has no MatMul, the only layers that MatMulNBitsQuantizer takes")
    quantizer = MatMulNBitsQuantizer(model, bits=task.bits, block_size=BLOCK, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(task.output))


if __name__ == "__main__":
    run(dict.fromkeys(METHODS, static) | {"blocks": blocks})
