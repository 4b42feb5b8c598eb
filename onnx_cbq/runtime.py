"""The only file that imports onnxruntime: sessions, timing, and the graph that onnxruntime really runs."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx
import onnxruntime

from onnx_cbq.errors import ConfigError, ModelError
from onnx_cbq.model import Array, Model
from onnx_cbq.model.captures import nodes_within
from onnx_cbq.model.mapped import HUGE, LARGE, place_of, release
from onnx_cbq.settings import check, either
from onnx_cbq.system.allowance import FACTOR, allowed
from onnx_cbq.system.temporary import temporary_folder
from onnx_cbq.system.timing import Median, median_seconds

Feeds = Mapping[str, Array]
Optimization = Literal["all", "extended", "basic", "off"]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL_ONLY = 4
CPU = "cpu"
_ENDING = "ExecutionProvider"
# How providers name one of their devices; and what makes them compute in float32 as the CPU does, and the same again:
# by default CUDA tries which kernel is fastest, in every session anew.
_DEVICES = {"openvino": "device_type"}
_EXACT = {
    "cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    "tensorrt": {"trt_fp16_enable": "0"},
    "openvino": {"precision": "FP32"},
}
# Of a model that is given to another provider than the CPU's in one piece.
_LARGEST_PIECE = 2_000_000_000
# Of a run on a few samples, and how many bytes of weights and of samples give it a second more.
_LOOPS = ("Loop", "Scan")
_TRIAL_SECONDS, _WEIGHTS_PER_SECOND, _SAMPLES_PER_SECOND = 6, 16 << 20, 4 << 20
onnxruntime.set_default_logger_severity(_FATAL_ONLY)


class EndlessRunError(ModelError):
    """A run on a few samples did not end in time, and another would not either."""


class Runnable(Protocol):
    """What runs like a `Session`."""

    @property
    def samples(self) -> int | None:
        """How many samples it takes at a time, None for any."""

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; returns the named outputs (all by default)."""


class Session:
    """A model ready to run on the CPU.

    `model` is a `Model` record (its weights are handed over without being copied or serialised), the path of a file, or
    its content. With `float_weights`, weights stored as integers become float once, and not on every run. `threads`
    are those that one operator is spread over, 0 for as many as there are cores. `provider` is what runs it, see
    `find_provider`; what it does not know runs on the CPU.
    """

    def __init__(
        self,
        model: Model | Path | bytes,
        optimization: Optimization = "all",
        *,
        float_weights: bool = False,
        threads: int = 0,
        provider: str = CPU,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = _LEVELS[optimization]
        options.log_severity_level = _FATAL_ONLY
        # Threads that wait busily for the next run would slow down whatever else runs meanwhile, other sessions too.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if float_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # It would quantize float weights between quantized activations, by a grid of its own, where we look at ours.
        left_out = ["WeightBiasQuantization"] if isinstance(model, Model) else []
        self._weights: dict[str, Any] = {}
        if isinstance(model, Model) and provider != CPU and _bytes_of(model) < _LARGEST_PIECE:
            # Some providers compile the model, and do not find weights that lie beside it.
            self._session = _start(bytes(model.to_proto().SerializeToString()), options, left_out, provider)
        elif isinstance(model, Model):
            with ExitStack() as files:
                content = _handed_over(model, options, self._weights, files, folds=optimization != "off")
                self._session = _start(content, options, left_out, provider)
        else:
            self._session = _start(str(model) if isinstance(model, Path) else model, options, left_out, provider)
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        first = [i.shape[0] for i in self._session.get_inputs() if i.shape]
        # How many samples it takes at a time, None for any.
        self.samples = next((size for size in first if isinstance(size, int) and size > 0), None)

    def fitting(self, feeds: Feeds) -> Feeds:
        """As many of the samples as it takes at a time; what is no list of samples as a whole."""
        return {name: value[: self.samples] if np.ndim(value) else value for name, value in feeds.items()}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None, seconds: float | None = None) -> dict[str, Array]:
        """Run once, for so many `seconds` at most; returns the named outputs (all by default).

        Raises:
            ModelError: onnxruntime cannot, or needs longer: a loop may have any number of turns.
        """
        names = list(outputs or self.outputs)
        options = onnxruntime.RunOptions()
        try:
            with _ended_after(options, seconds):
                values = self._session.run(names, dict(feeds), options)
        except Exception as error:
            if options.terminate:
                raise EndlessRunError(
                    f"the model does not end within {seconds:.0f} s on a few samples: it may hold a loop without end; "
                    f"set {FACTOR}=10 to wait longer"
                ) from error
            raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


@contextmanager
def _ended_after(options: Any, seconds: float | None) -> Iterator[None]:
    """Let a run that lasts longer end between two of its nodes."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def trial_seconds(model: Model, feeds: Feeds) -> float | None:
    """How long a run on a few samples may take: far longer than any net of that size does.

    None where there is no loop, which alone may have no end: a slow processor takes what it takes.
    """
    inner = (within for node in model.nodes for within, _ in nodes_within(node))
    if not any(node.op_type in _LOOPS for node in (*model.nodes, *inner)):
        return None
    weights, samples = (sum(value.nbytes for value in values.values()) for values in (model.weights, feeds))
    return allowed(_TRIAL_SECONDS + weights // _WEIGHTS_PER_SECOND + samples // _SAMPLES_PER_SECOND)


def median_latency(sessions: Sequence[Runnable], feeds: Feeds, seconds: float = 1.0) -> list[Median]:
    """Median seconds per run of each session on the same feeds; see `median_seconds`."""
    return median_seconds([partial(session.run, feeds) for session in sessions], seconds)


def optimized(model: Path | bytes, optimization: Optimization = "all") -> onnx.ModelProto:
    """The graph that onnxruntime runs after its optimizations.

    Raises:
        ModelError: it cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.graph_optimization_level = _LEVELS[optimization]
    with temporary_folder() as folder:
        path = folder / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        # Otherwise weights beyond protobuf's 2 GB could not be written.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        _start(str(model) if isinstance(model, Path) else model, options)
        return onnx.load(path)


