"""AIMET's AdaRound on a model: the logits of its simulation at each width, for `accuracy.py` to evaluate.

Runs in an environment of its own (`pip install aimet_onnx`), so it imports nothing of this project. Weights are
rounded per channel to symmetric grids whose ranges AIMET chooses by error (tf_enhanced); activations stay float.

PYTHON benchmarks/aimet_adaround.py MODEL.onnx CALIBRATION.npz TEST.npz OUT.npz --bits 4 3 2
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel, apply_adaround, int8, qtype
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config

# How many samples of a batch AIMET takes per iteration.
BATCH = 32

Feeds = dict[str, Any]


def batches(path: Path) -> list[Feeds]:
    """The inputs of a file, by name, in batches."""
    with np.load(path) as file:
        inputs = dict(file)
    samples = len(next(iter(inputs.values())))
    return [{name: x[i : i + BATCH] for name, x in inputs.items()} for i in range(0, samples, BATCH)]


def simulation(model: Path, bits: int) -> Any:
    """The model with weights of so many bits and float activations."""
    folded = onnx.load(model)
    fold_all_batch_norms_to_weight(folded)
    sim = QuantizationSimModel(
        folded,
        param_type=qtype.int(bits),
        activation_type=int8,
        quant_scheme="tf_enhanced",
        config_file=get_path_for_per_channel_config(),
    )
    weights = {tensor.name for tensor in sim.model.model.graph.initializer if len(tensor.dims) > 1}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        quantizer.enabled = name in weights
    return sim


def main() -> None:
    """Round at every width and write the logits on the test samples, and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "test", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--bits", type=int, nargs="+", required=True)
    parser.add_argument("--iterations", type=int, default=1000, help="per layer (default: 1000)")
    options = parser.parse_args()
    calibration, test = batches(options.calibration), batches(options.test)
    found: dict[str, Any] = {}
    for bits in options.bits:
        start = time.perf_counter()
        sim = simulation(options.model, bits)
        apply_adaround(sim, calibration, num_iterations=options.iterations)
        found[f"seconds_{bits}"] = time.perf_counter() - start
        found[f"logits_{bits}"] = np.concatenate([sim.session.run(None, feeds)[0] for feeds in test])
    np.savez(options.output, **found)


if __name__ == "__main__":
    main()
