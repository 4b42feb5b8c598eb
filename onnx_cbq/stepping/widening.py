"""A wider net that computes the same: some units are there twice, and what reads them shares the weights out.

It is Net2WiderNet (Chen et al., ICLR 2016, arXiv 1511.05641). The reuse rule takes weights from a net: where subnet k
has the share p_k of every layer's channels, outputs of group k read the inputs of groups 1 .. k, so that

    MACs of subnet k:   m_k = m_(k-1) + (p_k - p_(k-1)) p_k

and a net of its own width ends far below its own MACs. SteppingNet therefore starts from a wider one.

Channels are added where maps are small: what they take is multiplications there, of which subnets have a share
anyway, and hardly any time and memory, which go with the values that pass through the net. Where a channel is a single
number they come last: those take weights, and hardly multiply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from onnx_cbq.graph.remove.links import Flattened, Joined, Product, Same
from onnx_cbq.model import Array, Model
from onnx_cbq.stepping.assignment import find_spaces, step_macs
from onnx_cbq.stepping.emit import Groups, Writer
from onnx_cbq.stepping.masks import Nested
from onnx_cbq.stepping.units import Units

# What the first of two units that are alike keeps of the weights that read them. Were they halved, the two would be
# equally important, and would learn the same.
_KEPT = 2 / 3
# Units are added by so many parts of what is there: channels that fill vectors still do.
_PARTS = 4


def needed_width(macs: Sequence[float]) -> float:
    """How many times as wide a net must be for its last subnet to have its share of the MACs, at least 1.

    It has the square of that times as many MACs, as if every layer were so much wider.

    The positive root of (p_k - p_(k-1)) p_k = m_k - m_(k-1), from p_0 = m_0 = 0 on.
    """
    width = before = 0.0
    for share in macs:
        width = (width + math.sqrt(width**2 + 4 * (share - before))) / 2
        before = share
    return max(width, 1.0)


def widen(units: Units, width: float) -> Model:
    """The same function with more hidden channels and width^2 times as many MACs, `width` 1 to 2.

    Channels of groups that a convolution takes together stay as they are, so fewer MACs may be all there is.
    """
    copies = _Copies(units, _count(units, width))
    return _WideWriter(units, copies).write().model


@dataclass(frozen=True)
class Counterpart:
    """A hidden tensor of the wide net, what it is in the original, and the channel there of each of its channels."""

    tensor: str
    original: str
    channels: Array


def counterparts(units: Units, width: float) -> tuple[Counterpart, ...]:
    """What sums of branches are in the net that is `width` times as wide; of a net without sums, what layers give.

    What a branch adds by itself may differ, if the sum does not.
    """
    copies = _Copies(units, _count(units, width))
    added = (link for node, link in units.links if node.op_type == "Add" and isinstance(link, Same))
    # What is added to the input stays whole in every subnet.
    sums = [link.output for link in added if len(link.inputs) > 1 and units.of[link.output].any()]
    names = sums or dict.fromkeys(use.output for product in units.hidden for use in product.layer.uses)
    return tuple(
        Counterpart(name if width == 1 else copies.joined(name, 1), name, copies.members(name, 1)) for name in names
    )


def _count(units: Units, width: float) -> Array:
    """How often each unit is there, int64 [units]: twice in the spaces of the smallest maps, while MACs are missing."""
    copies, macs = np.ones(units.count, np.int64), width**2 * units.macs
    ordered = sorted(_free_spaces(units), key=lambda pair: (pair[0] == 1, pair[0]))
    for _, alike in groupby(ordered, key=lambda pair: pair[0]):
        copies = _doubled(units, copies, [space for _, space in alike], macs)
    return copies


def _doubled(units: Units, copies: Array, spaces: Sequence[Array], macs: float) -> Array:
    """Copies with as many units of each of some spaces there twice as give the MACs, evenly spread; or all of them."""
    longest, first, found = max(map(len, spaces)), np.ones(units.count, np.int64), copies
    for part in range(_PARTS + 1):
        found = copies.copy()
        for space in spaces:
            more = min(-(-longest * part // _PARTS), len(space))
            found[space[np.linspace(0, len(space), more, endpoint=False).astype(np.int64)]] = 2
        if step_macs(units, first, 1, found)[0] >= macs:
            break
    return found


def _free_spaces(units: Units) -> list[tuple[int, Array]]:
    """The spaces that may have more units, each with a sample's values of a channel in its largest tensor."""
    still = np.zeros(units.count, np.bool_)
    for product in units.hidden:
        if len(product.reads) > 1 and product.reads[0].size > 1:
            for name in (product.use.activation, product.use.output):
                still[units.of[name]] = True
    values = {name: math.prod(units.shapes[name]) // (len(of) * units.shapes.batch) for name, of in units.of.items()}

    def largest(space: Array) -> int:
        return max(values[name] for name, of in units.of.items() if np.isin(of, space).any())

    return [(largest(space), space) for space in find_spaces(units) if not still[space].any()]


class _Copies(Groups):
    """All channels as one group, some of them twice."""

    def __init__(self, units: Units, copies: Array) -> None:
        self._members = {name: np.repeat(np.arange(len(of)), copies[of]) for name, of in units.of.items()}
        for _, link in units.links:
            match link:
                case Flattened():
                    columns = np.arange(math.prod(link.shape)).reshape(link.shape)
                    self._members[link.output] = columns.take(self._members[link.input], link.axis).reshape(-1)
                case Same():
                    self._members[link.output] = self._members[link.inputs[0]]
                case Joined():
                    starts = np.cumsum([0, *(len(units.of[name]) for name in link.inputs)])
                    parts = [self._members[name] + start for name, start in zip(link.inputs, starts, strict=False)]
                    self._members[link.output] = np.concatenate(parts)
                case _:
                    continue
        super().__init__(units, Nested(np.ones(units.count, np.int64), {}, None, 1))

    def members(self, tensor: str, step: int) -> Array:
        """The channels of the original that the channels of the wider net stand for, in order."""
        return self._members[tensor] if step == 1 else self._members[tensor][:0]

    def size(self, tensor: str, step: int) -> int:
        """How many channels the tensor has."""
        return len(self.members(tensor, step))

    def shares(self, tensor: str) -> Array:
        """Which part of the weights that read a channel each of those has that stand for it, float32."""
        members = self._members[tensor]
        _, first, inverse, counts = np.unique(members, return_index=True, return_inverse=True, return_counts=True)
        found = np.where(counts == 1, 1.0, 1 - _KEPT)[inverse]
        found[first[counts > 1]] = _KEPT
        return found.astype(np.float32)


class _WideWriter(Writer):
    """Writes the whole net at once."""

    def __init__(self, units: Units, copies: _Copies) -> None:
        super().__init__(units, Nested(np.ones(units.count, np.int64), {}, None, 1), copies, 1)
        self._copies = copies

    def _taken(self, product: Product, rows: Array, columns: Array) -> Array:
        weight, axis = super()._taken(product, rows, columns), 1 - product.layer.weight_axis
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return np.asarray(weight * self._copies.shares(product.use.activation).reshape(shape))

    def _head(self) -> list[str]:
        """The head with its bias, and what lies behind it."""
        head = self._units.head
        rows, columns = np.arange(head.layer.channels), self._groups.members(self._units.features, 1)
        inputs = [self._read(self._units.features), self._store(head.layer.weight, self._taken(head, rows, columns))]
        if head.use.bias is not None:
            inputs.append(self._store(head.use.bias, self._value(head.use.bias)))
        self._copy(self._units.model.producers[head.use.output], inputs, [head.use.output])
        self._tail()
        return []
