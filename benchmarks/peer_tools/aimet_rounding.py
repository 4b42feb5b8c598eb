"""AIMET-ONNX: AdaRound with float activations, and its automatic mixed precision (AMP) with 8-bit ones.

Weights get symmetric grids per channel, whose ranges AIMET chooses by error (tf_enhanced). AMP takes `bits` or 8 for a
group of quantizers, and makes groups wider until accuracy on the calibration samples is at most a point below float.
The simulation is written as its QDQ form. That form has 4, 8 and 16 bits only: narrower codes, which are values of the
grid of 4 bits as well, are written as int4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel, apply_adaround, int8, qtype
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_onnx.mixed_precision import analyze_mixed_precision_sensitivity, apply_amp
from peer_task import Task, run

# How many samples of a batch AIMET takes per iteration.
BATCH = 32
ITERATIONS = 1000
# Points of accuracy that AMP may lose on the calibration samples.
LARGEST_DROP = 1.0
# The narrowest codes of its QDQ form.
NARROWEST = 4


def simulation(task: Task) -> Any:
    """The model with weights of so many bits and activations of 8, not calibrated yet."""
    folded = onnx.load(task.model)
    fold_all_batch_norms_to_weight(folded)
    return QuantizationSimModel(
        folded,
        param_type=qtype.int(task.bits),
        activation_type=int8,
        quant_scheme="tf_enhanced",
        config_file=get_path_for_per_channel_config(),
    )


def adaround(task: Task) -> None:
    """Weights alone, rounded layer by layer."""
    sim = simulation(task)
    weights = {tensor.name for tensor in sim.model.model.graph.initializer if len(tensor.dims) > 1}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        quantizer.enabled = name in weights
    apply_adaround(sim, task.batches(BATCH), num_iterations=ITERATIONS)
    write(sim, task)


def mixed(task: Task) -> None:
    """Weights of `bits` or 8, a group of quantizers at a time."""
    sim, batches = simulation(task), task.batches(BATCH)
    labels = task.labels[: sum(len(next(iter(feeds.values()))) for feeds in batches)]

    def top1(session: Any) -> float:
        scores = np.concatenate([session.run(None, feeds)[0] for feeds in batches])
        return float(np.mean(scores.argmax(1) == labels) * 100)

    quantizers = [quantizer for quantizer in sim.qc_quantize_op_dict.values() if quantizer.enabled]
    for quantizer in quantizers:
        quantizer.enabled = False
    least = top1(sim.session) - LARGEST_DROP
    for quantizer in quantizers:
        quantizer.enabled = True
    precisions = [(qtype.int(task.bits), int8), (int8, int8)]
    found = analyze_mixed_precision_sensitivity(sim, precisions, top1, batches)
    apply_amp(sim, found, lambda session: top1(session) >= least)
    write(sim, task)


def write(sim: Any, task: Task) -> None:
    """The QDQ form; codes that are too narrow for it become wider ones of the same values."""
    # AIMET has no public way to put weights on their grids, and none to change a width and keep the spacing.
    sim._overwrite_parameters(sim.model.model, sim._get_qdq_parameters())  # noqa: SLF001
    for quantizer in sim.qc_quantize_op_dict.values():
        if quantizer.bitwidth >= NARROWEST:
            continue
        encodings = quantizer.get_encodings() if quantizer.enabled else None
        quantizer._is_encoding_frozen = False  # noqa: SLF001
        quantizer.bitwidth = NARROWEST  # of those that are off too: the form is refused for them as well
        if encodings:
            for encoding in encodings:
                lowest = -(1 << (NARROWEST - 1))
                encoding.bw, encoding.offset = NARROWEST, lowest
                encoding.min, encoding.max = lowest * encoding.delta, (-lowest - 1) * encoding.delta
            quantizer.load_encodings(encodings)
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.output)


if __name__ == "__main__":
    run({"adaround": adaround, "amp": mixed})
