"""A small task for training: the bundled digits at few bits, rounded to nearest, which training can only better."""

from __future__ import annotations

import numpy as np

from onnx_cbq.calibration.draw import draw
from onnx_cbq.jobs.refine import quantized_by
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.model import Array
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution
from onnx_cbq.training.records import Quantized, Rate, Task
from onnx_cbq.training.settings import RefineConfig
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather, solved

COARSE = QuantizeConfig(bits=2, method="uniform", rounding="nearest", samples=100, activation_bits=4)
QUICK = RefineConfig(updates=12, batch=32, check_every=4, weight_rate=0.03, rate=1e-3, held_back=0.3, bfloat16=False)


def make_solution(config: QuantizeConfig = COARSE) -> tuple[Scene, Solution]:
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, config)
    return scene, solved(scene, config)


def make_task(scene: Scene, solution: Solution, rate: Rate | None = None) -> tuple[Task, Quantized]:
    work = scene.work
    learned, held = draw(work.samples, work.class_names, 200, 0).split(0.3)
    task = Task(work, learned.indices, held.indices, scene.class_weights, scene.evidence.groups, seed=0)
    return task, quantized_by(scene, solution, rate)


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
