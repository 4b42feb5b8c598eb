"""Results as data frames: the same figures in either library, and one line where there is none."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from onnx_cbq.errors import ConfigError
from onnx_cbq.jobs.compare_result import Compared, CompareResult, Timing
from tests.jobs.test_result import FLOAT, NAMES, QUANTIZED, result

LAYERS = {
    "layer": ["first", "second"],
    "operator": ["Gemm", "Gemm"],
    "channels": [2, 3],
    "weights": [6, 12],
    # Each weight is used once for each sample.
    "macs": [6, 12],
    "average_bits": [4.5, 2.0],
    "least_bits": [1, 0],
    "most_bits": [8, 4],
}


def compared() -> CompareResult:
    """A float model, and one that takes two samples at a time."""
    runs = Timing(1, 0, 0.5), Timing(32, 1, 9.0)
    first = Compared("a.onnx", FLOAT, 1.5, 3900, 100.0, 0, 0, 1.0, runs, 10)
    second = Compared("b.onnx", QUANTIZED, 2.5, 900, 75.0, 0, 1, None, (Timing(2, 0, 0.25),), 20)
    return CompareResult((first, second), (), NAMES, "avx2", (), {})


def columns(frame: Any) -> dict[str, list[Any]]:
    """The columns, with None for what is missing: pandas has NaN there."""
    found = frame.to_dict(orient="list") if hasattr(frame, "iloc") else frame.to_dict(as_series=False)
    return {
        name: [None if isinstance(value, float) and math.isnan(value) else value for value in values]
        for name, values in found.items()
    }


@pytest.fixture(params=["pandas", "polars"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the libraries, the other hidden."""
    module = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    monkeypatch.setitem(sys.modules, {"pandas": "polars", "polars": "pandas"}[request.param], None)
    return module


def test_a_result_is_a_row_per_layer(library: Any) -> None:
    frame = result().to_frame()
    assert isinstance(frame, library.DataFrame)
    assert columns(frame) == LAYERS


def test_a_comparison_is_a_row_per_model(library: Any) -> None:
    frame = compared().to_frame()
    assert isinstance(frame, library.DataFrame)
    assert columns(frame) == {
        "label": ["a.onnx", "b.onnx"],
        "top1": [75.0, 50.0],
        "standard_error": [1.5, 2.5],
        "worst_class": ["cat", "cat"],
        "worst_top1": [50.0, 0.0],
        "agreement": [100.0, 75.0],
        "gained": [0, 0],
        "lost": [0, 1],
        "chance": [1.0, None],
        "bytes": [4000, 1000],
        "compressed": [3900, 900],
        "memory": [10, 20],
        "ms_batch_1_threads_all": [0.5, None],
        "ms_batch_32_threads_1": [9.0, None],
        "ms_batch_2_threads_all": [None, 0.25],
    }


def test_pandas_comes_first() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert isinstance(result().to_frame(), pandas.DataFrame)


def test_names_may_be_anything() -> None:
    """A layer called like a column, or like a number, is a name."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    odd = replace(result().layers.layers[0], name="1e9")
    shown = result()
    layers = replace(shown.layers, layers=(odd,))
    frame = replace(shown, layers=layers, plan=replace(shown.plan, bits={"1e9": shown.plan.bits["first"]})).to_frame()
    assert columns(frame)["layer"] == ["1e9"]


def test_without_either_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    for shown in (result(), compared()):
        with pytest.raises(ConfigError, match=r"needs pandas or polars, .* pip install 'onnx-cbq\[frames\]'$"):
            shown.to_frame()
