"""From chosen weights to what is written of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from onnx_cbq.model import Model
from onnx_cbq.quantize.weights import leave_room_for_biases
from onnx_cbq.records import ActivationGrid, Plan, Removal, Written
from onnx_cbq.stages.compensation import Rounded
from onnx_cbq.stages.removal import Run, remove_channels
from onnx_cbq.stages.scene import Scene
from onnx_cbq.storage.qdq import emit_qdq
from onnx_cbq.storage.storage import Storage


class MethodReport(Protocol):
    """What a method has to say about how it chose; each kind of report says it in its own words."""

    def lines(self) -> list[str]:
        """Lines for people."""

    def table(self) -> list[list[str]]:
        """A table for people, its first row the names of the columns; empty for none."""

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""


@dataclass(frozen=True)
class NoReport:
    """There is nothing to say."""

    def lines(self) -> list[str]:
        """None."""
        return []

    def table(self) -> list[list[str]]:
        """None."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Chosen:
    """What a method chose.

    Attributes:
        rounded: integer weights, and biases that make up for them.
        notes: what a user should know.
        report: how they were chosen.
    """

    rounded: Rounded
    notes: tuple[str, ...] = ()
    report: MethodReport = field(default_factory=NoReport)


@dataclass(frozen=True)
class Solution:
    """What was chosen, and what is written of it once channels of 0 bits are removed."""

    chosen: Chosen
    written: Written
    removal: Removal

    @property
    def rounded(self) -> Rounded:
        """The integer weights of all channels."""
        return self.chosen.rounded

    @property
    def plan(self) -> Plan:
        """The bits that the weights have in the end."""
        return Plan({name: layer.bits for name, layer in self.rounded.weights.items()})


def make_solution(scene: Scene, chosen: Chosen) -> Solution:
    """What is written of chosen weights: with room for the biases, without the channels that nobody needs."""
    work, rounded = scene.work, with_room(scene, chosen.rounded)
    with scene.clock.stage("removal"):
        plain = Written(work.model.with_constants(rounded.biases), work.layers, rounded.weights)
        run = Run(work.placement, grids_of(scene, rounded), work.shapes, work.example, work.target.file)
        written, removal = remove_channels(plain, run)
    return Solution(replace(chosen, rounded=rounded), written, removal)


def grids_of(scene: Scene, rounded: Rounded) -> Mapping[str, ActivationGrid]:
    """How activations are quantized beside these weights."""
    return {**scene.grids, **rounded.grids}


def emit_solution(scene: Scene, solution: Solution, storage: Storage | None = None) -> Model:
    """The quantized model that a solution makes, with another storage than that of the settings if one is given."""
    written, work, storage = solution.written, scene.work, storage or scene.settings.storage
    grids = grids_of(scene, solution.rounded)
    output = emit_qdq(
        written.model, written.layers, written.weights, work.placement, grids, storage.codes(), work.target.file
    )
    return storage.finish(output)


def with_room(scene: Scene, rounded: Rounded) -> Rounded:
    """Coarser scales where a bias would not fit beside the weights."""
    work, grids = scene.work, grids_of(scene, rounded)
    corrected = work.model.with_constants(rounded.biases)
    weights = dict(rounded.weights)
    for layer in work.layers if work.target.file.bias == "int32" else ():
        read = [(use.bias, grids.get(work.placement.grid_of(use.activation))) for use in layer.uses]
        biases = [(corrected.weight(bias), grid.scale) for bias, grid in read if bias is not None and grid is not None]
        if biases:
            short = scene.settings.storage.coded
            weights[layer.name] = leave_room_for_biases(layer, weights[layer.name], biases, short=short)
    return replace(rounded, weights=weights)
