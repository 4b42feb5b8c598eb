"""The only file that imports onnxruntime: sessions, timing, and the graph that onnxruntime really runs."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, Model

Feeds = Mapping[str, Array]
Optimization = Literal["all", "basic", "off"]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL_ONLY = 4
onnxruntime.set_default_logger_severity(_FATAL_ONLY)


class Session:
    """A model ready to run on the CPU.

    `model` is a `Model` record (its weights are handed over without being copied or serialised), the path of a file, or
    its content. With `float_weights`, weights stored as integers become float once, and not on every run.
    """

    def __init__(
        self, model: Model | Path | bytes, optimization: Optimization = "all", *, float_weights: bool = False
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimization]
        options.log_severity_level = _FATAL_ONLY
        # Threads that wait busily for the next run would slow down whatever else runs meanwhile, other sessions too.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if float_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._weights = _ort_values(model.weights) if isinstance(model, Model) else {}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        source: str | bytes = str(model) if isinstance(model, Path) else b""
        if not isinstance(model, Path):
            source = model.skeleton.SerializeToString() if isinstance(model, Model) else model
        # It would quantize float weights between quantized activations, by a grid of its own, where we look at ours.
        left_out = ["WeightBiasQuantization"] if isinstance(model, Model) else []
        self._session = _start(source, options, left_out)
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; returns the named outputs (all by default)."""
        names = list(outputs or self.outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


def median_latency(sessions: Sequence[Session], feeds: Feeds, seconds: float = 1.0) -> list[float]:
    """Median seconds per run of each session, the sessions taking turns so that a drifting clock hits all alike."""
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(feeds)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            spent.append(time.perf_counter() - start)
    return [float(np.median(spent)) for spent in times]


def fused_operators(model: Path) -> Counter[str]:
    """How often each operator stands in the graph that onnxruntime runs after all its optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        _start(str(model), options)
        graph = onnx.load(optimized, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a result is."""
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "numpy": np.__version__}


def _start(source: bytes | str, options: Any, left_out: Sequence[str] = ()) -> Any:
    """A session without the optimizations `left_out`."""
    try:
        # Its fallback would print to stdout, and try again with the same provider.
        settings = {"enable_fallback": 0, "disabled_optimizers": list(left_out)}
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], **settings)
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


def _ort_values(weights: Mapping[str, Array]) -> dict[str, Any]:
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
