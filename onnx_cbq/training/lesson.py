"""What one net learns from another: the logits, and the further outputs that count beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.calibration.draw import thinned
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.evidence.tensors import deviations
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.graph.logits import Logits
from onnx_cbq.records.answers import Reading

# Samples that say how much a further output varies, and elements of each that are learned.
_SEEN, _MOST_ELEMENTS = 200, 4096


@dataclass(frozen=True)
class Lesson:
    """Lays the tensors of a net side by side, [samples, positions x classes + elements].

    Attributes:
        logits: come first, position by position.
        further: the other tensors as (name, axis of the samples, standard deviation); of each sample's elements at most
            `_MOST_ELEMENTS`, scaled so that the squared distance of two such parts is that of `gradient.further`.
    """

    logits: Logits
    further: tuple[tuple[str, int, float], ...] = ()

    @staticmethod
    def of(work: Workload, indices: Indices) -> Lesson:
        """What is to be learned of a model, measured on some of the samples."""
        counted = work.further.counted
        if not counted:
            return Lesson(work.logits)
        some = thinned(indices, _SEEN)
        found = deviations(work.model, counted, work.samples, some, batch_size(work.layers))
        varying = [(one.tensor, one.batch_axis, found[one.tensor]) for one in counted if found[one.tensor]]
        return Lesson(work.logits, tuple(varying))

    @property
    def tensors(self) -> list[str]:
        """What a net has to give."""
        return list(dict.fromkeys((self.logits.tensor, *(name for name, _, _ in self.further))))

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """The tensors of a net, side by side."""
        parts = [logit_rows(values[self.logits.tensor], self.logits.phi).flatten(1)]
        for name, axis, deviation in self.further:
            flat = values[name].movedim(axis, 0).flatten(1)
            if flat.shape[1] > _MOST_ELEMENTS:
                chosen = np.linspace(0, flat.shape[1] - 1, _MOST_ELEMENTS).astype(np.int64)
                flat = flat[:, torch.from_numpy(chosen).to(flat.device)]
            parts.append(flat / (deviation * (2 * flat.shape[1]) ** 0.5))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def logit_rows(values: Tensor, reading: Reading) -> Tensor:
    """`Reading.rows` in torch, [samples, positions, classes]."""
    moved = values.movedim(reading.batch, 0)
    if reading.classes is None:
        single = moved.flatten(1) if moved.ndim > 1 else moved[:, None]
        return torch.stack([-single / 2, single / 2], dim=2)
    moved = moved.movedim(reading.class_axis, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])
