"""Quantize from Python: once with samples in memory, once with a calibration card, and compare the classes.

Samples in memory are one line, `CalibrationSet.from_arrays(x, y)`: arrays exactly as the model takes them.
Writes digits_cnn.quantized.onnx beside this file.

python samples/02_quantize_in_python.py
"""

from pathlib import Path

import numpy as np

import onnx_cbq
from onnx_cbq import CalibrationSet, QuantizeConfig

HERE = Path(__file__).parent
DATA = HERE.parent / "calibration"
MODEL = HERE / "digits_cnn.onnx"


def print_classes(title: str, result: onnx_cbq.Result) -> None:
    """Accuracy of every class before and after."""
    before, after = result.reference, result.quantized
    print(f"{title}: {result.average_bits:.2f} bits per weight, {after.bytes:,} of {before.bytes:,} bytes")
    for name, old, new in zip(result.class_names, before.per_class, after.per_class, strict=True):
        print(f"  class {name}: {old:6.2f} % -> {new:6.2f} %")
    print(f"  all    : {before.top1:6.2f} % -> {after.top1:6.2f} %")


def main() -> None:
    """Quantize twice, evaluate on digits that neither has seen, save the second."""
    with np.load(DATA / "digits.npz") as file:
        x = (file["x"] / 16).astype(np.float32).transpose(0, 3, 1, 2)  # [n, 8, 8, 1] -> [n, 1, 8, 8]
        samples = CalibrationSet.from_arrays(x, file["y"])
    print_classes("arrays, 8 bits", onnx_cbq.quantize(MODEL, samples, QuantizeConfig(bits=8, method="uniform")))

    card = DATA / "digits.toml"
    result = onnx_cbq.quantize(MODEL, card, QuantizeConfig(bits=4))
    print_classes("card, 4 bits", result)
    path = HERE / "digits_cnn.quantized.onnx"
    print(f"{path.name}: {result.save(path):,} bytes")

    unseen = CalibrationSet.from_card(card, source=DATA / "digits_test.npz")
    compared = onnx_cbq.evaluate(path, unseen, reference=MODEL)
    print(f"unseen digits: {compared.model.top1:.2f} %, same prediction as the float model: {compared.agreement:.2f} %")


if __name__ == "__main__":
    main()
