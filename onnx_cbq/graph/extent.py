"""How large the tensors of a model become, found by onnx's shape inference before anything is run.

A few bytes of attributes can ask for any amount of memory: an Expand, a ConstantOfShape, a padding. Inference follows
what is computed from constants and from declared inputs; a size that nobody declared is taken for a small one.
"""

from __future__ import annotations

import math

import onnx.shape_inference
from onnx import ModelProto, TypeProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.system.allowance import advice, allowed

# Of a single tensor: at least so many bytes, or so many times those of the model.
_LEAST_BYTES = 512 << 20
_TIMES_THE_MODEL = 256
_BATCH, _SIZE = 3, 16


def check_extent(skeleton: ModelProto, weight_bytes: int, label: str) -> None:
    """Refuse a model whose tensors are far larger than it is.

    Raises:
        ModelError: one is, or sizes are computed that cannot be.
    """
    sized = ModelProto()
    sized.CopyFrom(skeleton)
    for info in sized.graph.input:
        for axis, size in enumerate(info.type.tensor_type.shape.dim):
            if size.dim_value <= 0:
                size.dim_value = _SIZE if axis else _BATCH
    for info in sized.graph.output:
        info.ClearField("type")
    try:
        inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    except Exception:  # noqa: BLE001, it is a guess: onnxruntime will say whether and why the model is wrong
        return
    limit = allowed(max(_LEAST_BYTES, _TIMES_THE_MODEL * (weight_bytes + skeleton.ByteSize())))
    for info in (*inferred.value_info, *inferred.output):
        size = _bytes(info.type)
        if size > limit:
            sizes = " x ".join(str(d.dim_value) for d in info.type.tensor_type.shape.dim)
            raise ModelError(
                f"{label}: tensor {info.name!r} becomes {sizes}, {size} bytes, expected at most {limit} of a model of "
                f"this size; {advice(size, limit)}"
            )


def _bytes(kind: TypeProto) -> int:
    """0 where a size is not known."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not tensor.elem_type or tensor.elem_type not in _KNOWN:
        return 0
    return int(math.prod(max(size.dim_value, 0) for size in tensor.shape.dim)) * _KNOWN[tensor.elem_type]


_KNOWN = {
    number: helper.tensor_dtype_to_np_dtype(number).itemsize
    for number in helper.get_all_tensor_dtypes()
    if number != onnx.TensorProto.STRING
}
