"""Which unit belongs to which subnet, what subnets cost, and the moves that make them fit.

An assignment is int64 [units]: 1 for the units of the smallest subnet, k for those that subnet k adds, n + 1 for those
that no subnet has; unit 0 is always in subnet 1. A unit reads nothing but units of its own subnet and smaller ones, so
that nothing computed for subnet k changes when a larger one runs. A layer costs

    MACs of step k = MACs per pair of channels * #outputs in k * #inputs in 1 .. k

and those of subnet k are the sum over steps 1 .. k. The head costs classes * #inputs in k: it goes on from the sums of
the steps before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.remove.links import Product
from onnx_cbq.model import Array
from onnx_cbq.stepping.units import Units


def step_macs(units: Units, assignment: Array, steps: int, copies: Array | None = None) -> Array:
    """Multiplications of each step for one sample, int64 [steps]; of a net that has each unit so often, [units]."""
    copies = np.ones(units.count, np.int64) if copies is None else copies
    total = np.zeros(steps, np.int64)
    for product in units.hidden:
        outputs, inputs = (
            _counted(units.of[name], assignment, copies, steps) for name in (product.use.output, product.use.activation)
        )
        read = np.cumsum(inputs) if len(product.reads) == 1 else product.reads.shape[2]
        total += _pair_macs(product) * outputs * read
    features = _counted(units.of[units.features], assignment, copies, steps)
    return np.asarray(total + _pair_macs(units.head) * units.head.layer.channels * features)


def subnet_macs(units: Units, assignment: Array, steps: int) -> Array:
    """Multiplications of each subnet by itself, int64 [steps]."""
    return np.asarray(np.cumsum(step_macs(units, assignment, steps)))


def move_units(units: Units, assignment: Array, importance: Array, limits: Sequence[float]) -> Array:
    """Move units on to the next subnet until every subnet is within its limit.

    The next to go is the least important unit of the space that has most of its units left. Importance decides within
    a space only: where it decides between spaces too, a few of them end up in the smallest subnet alone, and units of
    larger subnets in front of them can write to nobody.

    A hidden layer keeps a channel in subnet 1, so that every subnet has a way through.

    Args:
        units: of the net.
        assignment: where units are.
        importance: of each unit for each subnet, [subnets, units].
        limits: multiplications of each subnet, rising.

    Raises:
        VerificationError: a limit cannot be met.
    """
    moved = assignment.copy()
    spaces = find_spaces(units)
    for subnet, limit in enumerate(limits, start=1):
        queues = [
            sorted(np.flatnonzero(moved[space] == subnet).tolist(), key=lambda i: importance[subnet - 1, space[i]])
            for space in spaces
        ]
        left = [int((moved[space] <= subnet).sum()) for space in spaces]
        while subnet_macs(units, moved, len(limits))[subnet - 1] > limit:
            order = sorted(range(len(spaces)), key=lambda i: -left[i] / len(spaces[i]))
            chosen = next((i for i in order if _move_one(units, moved, spaces[i], queues[i], subnet)), None)
            if chosen is None:
                least = subnet_macs(units, moved, len(limits))[subnet - 1] / units.macs
                raise VerificationError(
                    f"--macs: subnet {subnet} cannot have {limit / units.macs:.1%} of the multiplications; every layer "
                    f"keeps a channel, and that takes {least:.1%}"
                )
            left[chosen] -= 1
    return moved


def find_spaces(units: Units) -> list[Array]:
    """Units that appear in the same hidden layers, which makes them alike; unit 0 is in none."""
    outputs = [units.of[use.output] for product in units.hidden for use in product.layer.uses]
    appears = np.stack([np.isin(np.arange(units.count), numbers) for numbers in outputs])
    appears[:, 0] = False
    _, of = np.unique(appears, axis=1, return_inverse=True)
    spaces = [np.flatnonzero(of == i) for i in range(of.max() + 1)]
    return [space for space in spaces if appears[:, space[0]].any()]


def _move_one(units: Units, assignment: Array, space: Array, queue: list[int], subnet: int) -> bool:
    """Move the first unit of a space that may go, in place; whether there was one."""
    while queue:
        unit = space[queue.pop(0)]
        assignment[unit] += 1
        if subnet > 1 or not _is_cut_off(units, assignment, unit):
            return True
        assignment[unit] -= 1
    return False


def _is_cut_off(units: Units, assignment: Array, unit: int) -> bool:
    """Whether a layer that makes a unit has no channel left in subnet 1."""
    outputs = (units.of[product.use.output] for product in units.hidden)
    return any((numbers == unit).any() and not (assignment[numbers] == 1).any() for numbers in outputs)


def _counted(channels: Array, assignment: Array, copies: Array, steps: int) -> Array:
    """How many of the units of some channels each subnet adds, int64 [steps]."""
    counts = np.bincount(assignment[channels], copies[channels], steps + 2)
    return counts[1 : steps + 1].astype(np.int64)


def _pair_macs(product: Product) -> int:
    """Multiplications of one use of a layer for one pair of an output and an input that it reads."""
    layer = product.layer
    return int(layer.macs // (len(layer.uses) * layer.channels * product.reads.shape[2]))
