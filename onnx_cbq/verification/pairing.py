"""The layers of a float model and of a quantized file of any tool, side by side, with the tensors to compare.

The float model is normalised: batch norms are folded, and so on. What a file left unfolded stands behind its layer, so
of the tensors there the one counts that is most like the float layer's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Layers, Use
from onnx_cbq.runtime import Feeds, Session
from onnx_cbq.targets.reading import DEQUANTIZE, QUANTIZE, Product, QdqFile
from onnx_cbq.verification.alignment import kept_channels
from onnx_cbq.verification.matching import Site, match_sites

_AFFINE = ("Add", "Mul", "Sub", "Div", "BatchNormalization")


@dataclass(frozen=True)
class Pair:
    """A layer of the float model, and what has become of it.

    Attributes:
        use: where the float model uses its weight.
        product: the node of the file.
        read: the tensor that the product multiplies with its weight.
        made: the tensor of the file that stands for `use.output`.
        inputs, outputs: the channels of what is multiplied and of what is made that the file still has, ascending; None
            for all.
    """

    layer: Layer
    use: Use
    product: Product
    read: str
    made: str
    inputs: Array | None = None
    outputs: Array | None = None

    @property
    def input_axis(self) -> int:
        """The axis of the channels of what is multiplied with the weight."""
        if self.layer.operator in ("Conv", "ConvTranspose"):
            return 1
        return -1 if self.use.weight_index == 1 else -2

    @property
    def is_direct(self) -> bool:
        """Whether the product itself makes the output, and nothing that was left unfolded behind it."""
        return self.made == str(self.product.node.output[0])

    @property
    def groups(self) -> int:
        """Of the file's convolution."""
        return self.product.groups if self.layer.operator in ("Conv", "ConvTranspose") else 1

    def of_inputs(self, values: Array) -> Array:
        """What the float model multiplies, in the channels that the file has."""
        return values if self.inputs is None else np.take(values, self.inputs, self.input_axis)

    def of_outputs(self, values: Array) -> Array:
        """What the float model makes, in the channels that the file has."""
        return values if self.outputs is None else np.take(values, self.outputs, self.use.channel_axis)

    def with_inputs(self, values: Array, own: Array) -> Array:
        """What the float model multiplies, with other numbers in the channels that the file has."""
        return _put(values, self.inputs, self.input_axis, own)

    def with_outputs(self, values: Array, own: Array) -> Array:
        """What the float model makes, with other numbers in the channels that the file has; the others are their means.

        A channel that was cut out is a constant, which the layers behind have taken into their biases.
        """
        if self.outputs is None:
            return own.reshape(values.shape)
        axis = self.use.channel_axis
        means = values.mean(axis=tuple(i for i in range(values.ndim) if i != axis), keepdims=True)
        return _put(np.broadcast_to(means, values.shape), self.outputs, axis, own)

    def own_rows(self, rows: Array) -> Array:
        """Of rows of the float layer, [channels, weights], those that the file has."""
        rows = rows if self.outputs is None else rows[self.outputs]
        if self.inputs is None or self.layer.groups > 1:
            return rows
        channels = self.layer.weight_shape[1] if self.layer.operator == "Conv" else rows.shape[1]
        return rows.reshape(len(rows), channels, -1)[:, self.inputs].reshape(len(rows), -1)

    def rows_of(self, values: Array) -> Array | None:
        """The file's weight, with its channels first, as `own_rows` has the float one; None for another."""
        axis, layer = replace(self.product, codes=values).channel_axis, self.layer
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        wanted = self.own_rows(np.broadcast_to(np.zeros(1), (layer.channels, layer.weights_per_channel)))
        return rows if rows.shape == wanted.shape else None


def _put(values: Array, chosen: Array | None, axis: int, own: Array) -> Array:
    if chosen is None:
        return own.reshape(values.shape)
    found = np.moveaxis(np.array(values), axis, 0)
    found[chosen] = np.moveaxis(own, axis, 0)
    return np.moveaxis(found, 0, axis)


@dataclass(frozen=True)
class Pairs:
    """All pairs in the order of the float model, and the layers and products that have no counterpart.

    Recurrent layers and tables are no products, and neither paired nor missed.
    """

    model: Model
    file: QdqFile
    pairs: tuple[Pair, ...]
    alone: tuple[str, ...]
    alone_in_file: tuple[str, ...]

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """What the float model is to give: the input and the output of every layer."""
        return tuple(dict.fromkeys(name for p in self.pairs for name in (p.use.activation, p.use.output)))

    @cached_property
    def file_tensors(self) -> tuple[str, ...]:
        """The same tensors of the file."""
        return tuple(dict.fromkeys(name for p in self.pairs for name in (p.read, p.made)))

    def weight(self, pair: Pair) -> Array:
        """The weight of a product as the file computes it. Cost: it is dequantized anew."""
        name = pair.product.node.input[pair.product.index]
        known = self.file.model.constant(name)
        if known is not None:
            return known
        return Session(self.file.model.with_graph(outputs=[name]).without_idle_inputs(), "off").run({})[name]


