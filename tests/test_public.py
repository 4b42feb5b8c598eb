"""The public names are a list, and every one of them is explained."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass

import pytest

import onnx_cbq

NAMES = [
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


def test_the_public_names_are_these() -> None:
    """Adding one is a promise, taking one away breaks somebody's program: either is meant to be noticed here."""
    assert sorted(onnx_cbq.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_explained(name: str) -> None:
    """A dataclass without a docstring gets its signature for one."""
    explanation = getattr(onnx_cbq, name).__doc__
    assert explanation
    assert not explanation.startswith(f"{name}(")


@pytest.mark.parametrize("name", NAMES)
def test_every_public_method_is_explained_and_records_are_frozen(name: str) -> None:
    thing = getattr(onnx_cbq, name)
    if not inspect.isclass(thing):
        assert "Raises:" in (thing.__doc__ or "")
        return
    for method, value in vars(thing).items():
        if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            assert inspect.getdoc(getattr(thing, method)), method
    if is_dataclass(thing):
        assert thing.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_every_error_is_of_the_package_and_says_how_the_command_ends() -> None:
    errors = [getattr(onnx_cbq, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, onnx_cbq.OnnxCbqError) for error in errors)
    codes = {error.__name__: error.exit_code for error in errors}
    assert codes.pop("VerificationError") == 3
    assert set(codes.values()) == {1}
