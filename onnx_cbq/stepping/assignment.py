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


def step_macs(units: Units, assignment: Array, steps: int) -> Array:
    """Multiplications of each step for one sample, int64 [steps]."""
    total = np.zeros(steps, np.int64)
    for product in units.hidden:
        outputs, inputs = _counts(units, assignment, product, steps)
        read = np.cumsum(inputs) if len(product.reads) == 1 else product.reads.shape[2]
        total += _pair_macs(product) * outputs * read
    features = np.bincount(assignment[units.of[units.features]], minlength=steps + 2)[1 : steps + 1]
    return np.asarray(total + _pair_macs(units.head) * units.head.layer.channels * features)


def subnet_macs(units: Units, assignment: Array, steps: int) -> Array:
    """Multiplications of each subnet by itself, int64 [steps]."""
    return np.asarray(np.cumsum(step_macs(units, assignment, steps)))


def saved_macs(units: Units, assignment: Array, subnet: int) -> Array:
    """By how many multiplications `subnet` shrinks if a unit of it goes to the next one, int64 [units]."""
    saved = np.zeros(units.count, np.int64)
    for product in units.hidden:
        ends = [units.of[name] for name in (product.use.output, product.use.activation)]
        groups = [assignment[numbers] for numbers in ends]
        per_pair = _pair_macs(product)
        if len(product.reads) > 1:
            np.add.at(saved, ends[0], per_pair * product.reads.shape[2])
            continue
        np.add.at(saved, ends[0], per_pair * int((groups[1] <= subnet).sum()))
        np.add.at(saved, ends[1], per_pair * int((groups[0] == subnet).sum()))
    np.add.at(saved, units.of[units.features], _pair_macs(units.head) * units.head.layer.channels)
    return saved


def move_units(units: Units, assignment: Array, importance: Array, limits: Sequence[float]) -> Array:
    """Move units on, the least important per multiplication first, until every subnet is within its limit.

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
    for subnet, limit in enumerate(limits, start=1):
        while (excess := subnet_macs(units, moved, len(limits))[subnet - 1] - limit) > 0:
            saved = saved_macs(units, moved, subnet)
            order = np.argsort(importance[subnet - 1] / np.maximum(saved, 1), kind="stable")
            if not _move(units, moved, order, saved, subnet, excess):
                least = subnet_macs(units, moved, len(limits))[subnet - 1] / units.macs
                raise VerificationError(
                    f"--macs: subnet {subnet} cannot have {limit / units.macs:.1%} of the multiplications; every layer "
                    f"keeps a channel, and that takes {least:.1%}"
                )
    return moved


def _move(units: Units, assignment: Array, order: Array, saved: Array, subnet: int, excess: float) -> bool:
    """Move units in order until about half of `excess` is gone, in place; whether any could be moved.

    What a unit saves falls as others go, so the caller counts anew and comes again.
    """
    lasts = [units.of[product.use.output] for product in units.hidden]
    done = False
    for unit in order[(assignment[order] == subnet) & (order > 0)].tolist():
        if done and excess <= saved[unit]:
            break
        assignment[unit] += 1
        if subnet == 1 and any((numbers == unit).any() and not (assignment[numbers] == 1).any() for numbers in lasts):
            assignment[unit] -= 1
            continue
        done, excess = True, excess - 2 * saved[unit]
    return done


def _counts(units: Units, assignment: Array, product: Product, steps: int) -> tuple[Array, Array]:
    """How many outputs and inputs of a layer each subnet adds, int64 [steps]."""
    ends = (assignment[units.of[name]] for name in (product.use.output, product.use.activation))
    outputs, inputs = (np.bincount(groups, minlength=steps + 2)[1 : steps + 1] for groups in ends)
    return outputs, inputs


def _pair_macs(product: Product) -> int:
    """Multiplications of one use of a layer for one pair of an output and an input that it reads."""
    layer = product.layer
    return layer.macs // (len(layer.uses) * layer.channels * product.reads.shape[2])
