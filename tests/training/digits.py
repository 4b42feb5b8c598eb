"""A small task for training: the bundled digits at few bits, rounded to nearest, which training can only better."""

from __future__ import annotations

import numpy as np

from onnx_cbq.calibration.samples import draw
from onnx_cbq.config import QuantizeConfig, RefineConfig
from onnx_cbq.model import Array
from onnx_cbq.progress import Clock, silent
from onnx_cbq.refining import quantized_by
from onnx_cbq.solving import Setting, Solution, make_setting, solve
from onnx_cbq.training.records import Quantized, Task
from onnx_cbq.workload import prepare
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

COARSE = QuantizeConfig(bits=2, method="uniform", rounding="nearest", samples=100, activation_bits=4)
QUICK = RefineConfig(steps=12, batch=32, check_every=4, weight_rate=0.03, rate=1e-3, held_back=0.3, bfloat16=False)


def make_solution(config: QuantizeConfig = COARSE) -> tuple[Setting, Solution]:
    clock = Clock()
    setting = make_setting(prepare(DIGITS_MODEL, DIGITS_CARD), config, clock, silent)
    return setting, solve(setting, clock, silent)


def make_task(setting: Setting, solution: Solution) -> tuple[Task, Quantized]:
    work = setting.work
    learned, held = draw(work.samples, work.class_names, 200, 0).split(0.3)
    task = Task(work, learned.indices, held.indices, setting.class_weights, setting.evidence.groups, seed=0)
    return task, quantized_by(setting, solution)


def same(left: Quantized, right: Quantized) -> bool:
    """Whether two results are equal to the last bit."""
    codes = all(
        np.array_equal(left.rounded.weights[name].codes, right.rounded.weights[name].codes)
        and np.array_equal(left.rounded.weights[name].scale, right.rounded.weights[name].scale)
        for name in left.rounded.weights
    )
    both = left.rounded.biases.keys() | right.rounded.biases.keys()
    biases = all(_same(left.rounded.biases.get(name), right.rounded.biases.get(name)) for name in both)
    return codes and biases and dict(left.grids) == dict(right.grids)


def _same(left: Array | None, right: Array | None) -> bool:
    return left is not None and right is not None and np.array_equal(left, right)