def fused_operators(model: Path) -> Counter[str]:
    """How often each operator stands in the graph that onnxruntime runs after all its optimizations."""
    return Counter(node.op_type for node in optimized(model).graph.node)


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a result is."""
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "numpy": np.__version__}


def find_provider(name: str) -> tuple[str, dict[str, str]]:
    """What onnxruntime calls a provider, and its options: `name` is "cpu", "cuda", "openvino:GPU" and the like.

    Raises:
        ConfigError: the installed onnxruntime does not have it.
    """
    kind, _, device = name.lower().partition(":")
    check(kind != CPU or name == CPU, "--provider", "cpu, without a device", name)
    known = {one.removesuffix(_ENDING).lower(): one for one in onnxruntime.get_available_providers()}
    check(kind in known, "--provider", f"{either(tuple(known))}, which the installed onnxruntime has", name)
    options = dict(_EXACT.get(kind, {}))
    if device:
        options[_DEVICES.get(kind, "device_id")] = device.upper() if kind in _DEVICES else device
    return known[kind], options


def placed(model: Model, feeds: Feeds, provider: str) -> Counter[tuple[str, str]]:
    """How many nodes of the graph that a provider is given run where: (operator, provider's name) -> nodes.

    Cost: a run that is written down node by node. What a provider compiles into one counts as one. Nothing is found out
    about a model that does not fit in one piece.

    Raises:
        ModelError: the provider cannot run it.
    """
    if _bytes_of(model) >= _LARGEST_PIECE:
        return Counter()
    with temporary_folder() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        session = _start(bytes(model.to_proto().SerializeToString()), options, (), provider)
        try:
            session.run(None, dict(feeds))
        except Exception as error:
            raise ModelError(f"--provider {provider} cannot run the model: {_first_line(error)}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str]] = {}
    for event in events:
        arguments = event.get("args", {})
        if "provider" in arguments and event["name"].endswith("_kernel_time"):
            found[event["name"]] = arguments["op_name"], arguments["provider"].removesuffix(_ENDING).lower()
    return Counter(found.values())


def _bytes_of(model: Model) -> int:
    return sum(value.nbytes for value in model.weights.values())


def _start(source: bytes | str, options: Any, left_out: Sequence[str] = (), provider: str = CPU) -> Any:
    """A session without the optimizations `left_out`."""
    name, settings = find_provider(provider)
    wanted = [(name, settings), "CPUExecutionProvider"] if provider != CPU else [name]
    try:
        # Its fallback would print to stdout, and try again with the same provider.
        session = onnxruntime.InferenceSession(
            source, options, providers=wanted, enable_fallback=0, disabled_optimizers=list(left_out)
        )
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise ConfigError(
            f"--provider {provider}: onnxruntime has it, but it does not start here: a driver or a library of it is "
            f"missing; install these, or leave out --provider"
        )
    return session


def _handed_over(model: Model, options: Any, alive: dict[str, Any], files: ExitStack, *, folds: bool) -> bytes:
    """The graph of a model whose weights are given to `options`.

    What is to live as long as the session is added to `alive`, what files it is made with to `files`.
    onnxruntime copies arrays that it is given, and may hold each of them once more, rearranged. Large models are spared
    both: arrays stay where they are, initializers that it believes to lie in a file of zeros. Where it computes with
    constants before it runs (`folds`) it would read the zeros, so there only those stay that do lie in a file.
    """
    skeleton, weights = model.plain_skeleton(), model.weights
    large = sum(value.nbytes for value in weights.values()) > LARGE
    if large:
        options.add_session_config_entry("session.disable_prepacking", "1")
    staying = {n: value for n, value in weights.items() if value.nbytes >= HUGE} if large and not folds else {}
    places = {n: place for n, value in weights.items() if (place := place_of(value)) is not None} if large else {}
    if staying:
        alive |= (kept := _ort_values(staying))
        for name, value in kept.items():
            options.add_initializer(name, value)
        folder = files.enter_context(temporary_folder())
        with (folder / "zeros").open("wb") as file:
            file.truncate(max(value.nbytes for value in staying.values()))
        skeleton = _in_files(skeleton, weights, folder, dict.fromkeys(staying, ("zeros", 0)), options)
    elif places:
        folder = Counter(path.parent for path, _ in places.values()).most_common(1)[0][0]
        there = {name: (path.name, start) for name, (path, start) in places.items() if path.parent == folder}
        staying = {name: weights[name] for name in there}
        skeleton = _in_files(skeleton, weights, folder, there, options)
        for value in staying.values():
            release(value)
    given = _ort_values({name: value for name, value in weights.items() if name not in staying})
    if given:
        options.add_external_initializers(list(given), list(given.values()))
    alive |= given
    return bytes(skeleton.SerializeToString())


def _in_files(
    skeleton: onnx.ModelProto,
    weights: Mapping[str, Array],
    folder: Path,
    places: Mapping[str, tuple[str, int]],
    options: Any,
) -> onnx.ModelProto:
    """The graph that says of some weights in which file of the folder they lie, and from which byte on."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    for tensor in proto.graph.initializer:
        if tensor.name in places:
            location, offset = places[tensor.name]
            del tensor.external_data[:]
            for key, value in (("location", location), ("offset", offset), ("length", weights[tensor.name].nbytes)):
                tensor.external_data.add(key=key, value=str(value))
    return proto


def _ort_values(weights: Mapping[str, Array]) -> dict[str, Any]:
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
