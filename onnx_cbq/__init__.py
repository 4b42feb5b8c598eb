"""onnx-cbq: class-based quantization of exported ONNX classifiers.

>>> import onnx_cbq
>>> result = onnx_cbq.quantize("model.onnx", "card.toml", onnx_cbq.QuantizeConfig(bits=4))  # doctest: +SKIP
>>> result.save("model.quantized.onnx")  # doctest: +SKIP
"""

import sys
from importlib import import_module
from types import ModuleType

import onnx_cbq.system.threads  # noqa: F401  # before numpy is imported

# As `typing` has it, which takes a while to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from onnx_cbq.calibration import CalibrationSet
    from onnx_cbq.errors import (
        ArchiveError,
        CalibrationError,
        ConfigError,
        ModelError,
        OnnxCbqError,
        OutputError,
        UnsupportedOperatorError,
        VerificationError,
        WorkerError,
    )
    from onnx_cbq.evidence.settings import ScoringConfig
    from onnx_cbq.execution.settings import ExecutionConfig
    from onnx_cbq.jobs.compare import compare
    from onnx_cbq.jobs.compare_result import Compared, CompareResult, Disagreement
    from onnx_cbq.jobs.data_free import DataFreeConfig, DataFreeResult
    from onnx_cbq.jobs.debug import debug
    from onnx_cbq.jobs.debug_result import DebugResult, LayerDebug
    from onnx_cbq.jobs.evaluate import evaluate
    from onnx_cbq.jobs.inspect import check
    from onnx_cbq.jobs.quantize import quantize, quantize_without_data
    from onnx_cbq.jobs.result import CheckResult, EvaluationResult, Result
    from onnx_cbq.jobs.score import score
    from onnx_cbq.jobs.settings import QuantizeConfig
    from onnx_cbq.jobs.step import Steps, make_steps
    from onnx_cbq.learned.settings import LearnedConfig
    from onnx_cbq.quantize.settings import RoundingConfig
    from onnx_cbq.records import Evaluation, LayerScores, Plan, Scores
    from onnx_cbq.search.cbq import CbqConfig
    from onnx_cbq.search.rate_distortion import RateDistortionConfig
    from onnx_cbq.search.widths import DifferentiableConfig
    from onnx_cbq.stages.activations import AutoBits
    from onnx_cbq.stepping.session import Step, SteppingSession
    from onnx_cbq.storage.archive import Archive, archive, restore
    from onnx_cbq.training.settings import RefineConfig, StepConfig

__all__ = [
    "Archive",
    "ArchiveError",
    "AutoBits",
    "CalibrationError",
    "CalibrationSet",
    "CbqConfig",
    "CheckResult",
    "CompareResult",
    "Compared",
    "ConfigError",
    "DataFreeConfig",
    "DataFreeResult",
    "DebugResult",
    "DifferentiableConfig",
    "Disagreement",
    "Evaluation",
    "EvaluationResult",
    "ExecutionConfig",
    "LayerDebug",
    "LayerScores",
    "LearnedConfig",
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
    "WorkerError",
    "archive",
    "check",
    "compare",
    "debug",
    "evaluate",
    "make_steps",
    "quantize",
    "quantize_without_data",
    "restore",
    "score",
]

# Each name is imported when it is first asked for: a command must be able to stop long before all of it is there.
_WHERE = {
    "Archive": "onnx_cbq.storage.archive",
    "ArchiveError": "onnx_cbq.errors",
    "AutoBits": "onnx_cbq.stages.activations",
    "CalibrationError": "onnx_cbq.errors",
    "CalibrationSet": "onnx_cbq.calibration",
    "CbqConfig": "onnx_cbq.search.cbq",
    "CheckResult": "onnx_cbq.jobs.result",
    "CompareResult": "onnx_cbq.jobs.compare_result",
    "Compared": "onnx_cbq.jobs.compare_result",
    "ConfigError": "onnx_cbq.errors",
    "DataFreeConfig": "onnx_cbq.jobs.data_free",
    "DataFreeResult": "onnx_cbq.jobs.data_free",
    "DebugResult": "onnx_cbq.jobs.debug_result",
    "DifferentiableConfig": "onnx_cbq.search.widths",
    "Disagreement": "onnx_cbq.jobs.compare_result",
    "Evaluation": "onnx_cbq.records",
    "EvaluationResult": "onnx_cbq.jobs.result",
    "ExecutionConfig": "onnx_cbq.execution.settings",
    "LayerDebug": "onnx_cbq.jobs.debug_result",
    "LayerScores": "onnx_cbq.records",
    "LearnedConfig": "onnx_cbq.learned.settings",
    "ModelError": "onnx_cbq.errors",
    "OnnxCbqError": "onnx_cbq.errors",
    "OutputError": "onnx_cbq.errors",
    "Plan": "onnx_cbq.records",
    "QuantizeConfig": "onnx_cbq.jobs.settings",
    "RateDistortionConfig": "onnx_cbq.search.rate_distortion",
    "RefineConfig": "onnx_cbq.training.settings",
    "Result": "onnx_cbq.jobs.result",
    "RoundingConfig": "onnx_cbq.quantize.settings",
    "Scores": "onnx_cbq.records",
    "ScoringConfig": "onnx_cbq.evidence.settings",
    "Step": "onnx_cbq.stepping.session",
    "StepConfig": "onnx_cbq.training.settings",
    "SteppingSession": "onnx_cbq.stepping.session",
    "Steps": "onnx_cbq.jobs.step",
    "UnsupportedOperatorError": "onnx_cbq.errors",
    "VerificationError": "onnx_cbq.errors",
    "WorkerError": "onnx_cbq.errors",
    "archive": "onnx_cbq.storage.archive",
    "check": "onnx_cbq.jobs.inspect",
    "compare": "onnx_cbq.jobs.compare",
    "debug": "onnx_cbq.jobs.debug",
    "evaluate": "onnx_cbq.jobs.evaluate",
    "make_steps": "onnx_cbq.jobs.step",
    "quantize": "onnx_cbq.jobs.quantize",
    "quantize_without_data": "onnx_cbq.jobs.quantize",
    "restore": "onnx_cbq.storage.archive",
    "score": "onnx_cbq.jobs.score",
}


class _Package(ModuleType):
    """A folder that is called like something public, `quantize`, does not take its place once it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _WHERE or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    """A name of `__all__`, from the module that defines it."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *__all__})
