"""The net that learns: the float graph with weights and activations on their grids, beside the float graph itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from onnx_cbq.model import Model
from onnx_cbq.records import Grouping, Layers
from onnx_cbq.torch_graph import TorchGraph
from onnx_cbq.training.grids import LearnedGrid, WeightGrid, fixed_grid, rounded_bias
from onnx_cbq.training.records import Quantized

# Activations of at least so many bits keep their scales.
_FIXED_BITS = 8


class Student(nn.Module):
    """A quantized net in torch.

    Args:
        model: the normalised float model.
        layers: its layers.
        start: what they were rounded to.
        scores: the tensor with the class scores.
        bfloat16: compute in bfloat16 while training.
    """

    def __init__(self, model: Model, layers: Layers, start: Quantized, scores: str, *, bfloat16: bool) -> None:
        super().__init__()
        self._start, self._layers, self._scores = start, layers, scores
        self._exact = TorchGraph(model, trained=(), channels_last=True)
        device = self.device = self._exact.device
        self._fast = TorchGraph(model, trained=(), channels_last=True, bfloat16=True) if bfloat16 else self._exact
        self.grids = nn.ModuleList(
            WeightGrid(layer, model.weight(layer.weight), start.rounded.weights[layer.name], device) for layer in layers
        )
        self._by_layer = dict(zip((layer.name for layer in layers), self._weight_grids(), strict=True))
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

    def forward(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Class scores of the quantized net [samples, classes]; in float32 once `eval()` was called."""
        graph = self._fast if self.training else self._exact
        return self._shaped(graph(feeds, [self._scores], weights=self._weights(), hooks=self._hooks))

    @torch.no_grad()
    def teach(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Class scores of the float net."""
        graph = self._fast if self.training else self._exact
        return self._shaped(graph(feeds, [self._scores]))

    def groups(self, rates: tuple[float, float]) -> list[dict[str, object]]:
        """Parameters for an optimizer: latent weights at a rate relative to their layer's step, then all else."""
        weights, others = rates
        found = [{"params": [grid.latent], "lr": weights * grid.step} for grid in self._weight_grids()]
        scales = [grid.log_scale for grid in self._weight_grids()]
        learned = [parameter for grid in self.activations for parameter in grid.parameters()]
        return [*found, {"params": [*scales, *learned, *self.biases], "lr": others}]

    def quantized(self) -> Quantized:
        """The integers as they are now."""
        start = self._start
        weights = {name: grid.integers() for name, grid in self._by_layer.items()}
        values = [bias.detach().cpu().numpy().copy() for bias in self.biases]
        biases = dict(zip(self._bias_names, values, strict=True))
        grids = {name: self._learned[name].grid() if name in self._learned else g for name, g in start.grids.items()}
        return replace(start, rounded=replace(start.rounded, weights=weights, biases=biases), grids=grids)

    def _weight_grids(self) -> list[WeightGrid]:
        return [grid for grid in self.grids if isinstance(grid, WeightGrid)]

    def _weights(self) -> dict[str, Tensor]:
        found = {layer.weight: grid() for layer, grid in zip(self._layers, self.grids, strict=True)}
        return found | {name: self._bias(name, bias) for name, bias in zip(self._bias_names, self.biases, strict=True)}

    def _bias(self, name: str, bias: Tensor) -> Tensor:
        """A bias as it is written."""
        if name not in self._start.integer_biases:
            return bias
        layer, tensor = self._start.integer_biases[name]
        activation = self._learned[tensor].scale if tensor in self._learned else self._start.grids[tensor].scale
        return rounded_bias(bias, self._by_layer[layer].scale * activation)

    def _shaped(self, outputs: Mapping[str, Tensor]) -> Tensor:
        scores = outputs[self._scores]
        return scores.reshape(len(scores), -1)


def divergence(teacher: Tensor, student: Tensor, groups: Grouping) -> Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, [samples], in nats.

    Classes of one group count as one.
    """
    shares = [scores.log_softmax(dim=1) for scores in (teacher, student)]
    if not groups.is_trivial:
        members = torch.tensor(groups.members, dtype=torch.float32, device=teacher.device)
        shares = [(share.exp() @ members.T).clamp_min(1e-30).log() for share in shares]
    return (shares[0].exp() * (shares[0] - shares[1])).sum(dim=1)
