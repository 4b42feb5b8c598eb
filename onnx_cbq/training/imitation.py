"""Hidden tensors that are held against those of the net that is learned from, as long as training is young.

Answers alone say little of what each layer should do; what its channels gave in the original says all of it (Romero et
al., FitNets, ICLR 2015, arXiv 1412.6550). The distance

    mean over tensors and channels c of beta^k(c) E[(h_c - h'_c)^2] / Var[h'_c]

with k the subnet of a channel counts less and less, and nothing in the end, when answers are all that matters. Channels
of subnets that have few of the multiplications are left out: those need other features than the original has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.graph.shapes import fixed_batch
from onnx_cbq.model import Array
from onnx_cbq.stepping.units import Units
from onnx_cbq.stepping.widening import Counterpart

# What the distance counts at first, and the least variance of a channel as a share of its tensor's mean.
_WEIGHT, _LEAST = 2.0, 1e-2
# Subnets imitate with at least this share of the multiplications.
_ENOUGH = 0.2
# One in so many samples of a batch is compared: each has a value for every position of every channel, not one for each
# class as in the answers.
_PART = 4


class Imitation:
    """The distance of a net's hidden tensors from those of the original.

    Args:
        units: of the net.
        counterparts: its tensors and those of the original.
        shares: of the multiplications that each subnet may have, [subnets].
        beta: how updates of larger subnets are damped.
        seen: tensors of the original, by name, batch by batch, that say how much its channels vary.
    """

    def __init__(
        self,
        units: Units,
        counterparts: Sequence[Counterpart],
        shares: Sequence[float],
        beta: float,
        seen: Iterable[Mapping[str, Tensor]],
    ) -> None:
        damped = [beta**k * (share >= _ENOUGH) for k, share in enumerate(shares, 1)]
        imitating = [value for value in damped if value]
        self._units = units
        self._counterparts = tuple(counterparts) if imitating else ()
        # Of those that imitate the mean is 1. Unit 0 and units that no subnet has count nothing.
        self._counted = torch.tensor([0.0, *(value * len(imitating) / (sum(damped) or 1) for value in damped), 0.0])
        self._left = 1.0
        fronts = {units.shapes.batch_axis[one.tensor] for one in self._counterparts}
        self._in_parts = fronts <= {0} and fixed_batch(units.model) is None
        axes = {one.original: units.axis[one.tensor] for one in self._counterparts}
        self._factors = _factors(seen, axes)
        # [channels of the original, channels]: a product picks them faster than an index does.
        self._chosen = {one.original: _one_hot(one.channels, self._factors[one.original]) for one in self._counterparts}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of the net."""
        return tuple(one.tensor for one in self._counterparts)

    @property
    def originals(self) -> tuple[str, ...]:
        """Those of the original."""
        return tuple(one.original for one in self._counterparts)

    def some(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a batch's samples whose tensors are compared: the first, or all where none can do without others."""
        if not self._in_parts:
            return dict(feeds)
        return {name: value[: -(-len(value) // _PART)] for name, value in feeds.items()}

    def advance(self, share: float) -> None:
        """So much of the training is over."""
        self._left = 1 - share

    def __call__(self, assignment: Array, found: Sequence[Tensor], shown: Mapping[str, Tensor]) -> Tensor | float:
        """What the distance adds to the loss.

        Args:
            assignment: the subnet of each unit.
            found: the net's tensors, [samples, ..., channels, ...].
            shown: those of the original, by name; perhaps of the first samples alone, and only these are compared.
        """
        total: Tensor | float = 0.0
        for one, value in zip(self._counterparts, found, strict=True):
            # With channels innermost, as convolutions have them, gradients of a part are laid out like the whole.
            one_hot, factors = self._chosen[one.original], self._factors[one.original]
            counted = self._counted[torch.from_numpy(assignment[self._units.of[one.tensor]])].to(factors)
            axis = self._units.axis[one.tensor]
            original = shown[one.original].movedim(axis, -1) @ one_hot
            squares = (value.movedim(axis, -1)[: len(original)] - original).square().flatten(0, -2).mean(dim=0)
            total = total + (squares * (factors @ one_hot) * counted).mean()
        return _WEIGHT * self._left * total / max(len(found), 1)


def _factors(seen: Iterable[Mapping[str, Tensor]], axes: Mapping[str, int]) -> dict[str, Tensor]:
    """1 / variance of the channels of each tensor; 0 for a tensor that never varies."""
    sums: dict[str, list[Tensor]] = {}
    for values in seen if axes else ():
        for name, axis in axes.items():
            value = values[name].double()
            others = _others(value, axis)
            ones = torch.tensor(value.numel() / value.shape[axis], dtype=torch.float64, device=value.device)
            found = [ones, value.sum(dim=others), value.square().sum(dim=others)]
            sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
    factors = {}
    for name, (count, total, squares) in sums.items():
        variances = (squares / count - (total / count).square()).clamp_min(0)
        mean = variances.mean()
        # Sums of squares of what stays the same differ from the square of the sum by rounding.
        varies = bool(mean > 1e-12 * (squares / count).mean())
        factors[name] = (varies / variances.clamp_min(_LEAST * mean).clamp_min(1e-300)).float()
    return factors


def _one_hot(channels: Array, factors: Tensor) -> Tensor:
    chosen = torch.from_numpy(channels).to(factors.device)
    return functional.one_hot(chosen, len(factors)).T.to(factors)


def _others(value: Tensor, axis: int) -> list[int]:
    """All axes but one."""
    return [i for i in range(value.dim()) if i != axis % value.dim()]
