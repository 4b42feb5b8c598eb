"""What is done where every plan measures alike, so that no measurement can choose: widths follow the weights."""

from __future__ import annotations

import numpy as np

from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.methods.channels import FreeChannels
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.weights import distortions
from onnx_cbq.records import Plan
from onnx_cbq.search.rate_distortion import allocate
from onnx_cbq.settings import MOST_BITS

# Losses of a sample that differ by less differ by rounding; in nats.
ALIKE = 1e-9


def why_alike(free: FreeChannels, measure: PlanMeasure, class_weights: Array) -> str:
    """Why weights that are gone measure as whole ones do, for people; "" where they do not. Cost: two measures."""
    nothing, everything = (
        measure(free.plan(np.full(len(free.sizes), bits))).losses(class_weights) for bits in (0, MOST_BITS)
    )
    return "" if np.abs(nothing - everything).max(initial=0) > ALIKE else measure.sameness


def plan_by_weights(model: Model, free: FreeChannels) -> Plan:
    """Widths of least squared error of the weights, each layer's relative to its own weights."""
    losses = np.concatenate([distortions(layer, model.weight(layer.weight)) for layer in free.layers])
    return free.plan(allocate(free.sums(losses), free.sizes, free.budget))


def unmeasured_note(why: str) -> str:
    """What a user should know of it."""
    return f"nothing could be measured: {why}; widths follow the squared error of the weights alone"
