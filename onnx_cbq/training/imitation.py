"""Hidden tensors that are held against those of the net that is learned from, as long as training is young.

Answers alone say little of what each layer should do; what its channels gave in the original says all of it (Romero et
al., FitNets, ICLR 2015, arXiv 1412.6550). The distance

    mean over tensors and channels c of E[(h_c - h'_c)^2] / Var[h'_c]

counts less and less, and nothing in the end, when answers are all that matters. Channels of subnets that have few of
the multiplications are left out: those need other features than the original has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnx_cbq.model import Array
from onnx_cbq.stepping.units import Units
from onnx_cbq.stepping.widening import Counterpart

# What the distance counts at first, and the least variance of a channel as a share of its tensor's mean.
_WEIGHT, _LEAST = 2.0, 1e-2
# Subnets imitate with at least this share of the multiplications.
_ENOUGH = 0.2


class Imitation:
    """The distance of a net's hidden tensors from those of the original.

    Args:
        units: of the net.
        counterparts: its tensors and those of the original.
        shares: of the multiplications that each subnet may have, [subnets].
    """

    def __init__(self, units: Units, counterparts: Sequence[Counterpart], shares: Sequence[float]) -> None:
        self._units, self._counterparts = units, counterparts
        # Unit 0 and units that no subnet has count nothing.
        self._counted = torch.tensor([0.0, *(float(share >= _ENOUGH) for share in shares), 0.0])
        self._left = 1.0
        self.tensors = tuple(one.tensor for one in counterparts)
        self.originals = tuple(one.original for one in counterparts)

    def advance(self, share: float) -> None:
        """So much of the training is over."""
        self._left = 1 - share

    def __call__(self, assignment: Array, found: Sequence[Tensor], taught: Mapping[str, Tensor]) -> Tensor | float:
        """What the distance adds to the loss.

        Args:
            assignment: the subnet of each unit.
            found: the net's tensors, [samples, ..., channels, ...].
            taught: those of the original, by name.
        """
        total: Tensor | float = 0.0
        for one, value in zip(self._counterparts, found, strict=True):
            axis = self._units.axis[one.tensor]
            counted = self._counted[torch.from_numpy(assignment[self._units.of[one.tensor]])].to(value.device)
            others = [i for i in range(value.dim()) if i != axis % value.dim()]
            original = taught[one.original]
            variances = original.var(dim=others, unbiased=False)
            factors = (variances.clamp_min(_LEAST * variances.mean()) + torch.finfo(variances.dtype).tiny).reciprocal()
            channels = torch.from_numpy(one.channels).to(value.device)
            squares = (value - original.index_select(axis, channels)).square().mean(dim=others)
            total = total + (squares * factors[channels] * counted).mean()
        return _WEIGHT * self._left * total / max(len(found), 1)
