"""Whole classifiers, composed at random; each runs in onnxruntime and gives finite scores that differ by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import assume
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnx_cbq.model import Array
from tests.generator import activations, blocks, heads, layers, moving, pooling
from tests.generator.layers import Block
from tests.generator.net import FOLDED, NODE_NAMES, TENSOR_NAMES, Draw, Net, Value

COUNT = 32
OPSETS = (17, 13, 11, 9, 7, 8, 10, 12, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26)
# With these more than one output could hold the class scores.
SEVERAL = frozenset(("a second head", "a feature as an output", "the same scores twice", "an input as an output"))
_SIZE = 8
_DTYPES: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16, "double": np.float64}
# Feature -> (kinds of value that it takes, what adds it, how often beside the others).
BLOCKS: Mapping[str, tuple[str, Block, int]] = {
    "layer and activation": ("channels tokens vector", blocks.perceptron, 8),
    "Conv": ("channels", layers.conv, 3),
    "ConvTranspose": ("channels", layers.conv_transpose, 1),
    "Gemm": ("vector", layers.gemm, 3),
    "MatMul": ("tokens vector", layers.matmul, 2),
    "MatMul from the left": ("static tokens,static sequence", layers.matmul_left, 1),
    "Einsum": ("tokens vector", layers.einsum, 1),
    "com.microsoft FusedConv": ("image", layers.fused_conv, 1),
    "com.microsoft FusedMatMul": ("tokens vector", layers.fused_matmul, 1),
    "com.microsoft FusedGemm": ("vector", layers.fused_gemm, 1),
    "activation": ("channels tokens vector", activations.activation, 4),
    "PRelu": ("channels tokens vector", activations.prelu, 1),
    "Softmax inside": ("channels tokens vector", activations.softmax, 1),
    "pooling": ("channels", pooling.pool, 2),
    "global pooling": ("channels", pooling.global_pool, 1),
    "affine": ("channels tokens vector", pooling.affine, 2),
    "BatchNormalization": ("channels", pooling.batch_norm, 2),
    "normalization": ("channels tokens", pooling.normalize, 2),
    "Pad": ("channels", moving.pad, 1),
    "Slice": ("channels", moving.slices, 1),
    "Gather": ("channels tokens vector", moving.gather, 1),
    "Split and Concat": ("channels tokens vector", moving.split_concat, 1),
    "Concat with a constant": ("channels tokens vector", moving.concat_constant, 1),
    "Transpose": ("channels", moving.transpose_back, 1),
    "channel shuffle": ("channels", moving.shuffle, 1),
    "Reshape by Shape": ("channels", moving.reshape_by_shape, 1),
    "Expand or Tile": ("channels tokens vector", moving.expand, 1),
    "Where with a mask": ("channels tokens vector", moving.where_mask, 1),
    "DepthToSpace": ("image", moving.depth_space, 1),
    "Resize": ("channels", moving.resize, 1),
    "CumSum": ("channels tokens vector", moving.cumulative, 1),
    "to tokens": ("channels", moving.to_tokens, 1),
    "to channels": ("static tokens", moving.to_channels, 1),
    "to a vector": ("channels tokens", heads.to_vector, 1),
    "residual": ("channels tokens vector", blocks.residual, 3),
    "two branches": ("channels tokens vector", blocks.two_branches, 2),
    "squeeze and excite": ("channels", blocks.squeeze_excite, 1),
    "attention": ("tokens", blocks.attention, 3),
    "recurrence": ("tokens", blocks.recurrent, 2),
    "If": ("channels tokens vector", blocks.if_branch, 1),
    "Loop": ("channels tokens vector", blocks.loop, 1),
    "a function of the model": ("channels tokens vector", blocks.function_block, 1),
    "com.microsoft SkipLayerNormalization": ("tokens", blocks.skip_normalization, 1),
    "gated half": ("channels tokens vector", blocks.gated_half, 1),
}


@dataclass(frozen=True)
class Case:
    """A model, and labelled samples for it.

    Attributes:
        logits: the output to name, where several could hold the class scores.
        features: what it is made of.
        dynamic: inputs have axes but the batch whose size is free.
    """

    model: ModelProto
    inputs: Mapping[str, Array]
    labels: Array
    classes: int
    logits: str | None
    features: frozenset[str]
    dynamic: bool
    fixed_batch: int | None

    def __repr__(self) -> str:
        return f"<a model of {', '.join(sorted(self.features))}>"


def _fits(kinds: str, x: Value) -> bool:
    own = {x.kind}
    own |= {"image"} if x.kind == "channels" and len(x.space) == 2 else set()
    if not x.dynamic:
        own |= {"static tokens"} if x.kind == "tokens" else set()
        own |= {"static sequence"} if x.kind == "channels" and len(x.space) == 1 else set()
    return bool(own & ({kinds} | set(kinds.split(",")) | (set(kinds.split()) if "static" not in kinds else set())))


def _input(net: Net) -> Value:
    """The first input: an image, a sequence, a volume, tokens, a vector, or whole numbers that are looked up."""
    kind = net.pick(("image", "vector", "sequence", "tokens", "image", "volume", "channels last", "numbers"))
    dynamic = kind in ("image", "sequence", "tokens")
    dynamic = dynamic and net.uses("dynamic tokens" if kind == "tokens" else "dynamic size", 25)
    name = {"plain": "x", "brackets": "x[0]", "keras": "input:0"}.get(net.tensor_names, "x")
    batch = net.pick(("N", "batch size", None))
    random = net.random
    samples: Array
    if kind == "numbers":
        length, width = 6, net.between(3, 6)
        samples = random.integers(0, 10, (COUNT, length))
        net.add_input(name, [batch, length], net.pick((np.int64, np.int32)), samples)
        table = net.const(net.numbers((10, width)), base="embedding")
        return net.value(Value("", (length, width), "tokens"), net.op("Gather", [table, name], axis=0))
    sizes = {
        "image": (net.between(1, 4), _SIZE, _SIZE),
        "channels last": (_SIZE, _SIZE, 3),
        "sequence": (net.between(2, 5), 12),
        "volume": (2, 4, 4, 4),
        "tokens": (6, net.between(4, 8)),
        "vector": (net.between(4, 12),),
    }[kind]
    declared: list[int | str | None] = [batch, *sizes]
    if dynamic and kind == "tokens":
        declared[1] = "T"
    elif dynamic:
        declared[2:] = ["H", "W"][: len(sizes) - 1]
    samples = random.standard_normal((COUNT, *sizes))
    dtype = net.dtype
    if net.uses("input of another type", 12):
        dtype = net.pick((np.uint8, np.float64 if net.dtype == np.float32 else np.float32))
    if dtype == np.uint8:
        samples = np.clip(samples * 50 + 128, 0, 255)
    source = net.add_input(name, declared, dtype, samples)
    if dtype != net.dtype:
        source = net.op("Cast", [source], to=helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype)))
    if dtype == np.uint8:
        source = net.op("Div", [net.op("Sub", [source, net.const(128.0)]), net.const(50.0)])
    if kind == "channels last":
        source = net.op("Transpose", [source], perm=[0, 3, 1, 2])
        sizes = (3, _SIZE, _SIZE)
    values = {"tokens": "tokens", "vector": "vector"}
    return net.value(Value("", sizes, values.get(kind, "channels"), dynamic), source)


def _second_input(net: Net, x: Value) -> Value:
    """A vector beside a vector."""
    size = net.between(2, 4)
    samples = net.random.standard_normal((COUNT, size))
    side = net.add_input(
        "side", [net.inputs[0].type.tensor_type.shape.dim[0].dim_param or None, size], net.dtype, samples
    )
    return net.value(x, net.op("Concat", [x.name, side], axis=1), (x.channels + size,))


def _settings(net: Net) -> None:
    """How names, constants and weights are written."""
    tensors = [name for name in TENSOR_NAMES if f"tensor names {name}" not in net.off]
    nodes = [name for name in NODE_NAMES if f"node names {name}" not in net.off]
    net.tensor_names = net.pick(tensors) if net.chance(60) else "plain"
    net.node_names = net.pick(nodes)
    net.features |= {f"tensor names {net.tensor_names}", f"node names {net.node_names}"}
    net.constants_as = net.pick(("initializer", "initializer", "node", "mixed"))
    ways = [way for way in FOLDED if f"weight behind {way}" not in net.off]
    net.folded = tuple(ways) if net.chance(35) else ()
    net.fixed_batch = net.pick((1, 4)) if net.uses("fixed batch", 15) else None


def _body(net: Net, x: Value, blocks_wanted: int) -> Value:
    for _ in range(blocks_wanted):
        fitting = [name for name, (kinds, _, _) in BLOCKS.items() if _fits(kinds, x) and name not in net.off]
        weighted = [name for name in fitting for _ in range(BLOCKS[name][2])]
        name = net.pick(weighted)
        net.features.add(f"block {name}")
        x = BLOCKS[name][1](net, x)
    return x


def build(draw: Draw, off: frozenset[str] = frozenset()) -> Case | None:
    """A classifier with samples, made of what `draw` chooses; features in `off` are not used.

    None where onnxruntime does not run it, or its scores say nothing.
    """
    opsets = [version for version in OPSETS if f"opset {version}" not in off]
    kinds = [name for name in _DTYPES if f"all in {name}" not in off]
    opset = opsets[draw(0, len(opsets) - 1)]
    kind = (["float32"] * 12 + kinds)[draw(0, 11 + len(kinds))]
    net = Net(draw, opset, _DTYPES[kind], off, np.random.default_rng(draw(0, 2**20)))
    net.features |= {f"opset {opset}", f"all in {kind}"}
    _settings(net)
    x = _body(net, _input(net), net.between(1, 5))
    if x.kind == "vector" and net.uses("a second input", 40):
        x = _second_input(net, x)
    classes = net.between(2, 4)
    scores = heads.ending(net, heads.classifier(net, x, classes))
    outputs = [scores.name, *heads.further_outputs(net, scores)]
    heads.idle_nodes(net)
    logits = scores.name if net.features & SEVERAL or net.chance(10) else None
    model = _finish(net, list(dict.fromkeys(outputs)))
    if not _runs(model, net, scores):
        return None
    labels = np.arange(COUNT) % classes
    dynamic = bool(net.features & {"dynamic size", "dynamic tokens"})
    return Case(model, net.feeds, labels, classes, logits, frozenset(net.features), dynamic, net.fixed_batch)


@st.composite
def cases(draw: st.DrawFn, off: frozenset[str] = frozenset()) -> Case:
    """The same, as a strategy."""
    case = build(lambda low, high: draw(st.integers(low, high)), off)
    assume(case is not None)
    assert case is not None
    return case


def _finish(net: Net, outputs: list[str]) -> ModelProto:
    """The whole model; types and shapes of outputs are those that onnx infers, with names where they are free."""
    graph = helper.make_graph(
        net.nodes,
        "generated",
        net.inputs,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        net.initializers,
    )
    graph.sparse_initializer.extend(net.sparse)
    imports = [helper.make_opsetid("", net.opset), *(helper.make_opsetid(d, v) for d, v in net.imports.items())]
    if net.uses("unknown domain imported", 10):
        imports.append(helper.make_opsetid("pkg.unknown", 2))
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=10 if net.opset >= 21 else 8, functions=net.functions
    )
    if net.opset < 9 or net.chance(8):
        _list_initializers(model)
    if net.uses("metadata", 20):
        helper.set_model_props(model, {"names": "{0: 'a[b]', 1: 'ü'}", "stride": "32", "license": "x"})
    return _declared(model)


def _list_initializers(model: ModelProto) -> None:
    """Before IR version 4 every initializer stands among the inputs too."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _declared(model: ModelProto) -> ModelProto:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001  # onnx raises what it likes; the outputs then carry no type
        inferred = model
    kinds = {info.name: info for info in (*inferred.graph.output, *inferred.graph.value_info)}
    for info in model.graph.output:
        found = kinds.get(info.name)
        if found is not None and found.type.tensor_type.elem_type != TensorProto.UNDEFINED:
            info.type.CopyFrom(found.type)
    return model


