"""Settings given in Python are held against their types, in one place and with one kind of message."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from onnx_cbq import (
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
from onnx_cbq.errors import ConfigError
from onnx_cbq.goals import Accuracy, Bits, Bytes
from onnx_cbq.storage import Archived

SETTINGS = (
    CbqConfig,
    DataFreeConfig,
    DifferentiableConfig,
    QuantizeConfig,
    RateDistortionConfig,
    RefineConfig,
    RoundingConfig,
    ScoringConfig,
    StepConfig,
    Bits,
    Archived,
)


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_no_field_can_be_is_refused_by_each(kind: Any) -> None:
    """Else a Python error tells of it, somewhere else and much later."""
    for name in (field.name for field in fields(kind)):
        with pytest.raises(ConfigError, match=r"expected .*, got <object"):
            kind(**{name: object()})


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (QuantizeConfig, {"goal": 3}, "goal: expected a member of Goal or None, got 3"),
        (QuantizeConfig, {"target": 5}, "--target: expected a text or a member of Target, got 5"),
        (QuantizeConfig, {"bits": "4"}, "--bits: expected a number, got '4'"),
        (QuantizeConfig, {"bits": True}, "--bits: expected a number, got True"),
        (QuantizeConfig, {"samples": "all"}, "--samples: expected a whole number or 'auto' or None, got 'all'"),
        (QuantizeConfig, {"keep": [["a", "3"]]}, r"--keep: expected a tuple \(\(a text, a whole number\), ...\), got"),
        (QuantizeConfig, {"keep": [("a", 3, 4)]}, "--keep: expected a tuple"),
        (QuantizeConfig, {"classes": "ab"}, r"--classes: expected a tuple \(a text, ...\) or None, got 'ab'"),
        (QuantizeConfig, {"run_check": 1}, "--run-check: expected True or False, got 1"),
        (Bytes, {"limit": None}, "--bytes: expected a whole number, got None"),
        (Accuracy, {"max_drop": "1"}, "--max-drop: expected a number or None, got '1'"),
    ],
)
def test_the_message_names_the_option_and_the_type(kind: Any, given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**given)


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    """They come out of other people's code."""
    QuantizeConfig(bits=np.float32(3), samples=np.int64(5), curve=[1, 2.5], keep=[["a", 3]])  # type: ignore[arg-type]