def find_pairs(model: Model, layers: Layers, file: QdqFile, example: Feeds) -> Pairs:
    """Match the layers of a normalised float model with the products of a file.

    Cost: a run of both on the example.

    Raises:
        ModelError: one cannot be run.
    """
    order = {name: i for i, node in enumerate(model.nodes) for name in node.output}
    places = [(layer, use) for layer in layers.products for use in layer.uses]
    places.sort(key=lambda place: order[place[1].output])
    first = [Site(model.producers[u.output].name, u.output, layer.operator, layer.weight_shape) for layer, u in places]
    second = sites(file)
    matched = match_sites(first, second)
    found = [(places[i], file.products[j]) for i, j in matched]
    if not found:
        return Pairs(
            model, file, (), tuple(layer.name for layer in layers.products), tuple(p.name for p in file.products)
        )
    wanted = dict.fromkeys(name for (_, use), _ in found for name in (use.activation, use.output))
    values = Session(model.with_graph(outputs=wanted), "off").run(example)
    candidates = [_behind(file.model, product.node.output[0]) for _, product in found]
    reads = [product.node.input[1 - product.index] for _, product in found]
    theirs = file.model.with_graph(outputs=dict.fromkeys((*(n for names in candidates for n in names), *reads)))
    others = Session(theirs, "off").run(renamed(example, file.model))
    pairs = []
    for ((layer, use), product), names, read in zip(found, candidates, reads, strict=True):
        plain = Pair(layer, use, product, read, names[0])
        try:
            inputs = kept_channels(values[use.activation], others[read], plain.input_axis)
            outputs = kept_channels(values[use.output], others[names[0]], use.channel_axis)
        except ValueError:  # what a file made of another form
            inputs, outputs = None, None
        pair = replace(plain, inputs=inputs, outputs=outputs)
        made = _most_alike(pair.of_outputs(values[use.output]), {name: others[name] for name in names})
        if made is not None:
            pairs.append(replace(pair, made=made))
    known, taken = {pair.layer.name for pair in pairs}, {id(pair.product) for pair in pairs}
    return Pairs(
        model,
        file,
        tuple(pairs),
        tuple(layer.name for layer in layers.products if layer.name not in known),
        tuple(product.name for product in file.products if id(product) not in taken),
    )


def sites(file: QdqFile) -> list[Site]:
    """The products of a file, as they are matched."""
    return [Site(p.node.name, p.node.output[0], p.operator, _weight_shape(file, p)) for p in file.products]


def renamed(feeds: Feeds, model: Model) -> dict[str, Array]:
    """The samples under the names and in the precision that a model has for its inputs, in their order.

    Raises:
        ModelError: it has more inputs, or fewer.
    """
    specs = model.inputs
    if len(specs) != len(feeds):
        raise ModelError(
            f"the quantized model takes {len(specs)} inputs, the float model {len(feeds)}; give two forms of one model"
        )
    values = [feeds[spec.name] for spec in specs] if feeds.keys() == {s.name for s in specs} else feeds.values()
    return {spec.name: _in_precision(value, spec.dtype) for spec, value in zip(specs, values, strict=True)}


def _in_precision(values: Array, dtype: np.dtype[Any]) -> Array:
    """float32 as float16, or the other way round; what is anything else stays as it is."""
    both = np.issubdtype(values.dtype, np.floating) and np.issubdtype(dtype, np.floating)
    return values.astype(dtype) if both else values


def _weight_shape(file: QdqFile, product: Product) -> tuple[int, ...]:
    values = product.codes if product.codes is not None else file.model.constant(product.weight)
    return () if values is None else tuple(values.shape)


def _behind(model: Model, tensor: str) -> list[str]:
    """A tensor, and what constants and batch norms alone make of it; grids between may stand for a Relu."""
    found, last = [tensor], tensor
    while True:
        readers = model.consumers.get(last, [])
        if len(readers) != 1:
            return found
        node = readers[0]
        others = [name for name in node.input if name and name != last and not model.is_constant(name)]
        if others or node.op_type not in (*_AFFINE, QUANTIZE, DEQUANTIZE):
            return found
        last = node.output[0]
        if node.op_type in _AFFINE:
            found.append(last)


def _most_alike(wanted: Array, candidates: Mapping[str, Array]) -> str | None:
    """The candidate of the same number of elements that is nearest; the first of those that are equally near."""
    errors: dict[str, float] = {}
    for name, values in candidates.items():
        if values.size == wanted.size and np.issubdtype(values.dtype, np.floating):
            difference = values.reshape(wanted.shape).astype(np.float64) - wanted
            errors[name] = float(np.square(difference).sum())
    return min(errors, key=errors.__getitem__) if errors else None


def names_of(pairs: Sequence[Pair]) -> list[str]:
    """What messages call the layers: by their own names, and by the tensor where a layer is used twice."""
    names = [pair.layer.name for pair in pairs]
    return [pair.use.output if names.count(name) > 1 else name for pair, name in zip(pairs, names, strict=True)]
