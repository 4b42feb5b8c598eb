"""A net whose weights lie between two widths, and how its loss changes with them (Cheng et al., arXiv 1810.10351).

With a real-valued width b of a channel, Q(w, k) the channel rounded to k bits and f the largest integer up to b

    w~ = (f + 1 - b) Q(w, f) + (b - f) Q(w, f + 1),    dw~ / db = Q(w, f + 1) - Q(w, f)

Q is the rounding that the file will have: compensated or to nearest, each width rounded once. What the bias takes up
lies between two widths in the same way. The float weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.cache import Parts
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping, Layer, Layers
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.settings import MOST_BITS
from onnx_cbq.torch_graph import Speed, TorchGraph
from onnx_cbq.training.batches import TrainingBatch
from onnx_cbq.training.lesson import Lesson
from onnx_cbq.training.loop import Objective
from onnx_cbq.training.records import Levels
from onnx_cbq.training.setup import Setup
from onnx_cbq.training.student import Pupil


class BetweenWidths(nn.Module):
    """One layer. Memory: 9 bytes per weight, and three floats per weight while it is used.

    Args:
        layer: whose weight it is.
        levels: the weight at every width.
        biases: the float biases of its uses, by name, in their order.
        device: where the tensors live.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, layer: Layer, levels: Levels, biases: Mapping[str, Array], device: torch.device) -> None:
        super().__init__()
        self._layer = layer
        self.register_buffer("codes", torch.tensor(levels.codes, device=device))
        self.register_buffer("scale", torch.tensor(levels.scale, device=device))
        shifts = [torch.tensor(shift, dtype=torch.float32, device=device) for shift in levels.shifts]
        self._biases = {
            use.bias: (torch.tensor(biases[use.bias], device=device), shift)
            for use, shift in zip(layer.uses, shifts, strict=False)
            if use.bias is not None
        }

    def forward(self, widths: Tensor) -> dict[str, Tensor]:
        """Weight and biases by name, for widths in 0 .. 8, [channels]."""
        lower = widths.detach().floor().clamp(max=MOST_BITS - 1).long()
        part = widths - lower
        rows = torch.lerp(self._rows(lower), self._rows(lower + 1), part[:, None])
        found = {self._layer.weight: self._unrows(rows)}
        channels = torch.arange(len(lower), device=lower.device)
        for name, (bias, shift) in self._biases.items():
            found[name] = bias + torch.lerp(shift[lower, channels], shift[lower + 1, channels], part)
        return found

    def _rows(self, bits: Tensor) -> Tensor:
        """Q(w, bits), float32 [channels, n]."""
        channels = torch.arange(len(bits), device=bits.device)
        return self.codes[bits, channels] * self.scale[bits, channels][:, None]

    def _unrows(self, rows: Tensor) -> Tensor:
        """[channels, n] -> weight_shape."""
        shape = list(self._layer.weight_shape)
        channels = shape.pop(self._layer.weight_axis)
        return rows.reshape(channels, *shape).movedim(0, self._layer.weight_axis)


class WidthNet(Pupil):
    """The float graph with every layer between two widths, beside the float graph itself.

    Args:
        model: the normalised float model.
        layers: its layers.
        levels: layer name -> its weight at every width.
        lesson: what is learned.
        speed: how it computes.
    """

    def __init__(
        self, model: Model, layers: Layers, levels: Mapping[str, Levels], lesson: Lesson, speed: Speed
    ) -> None:
        super().__init__()
        self._lesson = lesson
        self._graph = TorchGraph(model, trained=(), channels_last=True, speed=speed)
        self._names = [layer.name for layer in layers]
        self.between = nn.ModuleList(
            BetweenWidths(
                layer,
                levels[layer.name],
                {use.bias: model.weight(use.bias) for use in layer.uses if use.bias is not None},
                self._graph.device,
            )
            for layer in layers
        )

    def forward(self, feeds: Mapping[str, Tensor], widths: Mapping[str, Tensor]) -> Tensor:
        """What is learned with these widths, layer name -> [channels]."""
        weights: dict[str, Tensor] = {}
        for name, between in zip(self._names, self.between, strict=True):
            weights |= between(widths[name])
        return self._lesson(self._graph(feeds, self._lesson.tensors, weights=weights))

    @torch.no_grad()
    def teach(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """What is learned from the float net."""
        return self._lesson(self._graph(feeds, self._lesson.tensors))


class WidthLoss:
    """The loss of widths and its gradient, on new samples at every call.

    Cost per call: a pass forward of the float net, one forward and one backward of the net between widths.

    Raises:
        UnsupportedOperatorError: an operator cannot be trained.
    """

    def __init__(self, net: WidthNet, batches: Iterator[TrainingBatch], objective: Objective) -> None:
        self._net, self._batches, self._objective = net, batches, objective

    @staticmethod
    def of(
        work: Workload,
        levels: Mapping[str, Levels],
        learned: Indices,
        counted: tuple[Array, Grouping],
        config: DifferentiableConfig,
        seed: int,
        first: int = 0,
    ) -> WidthLoss:
        """For a model and samples to learn from.

        Args:
            work: model and samples.
            levels: layer name -> its weight at every width.
            learned: the samples.
            counted: the weights of the classes, and their groups.
            config: how the descent goes on.
            seed: decides the order of the samples.
            first: number of the first batch.
        """
        setup = Setup.of(config)
        net = WidthNet(work.model, work.layers, levels, Lesson.of(work, learned), setup.speed)
        objective = Objective(config.alpha, setup.tensor(counted[0]), counted[1], kind=work.logits.kind)
        return WidthLoss(net, setup.batches(work.samples, learned, config).endless(seed, first), objective)

    def __call__(self, widths: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """Widths by layer, [channels] -> the loss, and its gradient by layer, float64 [channels]."""
        batch = next(self._batches)
        device = batch.labels.device
        at = {name: torch.tensor(part, dtype=torch.float32, device=device) for name, part in widths.items()}
        leaves = [tensor.requires_grad_() for tensor in at.values()]
        loss = self._objective.loss(batch.taught(self._net.teach), self._net(batch.feeds, at), batch.labels)
        gradients = torch.autograd.grad(loss, leaves)
        found = {name: g.cpu().numpy().astype(np.float64) for name, g in zip(at, gradients, strict=True)}
        return float(loss.detach()), found


def width_parts(work: Workload, levels: Mapping[str, Levels], learned: Indices, config: DifferentiableConfig) -> Parts:
    """What the losses of widths depend on, beside what samples count."""
    digests = work.cache.digests
    return lambda: [
        *(digests.model(work.model), work.layers.layers, work.logits, work.further.counted, levels),
        *(digests.samples(work.samples, learned), config, Setup.of(config).parts),
    ]
