"""Nested subnets in torch: all of them in one pass, since a larger one changes nothing in a smaller one.

Because of the reuse rule the units of subnet k compute the same in every larger subnet, so one pass through the net
gives what all subnets need, and only the heads differ. What subnet k changes in a weight of subnet i counts beta^(k-i).
As that is beta^k / beta^i, each loss is multiplied by the first, and each gradient divided by the second:

    damped gradient of w in subnet i = sum over k >= i of beta^(k-i) dL_k/dw = beta^-i d(sum_k beta^k L_k)/dw

Exported nets have their batch normalization folded, and what is left is slow to train once most of its inputs are gone.
So layers are normalized again while they train, beginning with the mean and the deviation that they have in the
original, and folded again in the end. Since a unit computes the same in every subnet, one set of statistics will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_cbq.graph.remove.links import Product
from onnx_cbq.graph.shapes import fixed_batch
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.patches import has_rows
from onnx_cbq.records import Grouping, Layer
from onnx_cbq.stepping.compensation import Inputs, read_rows, taken_up
from onnx_cbq.stepping.masks import Nested, head_mask, owner, split_model, weight_mask
from onnx_cbq.stepping.units import Units
from onnx_cbq.torch_graph import EXACT, Speed, TorchGraph, choose_device
from onnx_cbq.training.batches import TrainingBatch
from onnx_cbq.training.imitation import Imitation
from onnx_cbq.training.normalization import Normalization, scaled_gradient
from onnx_cbq.training.student import Pupil, divergence

# With a smaller batch, that the model insists on, statistics say nothing.
_LEAST_BATCH = 8


class NestedNet(Pupil):
    """The subnets of a net, which start as the whole of it.

    Args:
        units: of the net.
        original: the model that it learns from; of the same inputs and class scores, and no wider.
        steps: how many subnets there are.
        beta: how updates of larger subnets are damped.
        feeds: samples that the first statistics are taken from.
        speed: how it computes while training.
    """

    def __init__(
        self,
        units: Units,
        original: Model,
        steps: int,
        beta: float,
        feeds: Mapping[str, Tensor],
        speed: Speed,
    ) -> None:
        super().__init__()
        self._units, self._steps, self._beta = units, steps, beta
        self.device = choose_device()
        self._exact, (teacher,) = self._graphs(*split_model(units)), self._graphs(original)
        self._fast, self._teachers = self._exact, (teacher, teacher)
        if speed != EXACT:
            self._fast, (fast,) = self._graphs(*split_model(units), speed=speed), self._graphs(original, speed=speed)
            self._teachers = teacher, fast
        self._weights = {product.layer.weight: product for product in (*units.hidden, units.head)}
        uses = [use for product in units.hidden for use in product.layer.uses]
        self._outputs = {use.bias: use.output for use in uses if use.bias is not None}
        self._normalized = {p.use.output: p for p in units.hidden if _can_be_normalized(units, p)}
        still = {product.use.bias for product in self._normalized.values()}
        self._names = (*self._weights, *(name for name in self._outputs if name not in still))
        self._norms = self._begin(feeds)
        self.norms = nn.ModuleList(self._norms.values())
        self.values = nn.ParameterList(nn.Parameter(self._tensor(units.model.weight(name))) for name in self._names)
        bias = units.head.use.bias
        self.biases = None if bias is None else nn.Parameter(self._tensor(units.model.weight(bias)).repeat(steps, 1))
        self.assignment = np.ones(units.count, np.int64)
        self.assign(self.assignment)

    def assign(self, assignment: Array) -> None:
        """Give every unit to a subnet."""
        units, self.assignment = self._units, assignment
        hidden = {name: product for name, product in self._weights.items() if product is not units.head}
        self._masks = {name: self._tensor(weight_mask(units, assignment, product)) for name, product in hidden.items()}
        self._head_masks = [self._tensor(head_mask(units, assignment, k)) for k in range(1, self._steps + 1)]
        owners = {name: owner(units, assignment, product) for name, product in self._weights.items()}
        owners |= {bias: assignment[units.of[output]] for bias, output in self._outputs.items()}
        for output, norm in self._norms.items():
            norm.damping = self._tensor(self._beta ** -assignment[units.of[output]].astype(np.float32))
        self._damping = {name: self._tensor(self._beta ** -value.astype(np.float32)) for name, value in owners.items()}

    @torch.no_grad()
    def reassign(self, assignment: Array, batches: Sequence[TrainingBatch]) -> None:
        """Give every unit to a subnet; weights that stay take up what they can of those that go.

        What they read is told from the batches. Cost: a pass forward for each, and that of `taken_up` for every layer
        that loses some.
        """
        losing = {
            name: (mask.bool().cpu().numpy(), weight_mask(self._units, assignment, self._weights[name]))
            for name, mask in self._masks.items()
            if has_rows(self._weights[name].layer)
        }
        losing = {name: masks for name, masks in losing.items() if (masks[0] & ~masks[1]).any()}
        read = self._read([self._weights[name].layer for name in losing], batches)
        values = dict(zip(self._names, self.values, strict=True))
        self.assign(assignment)
        for name, masks in losing.items():
            self._take_up(self._weights[name], values, read[name], masks)

    def get_extra_state(self) -> Tensor:
        """The assignment, which is a part of the state."""
        return torch.from_numpy(self.assignment.copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Take the assignment of a state."""
        self.assign(state.numpy(force=True).copy())

    @property
    def graphs(self) -> Sequence[TorchGraph]:
        """The subnets', in two parts, and the original's."""
        return (*self._fast, self._teachers[True])

    @torch.no_grad()
    def settle(self, batches: Iterable[TrainingBatch]) -> None:
        """Take the statistics of the net as it is now, in float32."""
        self.train()
        for batch in batches:
            self._run(self._exact, batch.feeds, ())

    def forward(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Class scores of all subnets [subnets, samples, classes]; in float32 once `eval()` was called."""
        return self.look(feeds, ())[0]

    def look(self, feeds: Mapping[str, Tensor], tensors: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
        """Class scores of all subnets, and hidden tensors."""
        return self._run(self._fast if self.training else self._exact, feeds, tensors)

    def _run(
        self, graphs: Sequence[TorchGraph], feeds: Mapping[str, Tensor], tensors: tuple[str, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        body, head = graphs
        values = dict(zip(self._names, self.values, strict=True))
        weights = {
            name: scaled_gradient(value * self._masks.get(name, 1), self._damping[name])
            for name, value in values.items()
        }
        last = weights.pop(self._units.head.layer.weight)
        found = body(feeds, [self._units.features, *tensors], weights=weights, hooks=self._norms)
        features = found[self._units.features]
        scores = [self._scores(head, features, last * mask, k) for k, mask in enumerate(self._head_masks)]
        return torch.stack(scores), [found[name] for name in tensors]

    @torch.no_grad()
    def shown(self, feeds: Mapping[str, Tensor], tensors: Sequence[str]) -> dict[str, Tensor]:
        """Hidden tensors of the original net."""
        found: dict[str, Tensor] = self._teachers[self.training](feeds, tensors)
        return found

    @torch.no_grad()
    def teach(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Class scores of the original net [samples, classes]."""
        scores = self._units.logits.tensor
        return _flat(self._teachers[self.training](feeds, [scores])[scores])

    def nested(self) -> Nested:
        """The subnets as they are now."""
        values = [value.detach().cpu().numpy().copy() for value in self.values]
        constants = dict(zip(self._names, values, strict=True))
        for output, norm in self._norms.items():
            layer, bias = self._normalized[output].layer, str(self._normalized[output].use.bias)
            rows = layer.rows(constants[layer.weight])
            folded, constants[bias] = norm.folded(rows, self._units.model.weight(bias))
            constants[layer.weight] = layer.unrows(folded)
        biases = None if self.biases is None else self.biases.detach().cpu().numpy().copy()
        return Nested(self.assignment, constants, biases, self._steps)

    @torch.no_grad()
    def _begin(self, feeds: Mapping[str, Tensor]) -> dict[str, Normalization]:
        """Normalizations of layers' outputs that change nothing yet."""
        found = self._exact[0](feeds, list(self._normalized))
        rows = {name: value.movedim(1, 0).flatten(1) for name, value in found.items()}
        return {name: Normalization(value.mean(dim=1), value.var(dim=1)) for name, value in rows.items()}

    def _read(self, layers: Sequence[Layer], batches: Sequence[TrainingBatch]) -> dict[str, Array]:
        """The rows that layers multiply, by weight."""
        self.eval()
        names = tuple(dict.fromkeys(use.activation for layer in layers for use in layer.uses))
        random, found = np.random.default_rng(0), dict[str, list[Array]]()
        for batch in batches if layers else ():
            tensors = (value.cpu().numpy() for value in self.look(batch.feeds, names)[1])
            values = dict(zip(names, tensors, strict=True))
            for layer in layers:
                rows = read_rows(layer, [values[use.activation] for use in layer.uses], random)
                found.setdefault(layer.weight, []).append(rows)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _take_up(self, product: Product, values: Mapping[str, Tensor], read: Array, masks: tuple[Array, Array]) -> None:
        """Change the weight of a layer, its biases and its normalization, now that another mask holds."""
        layer, weight = product.layer, values[product.layer.weight]
        biases = [use.bias for use in layer.uses if use.bias is not None]
        before, after = (layer.rows(np.broadcast_to(mask, layer.weight_shape)) for mask in masks)
        inputs = Inputs.of(read, centred=len(biases) == len(layer.uses))
        rows, shift = taken_up(layer.rows(weight.cpu().numpy()), inputs, before, after)
        weight.copy_(self._tensor(layer.unrows(rows)))
        norm = self._norms.get(product.use.output)
        if norm is not None:
            added = self._units.model.weight(biases[0])
            norm.mean.copy_(self._tensor((rows @ inputs.mean + added).astype(np.float32)))
            norm.variance.copy_(self._tensor(inputs.variances(rows).astype(np.float32)))
            return
        for bias in biases:
            values[bias].add_(self._tensor(shift.astype(np.float32)))

    def _graphs(self, *models: Model, speed: Speed = EXACT) -> list[TorchGraph]:
        return [TorchGraph(model, trained=(), device=self.device, channels_last=True, speed=speed) for model in models]

    def _scores(self, head: TorchGraph, features: Tensor, weight: Tensor, subnet: int) -> Tensor:
        replaced = {self._units.head.layer.weight: weight}
        if self.biases is not None:
            bias = scaled_gradient(self.biases[subnet], self._beta ** -(subnet + 1))
            replaced[str(self._units.head.use.bias)] = bias
        return _flat(head(features, weights=replaced)[self._units.logits.tensor])

    def _tensor(self, value: Array) -> Tensor:
        return torch.tensor(value, device=self.device)


@dataclass(frozen=True)
class NestedObjective:
    """sum_k beta^k ((1 - alpha) KL(original || subnet k) + alpha cross-entropy); their mean while evaluating.

    While training, hidden tensors are held against those of the original too.
    """

    alpha: float
    beta: float
    class_weights: Tensor
    groups: Grouping
    imitation: Imitation
    charge: None = None

    def __call__(self, student: NestedNet, batch: TrainingBatch, taught: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the scores of all subnets."""
        imitated = self.imitation.tensors if student.training else ()
        scores, hidden = student.look(batch.feeds, imitated)
        losses = self.losses(taught, scores, batch.labels).mean(dim=1)
        if not student.training:
            return losses.mean(), scores
        counts = torch.tensor([self.beta**k for k in range(1, len(losses) + 1)], device=losses.device)
        some = self.imitation.some(batch.feeds)
        shown = student.shown(some, self.imitation.originals) if imitated else {}
        return (counts * losses).sum() / counts.sum() + self.imitation(student.assignment, hidden, shown), scores

    def advance(self, share: float) -> None:
        """So much of the training is over."""
        self.imitation.advance(share)

    def judged(self, found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What samples count, and the share of the subnets that are right about them."""
        right = (found.argmax(dim=-1) == labels).float().reshape(-1, len(labels)).mean(dim=0)
        return self.class_weights[labels], right

    def losses(self, taught: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Of every subnet and sample, [subnets, samples]."""
        found = []
        for one in scores:
            each = (1 - self.alpha) * divergence(taught, one, self.groups)
            if self.alpha:
                each = each + self.alpha * functional.cross_entropy(one, labels, reduction="none")
            found.append(each)
        return torch.stack(found)


def _can_be_normalized(units: Units, product: Product) -> bool:
    """Whether statistics of a batch make sense, and can be folded into one weight and its bias."""
    batch = fixed_batch(units.model)
    folds = len(product.layer.uses) == 1 and product.use.bias is not None and units.axis[product.use.output] == 1
    return folds and (batch is None or batch >= _LEAST_BATCH)


def _flat(scores: Tensor) -> Tensor:
    return scores.reshape(len(scores), -1)
