"""Settings: frozen, checked when they are made, each with a default that is documented where it is."""

from onnx_cbq.config.checks import (
    AUGMENTATIONS,
    GRANULARITIES,
    STORAGES,
    most_views,
)
from onnx_cbq.config.planning import CbqConfig, RateDistortionConfig, RoundingConfig, ScoringConfig
from onnx_cbq.config.quantize import DataFreeConfig
from onnx_cbq.config.training import DifferentiableConfig, RefineConfig, StepConfig
from onnx_cbq.settings import MOST_BITS, check, either

__all__ = [
    "AUGMENTATIONS",
    "GRANULARITIES",
    "MOST_BITS",
    "STORAGES",
    "CbqConfig",
    "DataFreeConfig",
    "DifferentiableConfig",
    "RateDistortionConfig",
    "RefineConfig",
    "RoundingConfig",
    "ScoringConfig",
    "StepConfig",
    "check",
    "either",
    "most_views",
]
