"""The same width everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx_cbq.methods.channels import constant_widths, kept_layers
from onnx_cbq.methods.method import Fit, PlanMethod, Planned
from onnx_cbq.records import Plan
from onnx_cbq.stages.scene import Scene
from onnx_cbq.storage import Storage


@dataclass(frozen=True)
class Uniform(PlanMethod):
    """Every channel has the same width, but for layers that are kept."""

    name: ClassVar[str] = "uniform"
    about: ClassVar[str] = "the same everywhere"

    def fit(self, storage: Storage) -> Fit | None:
        """Whole bits only."""
        return None if storage.coded else Fit(goals=False, fractions=False)

    @property
    def gathers(self) -> bool:
        """Nothing is."""
        return False

    def plan(self, scene: Scene, bits: float) -> Planned:
        """`bits` for every channel."""
        layers = scene.work.layers
        kept = kept_layers(layers, scene.settings.keep)
        widths = {layer.name: kept.get(layer.name, int(bits)) for layer in layers}
        return Planned(Plan({layer.name: constant_widths(layer, widths[layer.name]) for layer in layers}))