def session(model: ModelProto, *, plain: bool = False) -> onnxruntime.InferenceSession:
    """A session with one thread, quiet."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(found: onnxruntime.InferenceSession, feeds: Mapping[str, Array], batch: int | None) -> dict[str, Array]:
    """All outputs for all samples, `batch` at a time where the model insists on it."""
    names = [info.name for info in found.get_outputs()]
    count = len(next(iter(feeds.values())))
    if batch is None:
        return dict(zip(names, found.run(None, dict(feeds)), strict=True))
    parts = [
        found.run(None, {name: value[i : i + batch] for name, value in feeds.items()}) for i in range(0, count, batch)
    ]
    return {name: np.concatenate([np.atleast_1d(p[i]) for p in parts]) for i, name in enumerate(names)}


def _runs(model: ModelProto, net: Net, scores: Value) -> bool:
    """Whether onnxruntime runs it, optimized to the same, and its scores are finite and differ by sample."""
    try:
        fused = run(session(model), net.feeds, net.fixed_batch)
        plain = run(session(model, plain=True), net.feeds, net.fixed_batch)
    except Exception:  # noqa: BLE001  # whatever onnxruntime raises: it does not run this model
        return False
    if fused[scores.name].shape[:2] != (COUNT, scores.shape[0]):
        return False
    for name, value in plain.items():
        if not np.issubdtype(value.dtype, np.floating):
            continue
        if not np.isfinite(value).all() or np.abs(value).max(initial=0.0) > 1e4:
            return False
        tolerance = 2e-2 if net.dtype == np.float16 else 1e-4
        if fused[name].shape != value.shape or not np.allclose(fused[name], value, rtol=tolerance, atol=tolerance):
            return False
    return bool(plain[scores.name].astype(np.float64).std(axis=0).max() > 1e-3)
