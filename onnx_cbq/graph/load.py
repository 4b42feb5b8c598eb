"""Read a model from a path or a `ModelProto` into a `Model`, or say in one line why it cannot be done.

External data is memory-mapped, so a model of any size loads in the time it takes to read its graph. A file is only
followed inside the model's own folder. Model-local functions are inlined, and opsets 11 and 12 are raised to 13, the
first in which per-channel DequantizeLinear exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, Model, opset_version

OLDEST_OPSET = 11
LOWEST_OPSET = 13
# What an archive begins with (`emit.coding.container.MAGIC`, which stands above this folder).
_ARCHIVE = b"CBQZ"
LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONTROL_FLOW = ("If", "Loop", "Scan")


def load(source: str | Path | ModelProto) -> Model:
    """The model at `source`, ready to be analysed.

    Raises:
        ModelError: the file is missing, not an ONNX model, of a too old opset, has external data that is missing or
            outside the model's folder, hides layers in control flow, or holds NaN or infinity in a weight.
    """
    if isinstance(source, ModelProto):
        proto, folder, label = source, None, "the model"
    else:
        proto, folder, label = _read(Path(source)), Path(source).resolve().parent, str(source)
    _check_header(proto, label)
    _check_control_flow(proto.graph, label)
    model = _split(proto, folder, label)
    if proto.functions:
        model = Model(onnx.inliner.inline_local_functions(model.skeleton), model.weights)
    _check_weights(model, label)
    return model if model.opset >= LOWEST_OPSET else raise_opset(model, LOWEST_OPSET)


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that hold data of the model at `path`, wherever it refers to them; none where it cannot be read."""
    try:
        proto = _read(path)
    except ModelError:
        return ()
    entries = (entry for tensor in _tensors(proto.graph) for entry in tensor.external_data)
    locations = dict.fromkeys(entry.value for entry in entries if entry.key == "location")
    return tuple(path.resolve().parent / location for location in locations)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """All tensors of a graph, those in attributes and in subgraphs as well."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _read(path: Path) -> ModelProto:
    if path.is_dir():
        raise ModelError(f"{path}: expected an .onnx file, got a folder; give the file in it")
    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the model's path") from None
    except DecodeError:
        with path.open("rb") as file:
            archived = file.read(len(_ARCHIVE)) == _ARCHIVE
        what = "an archive; make it a model with onnx-cbq restore" if archived else None
        raise ModelError(f"{path}: {what or 'not an ONNX model, or cut short; export or copy it again'}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def _check_header(proto: ModelProto, label: str) -> None:
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{label}: not an ONNX model: it has no nodes; export or copy it again")
    opset = opset_version(proto)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{label}: opset {opset} is too old, expected {OLDEST_OPSET} or later; export it again, "
            f"or raise it with onnx.version_converter"
        )


def _check_control_flow(graph: GraphProto, label: str) -> None:
    for node in graph.node:
        if node.op_type in CONTROL_FLOW and any(n.op_type in LAYER_OPERATORS for n in _nested_nodes(node)):
            raise ModelError(
                f"{label}: node {node.name or node.output[0]!r} ({node.op_type}) has layers in its branches, which "
                f"cannot be quantized; export the model without control flow (trace it with a fixed path)"
            )


def _nested_nodes(node: NodeProto) -> Iterator[NodeProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from _nested_nodes(inner)


def _split(proto: ModelProto, folder: Path | None, label: str) -> Model:
    """Skeleton and weights; protobuf finds some damage only when a field is read, so all that matter are read here."""
    try:
        model = Model.from_proto(proto, dict(_external_data(proto.graph, folder, label)))
        for tensor in proto.graph.initializer:
            model.constant(tensor.name)
        texts = [text for node in model.nodes for text in (node.name, node.op_type, *node.input, *node.output)]
        # protobuf hands out bytes where text is not UTF-8
        if any(isinstance(text, bytes) for text in (*texts, *model.outputs, *(spec.name for spec in model.inputs))):
            raise ModelError(f"{label}: damaged: a name is not UTF-8 text; export or copy it again")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(
            f"{label}: damaged ({type(error).__name__}: {error}); expected a valid ONNX model; export or copy it again"
        ) from error
    return model


def _external_data(graph: GraphProto, folder: Path | None, label: str) -> Iterator[tuple[str, Array]]:
    for tensor in graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise ModelError(
                f"{label}: initializer {tensor.name!r} has its data in a file; pass the model's path, or load it with "
                f"onnx.load(path)"
            )
        yield tensor.name, _map_tensor(tensor, folder, label)


def _map_tensor(tensor: TensorProto, folder: Path, label: str) -> Array:
    """Memory-map one tensor's external data, after checking where it lies and how large it is."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{label}: external data of {tensor.name!r}"
    path = (folder / fields.get("location", "")).resolve()
    if not fields.get("location") or not path.is_relative_to(folder):
        raise ModelError(f"{where} points outside the model's folder: {fields.get('location')!r}; move it beside it")
    # As it is spelled, too: that is how other libraries look for it.
    if not (path.is_file() and (folder / fields["location"]).is_file()):
        raise ModelError(f"{where} is missing: expected the file {path.name!r} beside the model; copy it there")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size = int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize
    offset, length = int(fields.get("offset", 0)), int(fields.get("length", size))
    if length != size or offset < 0 or offset + length > path.stat().st_size:
        raise ModelError(
            f"{where} does not fit: expected {size} bytes at {offset} of {path.name!r}, "
            f"got {min(length, max(path.stat().st_size - offset, 0))}; copy the file again"
        )
    return np.memmap(path, dtype, "r", offset, tuple(tensor.dims)) if size else np.zeros(tuple(tensor.dims), dtype)


def _check_weights(model: Model, label: str) -> None:
    """Masks may hold infinity; what a layer multiplies with may not."""
    readers = (node for node in model.nodes if node.op_type in (*LAYER_OPERATORS, "BatchNormalization"))
    for name in dict.fromkeys(name for node in readers for name in node.input):
        value = model.constant(name)
        if value is None or not np.issubdtype(value.dtype, np.floating) or np.isfinite(value.sum(dtype=np.float64)):
            continue
        raise ModelError(
            f"{label}: weight {name!r} holds NaN or infinity ({value.size - np.isfinite(value).sum()} of {value.size} "
            f"values); expected finite numbers; export the model again from a healthy checkpoint"
        )


def raise_opset(model: Model, opset: int) -> Model:
    """`model` in a later operator set.

    The converter sees the weights as inputs: it needs their types, not their values.

    Raises:
        ModelError: onnx's version converter cannot do it.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model.skeleton)
    kept = [t for t in skeleton.graph.initializer if t.name not in model.weights]
    stubs = [t for t in skeleton.graph.initializer if t.name in model.weights]
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(kept)
    skeleton.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stubs)
    try:
        converted = onnx.version_converter.convert_version(skeleton, opset)
    except Exception as error:
        raise ModelError(
            f"onnx cannot raise the model from opset {model.opset} to {opset}: {str(error).splitlines()[0]}; "
            f"export it again with opset {opset} or later"
        ) from error
    inputs = [info for info in converted.graph.input if info.name not in model.weights]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(stubs)
    return Model(converted, model.weights)
