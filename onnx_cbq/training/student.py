"""The net that learns: the float graph with weights and activations on their grids, beside the float graph itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_cbq.model import Model
from onnx_cbq.quantize.digits import largest_steps
from onnx_cbq.records import Grouping, Layers, Shared
from onnx_cbq.torch_graph import EXACT, Speed, TorchGraph
from onnx_cbq.training.coded import Charge, CodedGrid
from onnx_cbq.training.grids import LatentWeight, LearnedGrid, fixed_grid, rounded_bias
from onnx_cbq.training.lesson import Lesson
from onnx_cbq.training.records import Quantized
from onnx_cbq.training.shared import SharedWeight, Values

# Logarithm of the least probability that counts.
_LEAST_SHARE = -80.0
# Activations of at least so many bits keep their scales.
_FIXED_BITS = 8


class Pupil(nn.Module):
    """A net that learns from another."""

    @property
    def graphs(self) -> Sequence[TorchGraph]:
        """Those that updates compute."""
        raise NotImplementedError

    def teach(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """What the net that it learns from gives, [samples, ...]."""
        raise NotImplementedError


class Student(Pupil):
    """A quantized net in torch.

    Args:
        model: the normalised float model.
        layers: its layers.
        start: what they were rounded to.
        lesson: what is learned.
        speed: how it computes while training.
    """

    def __init__(self, model: Model, layers: Layers, start: Quantized, lesson: Lesson, speed: Speed) -> None:
        super().__init__()
        self._start, self._layers, self._lesson = start, layers, lesson
        self._exact = TorchGraph(model, trained=(), channels_last=True)
        device = self.device = self._exact.device
        self._fast = self._exact if speed == EXACT else TorchGraph(model, trained=(), channels_last=True, speed=speed)
        trained = make_weights(model, layers, start, device)
        self.grids = nn.ModuleList(trained.values())
        self._by_layer = trained
        coded = [grid for grid in trained.values() if isinstance(grid, CodedGrid)]
        self.charge = Charge(start.rate, coded, device) if start.rate is not None and coded else None
        biases = {use.bias: model.weight(use.bias) for layer in layers for use in layer.uses if use.bias is not None}
        biases |= start.rounded.biases
        self._bias_names = tuple(biases)
        self.biases = nn.ParameterList(nn.Parameter(torch.tensor(value, device=device)) for value in biases.values())
        learned = {name: LearnedGrid(grid, device) for name, grid in start.grids.items() if grid.bits < _FIXED_BITS}
        self.activations = nn.ModuleList(learned.values())
        self._learned = learned
        self._hooks: dict[str, Callable[[Tensor], Tensor]] = {
            name: learned.get(name) or fixed_grid(grid) for name, grid in start.grids.items()
        }

    @property
    def graphs(self) -> Sequence[TorchGraph]:
        """That of the quantized net, which is that of the float one with other weights."""
        return (self._fast,)

    def forward(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """What is learned of the quantized net; in float32 once `eval()` was called."""
        graph = self._fast if self.training else self._exact
        return self._lesson(graph(feeds, self._lesson.tensors, weights=self._weights(), hooks=self._hooks))

    @torch.no_grad()
    def teach(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """What is learned from the float net."""
        graph = self._fast if self.training else self._exact
        return self._lesson(graph(feeds, self._lesson.tensors))

    def groups(self, rates: tuple[float, float]) -> list[dict[str, object]]:
        """Parameters for an optimizer: latent weights at a rate relative to their layer's spacing, then all else."""
        weights, others = rates
        # Layers may share their values.
        latent = {id(grid.weights[0]): grid.weights for grid in self._by_layer.values()}
        found = [{"params": [parameter], "lr": weights * spacing} for parameter, spacing in latent.values()]
        scales = [parameter for grid in self._by_layer.values() for parameter in grid.others]
        learned = [parameter for grid in self.activations for parameter in grid.parameters()]
        return [*found, {"params": [*scales, *learned, *self.biases], "lr": others}]

    def quantized(self) -> Quantized:
        """The integers as they are now."""
        start = self._start
        weights = {name: grid.integers() for name, grid in self._by_layer.items()}
        named = zip(self._bias_names, self.biases, strict=True)
        biases = {name: self._bias(name, bias).detach().cpu().numpy().copy() for name, bias in named}
        grids = {name: self._learned[name].grid() if name in self._learned else g for name, g in start.grids.items()}
        return replace(start, rounded=replace(start.rounded, weights=weights, biases=biases), grids=grids)

    def _weights(self) -> dict[str, Tensor]:
        found = {layer.weight: self._by_layer[layer.name]() for layer in self._layers}
        return found | {name: self._bias(name, bias) for name, bias in zip(self._bias_names, self.biases, strict=True)}

    def _bias(self, name: str, bias: Tensor) -> Tensor:
        """A bias as it is written."""
        steps, units = self._start.rounded.steps.get(name), None
        if name in self._start.integer_biases:
            layer, tensor = self._start.integer_biases[name]
            activation = self._learned[tensor].scale if tensor in self._learned else self._start.grids[tensor].scale
            units = self._by_layer[layer].scale * activation
        if steps is None:
            return bias if units is None else rounded_bias(bias, units)
        found = largest_steps(steps, None if units is None else units.double().cpu().numpy())
        return rounded_bias(bias, torch.from_numpy(found).to(bias))


def make_weights(
    model: Model, layers: Layers, start: Quantized, device: torch.device
) -> dict[str, LatentWeight | SharedWeight]:
    """The module that makes each layer's weight, by name: as it was rounded, and by the rate if there is one."""
    kind = LatentWeight if start.rate is None else CodedGrid
    tables: dict[bytes, Values] = {}
    found: dict[str, LatentWeight | SharedWeight] = {}
    for layer in layers:
        weights = start.rounded.weights[layer.name]
        if not isinstance(weights.grid, Shared):
            found[layer.name] = kind(layer, model.weight(layer.weight), weights, device)
            continue
        used = weights.scale[weights.bits > 0] if (weights.bits > 0).any() else weights.scale
        levels = weights.grid.table * used[0]
        # Layers on equal values have the codebook of the whole net.
        largest = max(int(np.abs(weights.grid.table).max()), 1)
        values = tables.setdefault(levels.tobytes(), Values(levels, device, largest))
        found[layer.name] = SharedWeight(layer, weights, values, device)
    return found


def divergence(teacher: Tensor, student: Tensor, groups: Grouping) -> Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, [...], in nats.

    Both are logits [..., classes]. Classes of one group count as one.
    """
    # A class masked with -inf has no share, and 0 (-inf - -inf) would be NaN.
    shares = [scores.log_softmax(dim=-1).clamp_min(_LEAST_SHARE) for scores in (teacher, student)]
    if not groups.is_trivial:
        members = torch.tensor(groups.members, dtype=torch.float32, device=teacher.device)
        shares = [(share.exp() @ members.T).clamp_min(1e-30).log() for share in shares]
    return (shares[0].exp() * (shares[0] - shares[1])).sum(dim=-1)


def independent_divergences(teacher: Tensor, student: Tensor) -> Tensor:
    """Likewise of classes that each have a probability of their own, [..., classes]."""
    pairs = [
        [functional.logsigmoid(sign * scores).clamp_min(_LEAST_SHARE) for sign in (1, -1)]
        for scores in (teacher, student)
    ]
    parts = [before.exp() * (before - after) for before, after in zip(*pairs, strict=True)]
    return torch.stack(parts).sum(dim=0)
