"""Which units each subnet can do without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from onnx_cbq.model import Array
from onnx_cbq.stepping.units import Units
from onnx_cbq.training.batches import TrainingBatch
from onnx_cbq.training.nested import NestedNet


def importance(net: NestedNet, units: Units, batches: Sequence[TrainingBatch], beta: float) -> Array:
    """Of each unit for each subnet, [subnets, units]: what moving it out of subnet i costs this and larger ones.

    I_i = sum over k >= i of beta^(k-i) mean over samples of (dL_k/dr)^2, with L the cross-entropy with the labels (the
    divergence from the original net is 0, and flat, where the search begins) and r = 1 a multiplier on the unit's
    outputs: dL/dr is the sum of output times gradient.
    """
    net.eval()
    tensors = tuple(dict.fromkeys(use.output for product in units.hidden for use in product.layer.uses))
    total: Array = np.zeros(0)
    for batch in batches:
        scores, outputs = net.look(batch.feeds, tensors)
        found = []
        for one in scores:
            loss = functional.cross_entropy(one, batch.labels, reduction="sum")
            gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
            per_unit = torch.zeros(len(batch.labels), units.count, device=net.device)
            for name, value, gradient in zip(tensors, outputs, gradients, strict=True):
                product = (value.detach() * gradient).movedim(units.axis[name], 1)
                index = torch.tensor(units.of[name], device=net.device)
                per_unit.index_add_(1, index, product.reshape(*product.shape[:2], -1).sum(dim=2).float())
            found.append(per_unit.square().sum(dim=0).cpu().numpy())
        total = total + np.stack(found) if total.size else np.stack(found)
    for k in reversed(range(len(total) - 1)):
        total[k] += beta * total[k + 1]
    return total / sum(len(batch.labels) for batch in batches)
