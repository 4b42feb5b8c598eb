"""Weights only, at float speed: what onnxruntime makes of DequantizeLinear, and two ways to have it done once.

A DequantizeLinear in front of a float operator is computed on every run. The session option
`session.disable_quant_qdq` has onnxruntime fold it when the session is created; a file of `--storage packed` is written
with operators that are folded without any option. The larger a layer's weights are beside its activations, the more
that matters.

python samples/04_weights_only.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from onnx_cbq import QuantizeConfig, quantize

HERE = Path(__file__).parent
MODEL = HERE / "digits_cnn.onnx"
CARD = HERE.parent / "calibration" / "digits.toml"
RUNS = 500


def open_session(path: Path, *, fold: bool = False) -> onnxruntime.InferenceSession:
    """A session; with `fold` weights become float once."""
    options = onnxruntime.SessionOptions()
    if fold:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def median_ms(session: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Median milliseconds of a run."""
    spent = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, {"image": x})
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def main() -> None:
    """Write both files, run them, compare outputs and milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {"float model": open_session(MODEL)}
        for storage in ("int8", "packed"):
            config = QuantizeConfig(bits=4, activation_bits=0, storage=storage, samples=100)
            path = Path(folder) / f"{storage}.onnx"
            size = quantize(MODEL, CARD, config).save(path)
            sessions[f"--storage {storage}, {size:,} bytes"] = open_session(path)
            if storage == "int8":
                sessions["the same with session.disable_quant_qdq"] = open_session(path, fold=True)
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    outputs = [session.run(None, {"image": x})[0] for session in list(sessions.values())[1:]]
    spread = max(float(np.abs(output - outputs[0]).max()) for output in outputs)
    for name, session in sessions.items():
        print(f"{name}: {median_ms(session, x):.3f} ms")
    print(f"largest difference between the quantized outputs: {spread:.1e}")


if __name__ == "__main__":
    main()
