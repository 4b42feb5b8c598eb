"""How the loss that a width causes is predicted; e is the error that rounding adds to an output.

No criterion is best everywhere, so the search by rate and distortion makes a plan by each, and the measured loss
decides. An output beside the class scores that counts adds to each of them, as much as all classes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from onnx_cbq.errors import ModelError, UnsupportedOperatorError
from onnx_cbq.evidence import Evidence, class_scores, sensitivity, width_tables
from onnx_cbq.model import Array
from onnx_cbq.quantize.table import Table
from onnx_cbq.records import Layer

_TINY = np.finfo(np.float32).tiny


class Criterion(Protocol):
    """Predicts losses. The members are `CRITERIA`.

    Attributes:
        name: as the report calls it.
        needs_gradients: whether a model whose operators have none must do without it.
    """

    name: ClassVar[str]
    needs_gradients: ClassVar[bool]

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:
        """The loss of each channel at each width, [channels, widths]."""


class Sensitivity:
    """1/2 E[sum g^2] E[e^2], the second order of the divergence from the float model, g its gradient."""

    name: ClassVar[str] = "sensitivity"
    needs_gradients: ClassVar[bool] = True

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:
        """The loss of each channel at each width, [channels, widths]."""
        found = _shares(evidence, class_weights) @ evidence.of(sensitivity)[layer.name]
        return np.asarray(0.5 * found[:, None] * _table(layer, evidence).error.T)


class Noise:
    """E[e^2], relative to what the layer's outputs vary."""

    name: ClassVar[str] = "noise"
    needs_gradients: ClassVar[bool] = False

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:  # noqa: ARG002
        """The loss of each channel at each width, [channels, widths]."""
        table = _table(layer, evidence)
        if table.shares is not None:
            power = float(table.shares @ table.power)
            return np.asarray(table.shares[:, None] * table.error.T / max(power, _TINY))
        return np.asarray(table.error.T / max(float(table.power.sum()), _TINY))


class Saliency:
    """Mean |z dPhi/dz| of the channel, times E[e^2] relative to what its output varies."""

    name: ClassVar[str] = "saliency"
    needs_gradients: ClassVar[bool] = True

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:
        """The loss of each channel at each width, [channels, widths]."""
        score = evidence.of(class_scores).by_layer[layer.name]
        found = _shares(evidence, class_weights) @ score.saliency
        if len(score.further_saliency):
            found = found + score.further_saliency.sum(axis=0)
        return np.asarray(found[:, None] * _relative(layer, evidence))


class Importance:
    """Gamma, how many classes need the channel (CBQ), times E[e^2] relative to what its output varies."""

    name: ClassVar[str] = "importance"
    needs_gradients: ClassVar[bool] = True

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:
        """The loss of each channel at each width, [channels, widths]."""
        score = evidence.of(class_scores).by_layer[layer.name]
        found = _shares(evidence, class_weights) @ score.beta
        if len(score.further_beta):
            found = found + score.further_beta.sum(axis=0)
        return np.asarray(found[:, None] * _relative(layer, evidence))


CRITERIA: tuple[Criterion, ...] = (Sensitivity(), Noise(), Saliency(), Importance())


@dataclass(frozen=True)
class Usable:
    """The criteria that a model's operators allow, and what a user should know of it."""

    criteria: tuple[Criterion, ...]
    notes: tuple[str, ...] = ()


def usable(evidence: Evidence) -> Usable:
    """All criteria, or those without gradients if an operator has none, or no finite one; a piece of evidence."""
    try:
        evidence.of(class_scores)
        evidence.of(sensitivity)
    except (ModelError, UnsupportedOperatorError) as error:  # the first where a gradient is infinite
        note = f"{str(error).partition(';')[0]}: widths are chosen by the noise that they make alone"
        return Usable(tuple(c for c in CRITERIA if not c.needs_gradients), (note,))
    return Usable(CRITERIA)


def predicted_losses(criterion: Criterion, layers: Sequence[Layer], evidence: Evidence, class_weights: Array) -> Array:
    """The losses of all channels of some layers, [channels, widths]."""
    return np.concatenate([criterion.losses(layer, evidence, class_weights) for layer in layers])


def _shares(evidence: Evidence, class_weights: Array) -> Array:
    """What each group counts, [groups]."""
    return np.asarray(evidence.groups.sums(class_weights) / class_weights.sum())


def _table(layer: Layer, evidence: Evidence) -> Table:
    return evidence.of(width_tables)[layer.name]


def _relative(layer: Layer, evidence: Evidence) -> Array:
    """E[e^2] relative to what each output varies, [channels, widths]."""
    table = _table(layer, evidence)
    return np.asarray(table.error.T / np.maximum(table.power, _TINY)[:, None])
