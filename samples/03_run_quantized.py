"""Run a quantized model with onnxruntime alone: it is standard ONNX, so onnx-cbq is not imported.

Needs digits_cnn.quantized.onnx, which `samples/02_quantize_in_python.py` and the README's first command write.

python samples/03_run_quantized.py
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
MODEL = HERE / "digits_cnn.quantized.onnx"
DATA = HERE.parent / "calibration" / "digits_test.npz"


def main() -> None:
    """Classify the test digits and print the accuracy."""
    if not MODEL.exists():
        sys.exit(f"{MODEL.name} is missing; run samples/02_quantize_in_python.py first")
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    with np.load(DATA) as file:
        images, labels = file["x"], file["y"]
    x = (images / 16).astype(np.float32).transpose(0, 3, 1, 2)  # [n, 8, 8, 1] -> [n, 1, 8, 8]
    (logits,) = session.run(["logits"], {"image": x})
    hits = logits.argmax(axis=1) == labels
    print(f"{hits.sum()} of {len(hits)} digits right: {hits.mean():.2%}")


if __name__ == "__main__":
    main()
