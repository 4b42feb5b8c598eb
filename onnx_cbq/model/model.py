"""The model record: an ONNX graph whose weights live beside it, not inside it.

Protobuf cannot serialise more than 2 GB, and copying every weight each time a graph is changed is slow. So a
`Model` keeps two parts:

- `skeleton`: a `ModelProto` with all nodes and the small constants. A weight stands in it as a stub: name, type and
  shape, marked as external data.
- `weights`: initializer name -> read-only array. Arrays are shared between models, never copied; those read from
  external data files are memory-mapped.

`runtime` hands the arrays to onnxruntime without serialising them, so a model with a few initializers replaced costs
no more than the replaced arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_cbq.model.captures import inner_names, seal, unseal
from onnx_cbq.model.names import FreshNames
from onnx_cbq.system.allowance import allowed

Array = npt.NDArray[Any]

# The domain of ONNX's own operators has two names.
STANDARD = ("", "ai.onnx")
# Smaller constants (axes, shapes, scalars) stay inside the protobuf, where graph checks need to see them.
INLINE_BYTES = 1024
# A sparse initializer with its zeros may take so many bytes, or so many times those of its values.
_LEAST_DENSE, _TIMES_THE_VALUES = 256 << 20, 256


@dataclass(frozen=True)
class InputSpec:
    """One graph input: `shape` has an int for a fixed size and None for a dynamic one; None if the rank is unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Model:
    """An ONNX model as a skeleton and its weights (see the module docstring). Neither part is ever written to."""

    skeleton: ModelProto
    weights: Mapping[str, Array]

    @staticmethod
    def from_proto(proto: ModelProto, external: Mapping[str, Array] | None = None) -> Model:
        """Split `proto`. `external` gives the values of initializers whose data lies outside the protobuf.

        Sparse initializers become dense, and those that nothing reads are left out.

        Raises:
            ValueError: a tensor is damaged.
        """
        weights: dict[str, Array] = dict(external or {})
        initializers: list[TensorProto] = []
        nodes = [seal(node) for node in proto.graph.node]
        read = {name for node in nodes for name in node.input} | {info.name for info in proto.graph.output}
        for tensor in (*proto.graph.initializer, *map(_dense, proto.graph.sparse_initializer)):
            if tensor.name not in read:
                weights.pop(tensor.name, None)
            elif tensor.name in weights and not is_weight(weights[tensor.name]):
                initializers.append(numpy_helper.from_array(weights.pop(tensor.name), tensor.name))
            elif tensor.name in weights:
                initializers.append(stub(tensor.name, weights[tensor.name]))
            elif _is_large(tensor):
                weights[tensor.name] = read_only(numpy_helper.to_array(tensor))
                initializers.append(stub(tensor.name, weights[tensor.name]))
            else:
                initializers.append(tensor)
        return Model(_copy_without_data(proto, initializers, nodes), weights)

    @staticmethod
    def from_skeleton(skeleton: ModelProto, weights: Mapping[str, Array]) -> Model:
        """A model of a skeleton that others wrote, whose nodes with branches are to be sealed (see `captures`)."""
        nodes = [seal(node) for node in skeleton.graph.node]
        skeleton.graph.ClearField("node")
        skeleton.graph.node.extend(nodes)
        return Model(skeleton, weights)

    def plain_skeleton(self) -> ModelProto:
        """The skeleton as ONNX says it, branches included; not to be written to."""
        return unseal(self.skeleton)

    def to_proto(self) -> ModelProto:
        """One self-contained `ModelProto`, every initializer in `raw_data`."""
        initializers = [
            numpy_helper.from_array(np.asarray(self.weights[t.name]), t.name) if t.name in self.weights else t
            for t in self.skeleton.graph.initializer
        ]
        return unseal(_copy_without_data(self.skeleton, initializers))

    def with_constants(self, values: Mapping[str, Array]) -> Model:
        """The same graph with some initializers replaced by arrays of the same type and shape."""
        inline = {name for name in values if name not in self.weights}
        weights = {**self.weights, **{n: read_only(v) for n, v in values.items() if n not in inline}}
        if not inline:
            return replace(self, weights=weights)
        initializers = [
            numpy_helper.from_array(np.asarray(values[t.name]), t.name) if t.name in inline else t
            for t in self.skeleton.graph.initializer
        ]
        return Model(_copy_without_data(self.skeleton, initializers), weights)

    def with_graph(
        self,
        nodes: Iterable[NodeProto] = (),
        constants: Mapping[str, Array] | None = None,
        inputs: Iterable[onnx.ValueInfoProto] = (),
        outputs: Iterable[str] | None = None,
    ) -> Model:
        """The same model with nodes, constants and inputs added; `outputs` replaces the graph outputs by name.

        Nodes that then make nothing that is wanted are left out: onnxruntime would run them all the same.
        """
        skeleton = ModelProto()
        skeleton.CopyFrom(self.skeleton)
        skeleton.graph.node.extend(nodes)
        skeleton.graph.input.extend(inputs)
        weights = dict(self.weights)
        for name, value in (constants or {}).items():
            if is_weight(value):
                weights[name] = read_only(value)
                skeleton.graph.initializer.append(stub(name, value))
            else:
                skeleton.graph.initializer.append(numpy_helper.from_array(value, name))
        if outputs is not None:
            infos = {info.name: info for info in self.skeleton.graph.output}
            chosen = [infos.get(name, helper.make_empty_tensor_value_info(name)) for name in outputs]
            del skeleton.graph.output[:]
            skeleton.graph.output.extend(chosen)
            _drop_idle_nodes(skeleton)
            kept = {t.name for t in skeleton.graph.initializer}
            weights = {name: value for name, value in weights.items() if name in kept}
        return Model(skeleton, weights)

    def without_idle_inputs(self) -> Model:
        """The same model without inputs that nothing reads."""
        skeleton = ModelProto()
        skeleton.CopyFrom(self.skeleton)
        read = {name for node in skeleton.graph.node for name in node.input}.union(self.outputs)
        del skeleton.graph.input[:]
        skeleton.graph.input.extend(info for info in self.skeleton.graph.input if info.name in read)
        return Model(skeleton, self.weights)

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes in topological order."""
        return list(self.skeleton.graph.node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return opset_version(self.skeleton)

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The graph inputs; initializers are not among them."""
        return tuple(_input_spec(info) for info in self.skeleton.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph outputs."""
        return tuple(info.name for info in self.skeleton.graph.output)

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        """Tensor name -> the node that computes it."""
        return {name: node for node in self.skeleton.graph.node for name in node.output if name}

    @cached_property
    def consumers(self) -> Mapping[str, list[NodeProto]]:
        """Tensor name -> the nodes that read it, in order; a node that reads it twice stands once."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.skeleton.graph.node:
            for name in dict.fromkeys(n for n in node.input if n):
                readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def _inline(self) -> Mapping[str, TensorProto]:
        return {t.name: t for t in self.skeleton.graph.initializer if t.name not in self.weights}

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer."""
        return name in self.weights or name in self._inline

    def constant(self, name: str) -> Array | None:
        """The value of an initializer, or None if `name` is not one."""
        if name in self.weights:
            return self.weights[name]
        tensor = self._inline.get(name)
        return None if tensor is None else read_only(numpy_helper.to_array(tensor))

    def weight(self, name: str) -> Array:
        """The value of an initializer that must be there.

        Raises:
            KeyError: it is not.
        """
        value = self.constant(name)
        if value is None:
            raise KeyError(name)
        return value

    def fresh_names(self) -> FreshNames:
        """A source of tensor names that this model does not use yet."""
        graph = self.skeleton.graph
        used = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        used |= {name for node in graph.node for name in (*node.input, *node.output)}
        return FreshNames(used.union(*(inner_names(node) for node in graph.node)))


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; strings are decoded."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def opset_version(proto: ModelProto) -> int:
    """Version of the default operator set of `proto`, 0 if it imports none."""
    return next((int(o.version) for o in proto.opset_import if o.domain in STANDARD), 0)


def can_stand_outside(dtype: np.dtype[Any]) -> bool:
    """Whether onnxruntime takes such an array without a copy: bfloat16, int4, strings and the like it does not."""
    return dtype.isbuiltin == 1 and dtype.kind in "biuf"


def is_weight(value: Array) -> bool:
    """Whether an array is kept outside the skeleton."""
    return value.nbytes >= INLINE_BYTES and can_stand_outside(value.dtype)


def stub(name: str, value: Array) -> TensorProto:
    """A `TensorProto` that stands for `value`: type and shape only, the data marked as external."""
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "weights"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def read_only(value: Array) -> Array:
    """`value` as a contiguous array that cannot be written to; the caller's array keeps its own flags."""
    view = np.ascontiguousarray(value).view() if value.ndim else value.copy()
    view.flags.writeable = False
    return view


def _drop_idle_nodes(proto: ModelProto) -> None:
    """Remove nodes and constants that no output depends on."""
    wanted = {info.name for info in proto.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(proto.graph.node):
        if wanted.isdisjoint(node.output):
            continue
        wanted.update(node.input)
        kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(kept))
    initializers = [t for t in proto.graph.initializer if t.name in wanted]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(initializers)


def _copy_without_data(
    proto: ModelProto, initializers: Iterable[TensorProto], nodes: Iterable[NodeProto] | None = None
) -> ModelProto:
    """Copy what decides the outputs, with other initializers and nodes; the source's data is never copied.

    Before IR version 4 every initializer had to be listed as a graph input too; here it never is.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    copy = ModelProto(
        ir_version=max(proto.ir_version, 4),
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
    )
    copy.opset_import.extend(proto.opset_import)
    copy.metadata_props.extend(proto.metadata_props)
    copy.functions.extend(proto.functions)
    graph = proto.graph
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node if nodes is None else nodes)
    copy.graph.input.extend(info for info in graph.input if info.name not in constants)
    copy.graph.output.extend(graph.output)
    for info in (*copy.graph.input, *copy.graph.output):
        for size in info.type.tensor_type.shape.dim:
            # Some write -1 for any; onnx's shape inference may end the process at it.
            if size.dim_value < 0:
                size.ClearField("dim_value")
    copy.graph.initializer.extend(initializers)
    return copy


def _input_spec(info: onnx.ValueInfoProto) -> InputSpec:
    tensor = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype(np.float32)
    if not tensor.HasField("shape"):
        return InputSpec(info.name, dtype, None)
    sizes = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in tensor.shape.dim)
    return InputSpec(info.name, dtype, sizes)


def _is_large(tensor: TensorProto) -> bool:
    """`is_weight`, before there is an array."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return False
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return can_stand_outside(dtype) and math.prod(tensor.dims) * dtype.itemsize >= INLINE_BYTES


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """A sparse tensor with its zeros; its values stand at linear positions, or at one index per axis."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    shape, name = tuple(sparse.dims), sparse.values.name
    size, limit = math.prod(shape) * values.itemsize, allowed(max(_LEAST_DENSE, _TIMES_THE_VALUES * values.nbytes))
    if min(shape, default=1) < 0 or size > limit:
        raise ValueError(f"sparse initializer {name!r} of shape {list(shape)}, expected at most {limit} bytes")
    dense = np.zeros(shape, values.dtype)
    if places.ndim == 2:
        places = np.ravel_multi_index(tuple(places.T), shape)
    dense.reshape(-1)[places] = values
    return numpy_helper.from_array(dense, name)
