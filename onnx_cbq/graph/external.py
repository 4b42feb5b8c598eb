"""Tensors whose data lies in another file: found beside the model, checked, and mapped into memory.

A model names files, so this is where it could make us read what it should not. A file is looked for in the folder that
the user named, and in the real one where that name is a link; never in the working folder. It has to be a regular file
in one of the two, or be reached by a link that itself stands in one of them, as in the cache of a model hub
(`snapshots/x/model.onnx_data -> ../../blobs/y`): a model cannot make a link.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.reading import read_model
from onnx_cbq.graph.tensors import every_tensor
from onnx_cbq.model import Array, can_stand_outside
from onnx_cbq.system.allowance import advice, allowed

# Tensors may share data, but a small file may not stand for many large ones.
_LEAST_TOTAL = 256 << 20
_TIMES_THE_FILES = 8


@dataclass
class _Files:
    """The data files of a model, each mapped once, however many tensors lie in it."""

    folders: tuple[Path, ...]
    label: str
    mapped: dict[Path, Array] = field(default_factory=dict)
    given: int = 0  # bytes of all tensors so far

    def read(self, tensor: TensorProto) -> Array:
        """The bytes of a tensor, uint8, mapped and not read."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{self.label}: external data of {tensor.name!r}"
        size = _bytes_of(tensor, where)
        content = self._map(self._find(fields.get("location", ""), where))
        offset, length = int(fields.get("offset") or 0), int(fields.get("length") or size)
        if length != size or offset < 0 or offset + size > content.size:
            raise ModelError(
                f"{where} does not fit: expected {size} bytes at {offset} of {fields['location']!r}, "
                f"got {max(min(length, content.size - offset), 0)}; copy the file again"
            )
        self._count(size, where)
        return content[offset : offset + size]

    def _find(self, location: str, where: str) -> Path:
        outside = bool(location)
        for folder in self.folders:
            path = folder / location
            if not location or "\0" in location or not _is_inside(path, folder):
                continue
            outside = False
            # As it is spelled: that is how other libraries look for it.
            if os.path.isfile(path):  # noqa: PTH113, False also for what no file can be called
                return path
        if outside or not location:
            raise ModelError(f"{where} points outside the model's folder: {location!r}; move it beside it")
        name = os.path.basename(location)  # noqa: PTH119, it may hold any character
        raise ModelError(f"{where} is missing: expected the file {name!r} beside the model; copy it there")

    def _map(self, path: Path) -> Array:
        if path not in self.mapped:
            size = path.stat().st_size
            self.mapped[path] = np.memmap(path, np.uint8, "r", shape=(size,)) if size else np.zeros(0, np.uint8)
        return self.mapped[path]

    def _count(self, size: int, where: str) -> None:
        self.given += size
        there = sum(content.size for content in self.mapped.values())
        limit = allowed(max(_LEAST_TOTAL, _TIMES_THE_FILES * there))
        if self.given > limit:
            raise ModelError(
                f"{where}: tensors claim {self.given} bytes of files that have {there}, expected at most {limit}; "
                f"{advice(self.given, limit)}"
            )


def take_in(proto: ModelProto, source: Path | None, label: str) -> tuple[ModelProto, Mapping[str, Array]]:
    """The model without data in other files but that of initializers, and these by name, mapped.

    What a Constant node of the graph has in a file becomes an initializer; what subgraphs, functions, attributes and
    sparse tensors have there is read into the protobuf, as are types that numpy does not know.

    Raises:
        ModelError: a file is missing, lies elsewhere, or does not fit; or a tensor of strings lies in one.
    """
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in every_tensor(proto)):
        return proto, {}
    if source is None:
        name = next(t.name for t in every_tensor(proto) if t.data_location == TensorProto.EXTERNAL)
        raise ModelError(
            f"{label}: initializer {name!r} has its data in a file; pass the model's path, or load it with "
            f"onnx.load(path)"
        )
    own = ModelProto()
    own.CopyFrom(proto)
    _hoist_constants(own)
    files = _Files(model_folders(source), label)
    mapped: dict[str, Array] = {}
    for tensor in own.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and can_stand_outside(_dtype(tensor)):
            mapped[tensor.name] = files.read(tensor).view(_dtype(tensor)).reshape(tuple(tensor.dims))
    for tensor in every_tensor(own):
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in mapped:
            content = files.read(tensor).tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
            tensor.raw_data = content
    return own, mapped


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that may hold data of the model at `path`, wherever it refers to them; none where it cannot be read."""
    try:
        proto = read_model(path)
    except ModelError:
        return ()
    tensors = (tensor for tensor in every_tensor(proto) if tensor.data_location == TensorProto.EXTERNAL)
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    locations = dict.fromkeys(entry.value for entry in entries if entry.key == "location")
    return tuple(folder / location for folder in model_folders(path) for location in locations)


def model_folders(source: Path) -> tuple[Path, ...]:
    """Where data of the model may lie: the folder that the user named and, behind a link, that of the file."""
    named = Path(os.path.abspath(source)).parent  # noqa: PTH100, links stay as they are
    return tuple(dict.fromkeys((named, Path(os.path.realpath(source)).parent)))


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in the folder, or reached by a link that is."""
    real = Path(os.path.realpath(folder))
    if Path(os.path.realpath(path)).is_relative_to(real):
        return True
    return os.path.islink(path) and Path(os.path.realpath(path.parent)) == real  # noqa: PTH114, of any characters


def _hoist_constants(proto: ModelProto) -> None:
    """Constant nodes of the graph with data in a file become initializers, which need not be read into memory."""
    outputs = {info.name for info in proto.graph.output}
    moved: list[int] = []
    for index, node in enumerate(proto.graph.node):
        if node.op_type != "Constant" or not node.output or node.output[0] in outputs:
            continue
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_location == TensorProto.EXTERNAL:
                tensor = proto.graph.initializer.add()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                moved.append(index)
    for index in reversed(moved):
        del proto.graph.node[index]


def _dtype(tensor: TensorProto) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _bytes_of(tensor: TensorProto, where: str) -> int:
    """What a tensor takes in a file; four bits of two elements share a byte.

    Raises:
        ModelError: it consists of strings, which have no size, or has a size below 0.
    """
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{where}: strings cannot lie in a file; export the model with them inside")
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{where}: expected sizes of at least 0, got {list(tensor.dims)}; export the model again")
    bits = _BITS.get(tensor.data_type, 8 * _dtype(tensor).itemsize)
    return -(-int(math.prod(tensor.dims)) * bits // 8)


_BITS: dict[int, int] = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}
