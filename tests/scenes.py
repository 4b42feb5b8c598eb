"""Scenes and solutions as `quantize` makes them of its settings, for tests of a single stage."""

from __future__ import annotations

from onnx_cbq import QuantizeConfig
from onnx_cbq.evidence.workload import DataSource, ModelSource, Workload, aimed_at, prepare
from onnx_cbq.goals.goal import solve
from onnx_cbq.jobs.choice import Choice
from onnx_cbq.stages.scene import Scene, make_scene
from onnx_cbq.stages.solution import Solution
from onnx_cbq.system.progress import Progress, silent


def aim(work: Workload, config: QuantizeConfig) -> Workload:
    """`work` for the target and the activations of the settings."""
    return aimed_at(work, config.choice.target, config.choice.scene.activations.bits)


def scene_of(work: Workload, config: QuantizeConfig, progress: Progress = silent) -> Scene:
    """The scene that the settings gather from what was prepared; `work` need not be aimed."""
    return make_scene(aim(work, config), config.choice.scene, progress=progress)


def gather(model: ModelSource, data: DataSource, config: QuantizeConfig) -> tuple[Scene, Choice]:
    """The scene of a model and samples, and what the settings stand for."""
    work = prepare(model, data, config.logits, config.ignore_outputs)
    return scene_of(work, config), config.choice


def solved(scene: Scene, config: QuantizeConfig) -> Solution:
    """What the method of the settings makes of a scene at their average of bits."""
    return solve(scene, config.choice.method, config.bits)
