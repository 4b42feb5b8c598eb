"""The model that a solution is written as."""

from __future__ import annotations

from importlib.metadata import version

from onnx_cbq.model import Model
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, emit_solution
from onnx_cbq.storage.fixing import fix_sizes
from onnx_cbq.storage.metadata import with_metadata


def write_solution(scene: Scene, label: str, solution: Solution) -> Model:
    """The model that a solution is written as, with the plan in its metadata; `label` says what made it."""
    output, work = emit_solution(scene, solution), scene.work
    if work.target.file.sizes:
        output = fix_sizes(output, work.example)
    made_by = label, version("onnx-cbq")
    written, removed = solution.written.layers, solution.removal.removed
    return with_metadata(output, work.layers, solution.plan, made_by, written, removed)


def file_size(scene: Scene, label: str, solution: Solution) -> int:
    """Bytes of the file, or the archive, that a solution would become."""
    return scene.settings.storage.size(write_solution(scene, label, solution).to_proto())
