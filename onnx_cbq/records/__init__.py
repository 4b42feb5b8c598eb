"""The records that flow between the stages: frozen, arrays read-only, each can be saved and loaded.

Words as in `docs/index.md`: a *layer* is one quantizable weight with the nodes that use it; a *channel* is one output
filter or neuron; a *plan* gives every channel its bits.
"""

from onnx_cbq.records.classes import Evaluation, Grouping, LayerScores, Scores
from onnx_cbq.records.grids import UNIFORM, Affine, Looked, Shared, Uniform, WeightGrid, fits_bits, largest_code
from onnx_cbq.records.kinds import GATES, TABLES, Kind, kind_of
from onnx_cbq.records.lanes import Lanes
from onnx_cbq.records.layers import KeptQuantized, Layer, Layers, LeftFloat, Lookup, Use, Windows
from onnx_cbq.records.plans import ActivationGrid, KeptZero, LayerWeights, Plan, Removal, Seen, Written
from onnx_cbq.records.rules import (
    FREE,
    FUSED,
    KERNELS,
    UNSIGNED,
    ActivationRules,
    FileRules,
    PlacementRules,
    WeightRules,
)

__all__ = [
    "FREE",
    "FUSED",
    "GATES",
    "KERNELS",
    "TABLES",
    "UNIFORM",
    "UNSIGNED",
    "ActivationGrid",
    "ActivationRules",
    "Affine",
    "Evaluation",
    "FileRules",
    "Grouping",
    "KeptQuantized",
    "KeptZero",
    "Kind",
    "Lanes",
    "Layer",
    "LayerScores",
    "LayerWeights",
    "Layers",
    "LeftFloat",
    "Looked",
    "Lookup",
    "PlacementRules",
    "Plan",
    "Removal",
    "Scores",
    "Seen",
    "Shared",
    "Uniform",
    "Use",
    "WeightGrid",
    "WeightRules",
    "Windows",
    "Written",
    "fits_bits",
    "kind_of",
    "largest_code",
]
