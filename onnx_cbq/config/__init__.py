"""Settings: frozen, checked when they are made, each with a default that is documented where it is."""

from onnx_cbq.config.checks import (
    AUGMENTATIONS,
    CODEBOOKS,
    CODERS,
    CURVE,
    GRANULARITIES,
    METHODS,
    MOST_BITS,
    RANGES,
    ROUNDINGS,
    SCOPES,
    STORAGES,
    most_views,
)
from onnx_cbq.config.planning import CbqConfig, RateDistortionConfig, RoundingConfig, ScoringConfig
from onnx_cbq.config.quantize import DataFreeConfig, QuantizeConfig
from onnx_cbq.config.training import DifferentiableConfig, RefineConfig, StepConfig

__all__ = [
    "AUGMENTATIONS",
    "CODEBOOKS",
    "CODERS",
    "CURVE",
    "GRANULARITIES",
    "METHODS",
    "MOST_BITS",
    "RANGES",
    "ROUNDINGS",
    "SCOPES",
    "STORAGES",
    "CbqConfig",
    "DataFreeConfig",
    "DifferentiableConfig",
    "QuantizeConfig",
    "RateDistortionConfig",
    "RefineConfig",
    "RoundingConfig",
    "ScoringConfig",
    "StepConfig",
    "most_views",
]
