"""What the float model says on samples: `Evidence` keeps the pieces, each computed when it is first asked for."""

from onnx_cbq.evidence.evidence import Evidence, EvidenceSettings
from onnx_cbq.evidence.pieces import (
    channel_costs,
    class_scores,
    measure_by_nearest,
    measure_by_tables,
    sensitivity,
    width_tables,
)

__all__ = [
    "Evidence",
    "EvidenceSettings",
    "channel_costs",
    "class_scores",
    "measure_by_nearest",
    "measure_by_tables",
    "sensitivity",
    "width_tables",
]
