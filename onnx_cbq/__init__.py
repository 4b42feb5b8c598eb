"""onnx-cbq: class-based quantization of exported ONNX classifiers.

>>> import onnx_cbq
>>> result = onnx_cbq.quantize("model.onnx", "card.toml", onnx_cbq.QuantizeConfig(bits=4))  # doctest: +SKIP
>>> result.save("model.quantized.onnx")  # doctest: +SKIP
"""

# isort: off
from onnx_cbq import _threads  # noqa: F401, before numpy is imported

# isort: on
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.config import (
    CbqConfig,
    DataFreeConfig,
    DifferentiableConfig,
    QuantizeConfig,
    RateDistortionConfig,
    RefineConfig,
    RoundingConfig,
    ScoringConfig,
    StepConfig,
)
from onnx_cbq.data_free import DataFreeResult
from onnx_cbq.emit.archive import Archive, archive, restore
from onnx_cbq.errors import (
    ArchiveError,
    CalibrationError,
    ConfigError,
    ModelError,
    OnnxCbqError,
    OutputError,
    UnsupportedOperatorError,
    VerificationError,
)
from onnx_cbq.pipeline import check, evaluate, quantize, quantize_without_data, score
from onnx_cbq.records import Evaluation, LayerScores, Plan, Scores
from onnx_cbq.result import CheckResult, EvaluationResult, Result
from onnx_cbq.stepping.session import Step, SteppingSession
from onnx_cbq.subnets import Steps, make_steps

__all__ = [
    "Archive",
    "ArchiveError",
    "CalibrationError",
    "CalibrationSet",
    "CbqConfig",
    "CheckResult",
    "ConfigError",
    "DataFreeConfig",
    "DataFreeResult",
    "DifferentiableConfig",
    "Evaluation",
    "EvaluationResult",
    "LayerScores",
    "ModelError",
    "OnnxCbqError",
    "OutputError",
    "Plan",
    "QuantizeConfig",
    "RateDistortionConfig",
    "RefineConfig",
    "Result",
    "RoundingConfig",
    "Scores",
    "ScoringConfig",
    "Step",
    "StepConfig",
    "SteppingSession",
    "Steps",
    "UnsupportedOperatorError",
    "VerificationError",
    "archive",
    "check",
    "evaluate",
    "make_steps",
    "quantize",
    "quantize_without_data",
    "restore",
    "score",
]
