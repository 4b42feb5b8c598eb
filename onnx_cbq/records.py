"""The records that flow between the stages: frozen, arrays read-only, each can be saved and loaded.

Words as in the README: a *layer* is one quantizable weight with the nodes that use it; a *channel* is one output
filter or neuron; a *plan* gives every channel its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_cbq.model import Array, Model


@dataclass(frozen=True)
class Windows:
    """Windows over `inputs` positions that make `outputs` positions, each field with one entry per spatial axis.

    Output position o covers the input positions o stride + k dilation - before, k = 0 .. kernel - 1.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of a dilated kernel less one: (kernel - 1) dilation."""
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the input so that the last window just fits; negative where inputs are left over."""
        sizes = zip(self.inputs, self.outputs, self.strides, self.reach, self.before, strict=True)
        return tuple((o - 1) * s + r + 1 - n - p for n, o, s, r, p in sizes)


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weight."""

    output: str  # the tensor z that it computes
    activation: str  # its other operand
    weight_index: int  # which of its inputs is the weight
    bias: str | None  # name of its constant bias
    channel_axis: int  # of z
    batch_axis: int  # of z
    output_shape: tuple[int, ...]  # of z, measured
    windows: Windows | None = None  # of a Conv or ConvTranspose


@dataclass(frozen=True)
class Layer:
    """One quantizable weight and the nodes that use it."""

    name: str
    operator: str
    weight: str
    weight_shape: tuple[int, ...]
    weight_axis: int  # the axis of the weight along which the channels lie
    groups: int
    uses: tuple[Use, ...]
    samples: int  # batch size at which the output shapes were measured

    @property
    def channels(self) -> int:
        """Number of channels: units that get a bit width of their own."""
        return self.weight_shape[self.weight_axis]

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.weight_shape))

    @property
    def weights_per_channel(self) -> int:
        """Number of weights of one channel."""
        return self.size // self.channels

    @property
    def repeats(self) -> int:
        """Output channels per channel; above 1 only in a grouped ConvTranspose, whose groups share their scales."""
        use = self.uses[0]
        return use.output_shape[use.channel_axis] // self.channels

    @property
    def macs(self) -> int:
        """Multiplications with a weight for one sample, in all uses."""
        return sum(self._macs_of(use) for use in self.uses)

    def _macs_of(self, use: Use) -> int:
        if use.windows is not None:
            # Every weight is used once per window.
            return self.size * int(np.prod(use.windows.outputs))
        rank = len(self.weight_shape)
        inputs = self.weight_shape[rank - 2 if self.weight_axis == rank - 1 else rank - 1]
        return int(np.prod(use.output_shape)) * inputs // self.samples

    def rows(self, weight: Array) -> Array:
        """The weight as a matrix with one row per channel: weight_shape -> [channels, weights per channel]."""
        return np.moveaxis(weight, self.weight_axis, 0).reshape(self.channels, -1)

    def unrows(self, rows: Array) -> Array:
        """The inverse of `rows`: [channels, weights per channel] -> weight_shape."""
        shape = list(self.weight_shape)
        channels = shape.pop(self.weight_axis)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *shape), 0, self.weight_axis))

    def per_channel(self, values: Array) -> Array:
        """Values per output channel -> [channels, repeats]."""
        return np.moveaxis(values.reshape(*values.shape[:-1], self.repeats, self.channels), -1, -2)


@dataclass(frozen=True)
class LeftFloat:
    """A node that could have been a layer, and why it stays float."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Layers:
    """All layers of a model, and what was left float."""

    layers: tuple[Layer, ...]
    left_float: tuple[LeftFloat, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Layer name -> layer."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def size(self) -> int:
        """Number of weights in all layers."""
        return sum(layer.size for layer in self.layers)

    @cached_property
    def macs(self) -> int:
        """Multiplications of all layers for one sample."""
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True)
class LayerScores:
    """What the samples of each class say about the channels of one layer; every array is [classes, channels].

    Attributes:
        beta: share of the class's samples for which the channel is critical, in [0, 1]: for a filter that of the
            neuron of its feature map that is critical most often (CBQ, class score).
        saliency: mean over samples and neurons of |z dPhi/dz|.
        gradient_square: mean over samples of the sum over the channel's neurons of (dPhi/dz)^2.
    """

    layer: str
    beta: Array
    saliency: Array
    gradient_square: Array

    @property
    def gamma(self) -> Array:
        """How many classes need each channel, in [0, classes]: sum of beta over the classes (CBQ, importance)."""
        return np.asarray(self.beta.sum(axis=0))


@dataclass(frozen=True)
class Scores:
    """Class scores of every layer, from `samples[m]` samples of class m; `notes` say what fell short."""

    layers: tuple[LayerScores, ...]
    class_names: tuple[str, ...]
    samples: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def arrays(self) -> dict[str, Array]:
        """Named arrays for an `.npz`: `beta/LAYER` and so on [classes, channels], `gamma/LAYER` [channels]."""
        named: dict[str, Array] = {"class_names": np.array(self.class_names), "samples": np.array(self.samples)}
        for scores in self.layers:
            for kind in ("beta", "gamma", "saliency", "gradient_square"):
                named[f"{kind}/{scores.layer}"] = getattr(scores, kind)
        return named

    @cached_property
    def by_layer(self) -> Mapping[str, LayerScores]:
        """Layer name -> its scores."""
        return {scores.layer: scores for scores in self.layers}


@dataclass(frozen=True)
class ActivationGrid:
    """How an activation is quantized: value = (code - zero_point) * scale, codes 0 .. 2^bits - 1."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return -self.zero_point * self.scale, (self.top - self.zero_point) * self.scale


@dataclass(frozen=True)
class Plan:
    """The bit width of every channel: layer name -> int8 [channels]."""

    bits: Mapping[str, Array]

    def average_bits(self, layers: Layers) -> float:
        """sum(bits x weights) / sum(weights) over all layers, first and last included."""
        total = sum(int(self.bits[layer.name].sum(dtype=np.int64)) * layer.weights_per_channel for layer in layers)
        return total / layers.size


@dataclass(frozen=True)
class Seen:
    """A model whose tensors are what layers see once those in front are quantized.

    Attributes:
        model: gives the tensors.
        names: tensor of the float model -> the one that stands for it, where it has another name.
    """

    model: Model
    names: Mapping[str, str]

    def name(self, tensor: str) -> str:
        """What stands for a tensor of the float model."""
        return self.names.get(tensor, tensor)


@dataclass(frozen=True)
class Grouping:
    """Classes taken together: what counts is to tell the groups apart.

    Attributes:
        names: of the groups, the names of their classes with + between them.
        of_class: the group of each class, [classes].
    """

    names: tuple[str, ...]
    of_class: Array

    @staticmethod
    def single(names: Sequence[str]) -> Grouping:
        """Every class a group of its own."""
        return Grouping(tuple(names), np.arange(len(names)))

    @staticmethod
    def of(names: Sequence[str], of_class: Array) -> Grouping:
        """Groups by the number of each class's group."""
        members = [[names[m] for m in np.flatnonzero(of_class == g).tolist()] for g in range(int(of_class.max()) + 1)]
        return Grouping(tuple("+".join(group) for group in members), of_class)

    @property
    def is_trivial(self) -> bool:
        """Whether every class is a group of its own."""
        return len(self.names) == len(self.of_class)

    @cached_property
    def members(self) -> Array:
        """1 where a class belongs to a group, float64 [groups, classes]."""
        return np.asarray(np.arange(len(self.names))[:, None] == self.of_class, np.float64)

    def sums(self, per_class: Array) -> Array:
        """Values per class, [..., classes] -> sums per group, [..., groups]."""
        return np.asarray(per_class @ self.members.T)

    def accuracy(self, confusion: Array) -> float:
        """Share of samples, in percent, whose group is predicted, by a confusion matrix [classes, classes]."""
        same = self.of_class[:, None] == self.of_class
        return float(100 * confusion[same].sum() / max(confusion.sum(), 1))


@dataclass(frozen=True)
class SearchReport:
    """How a rate-distortion plan was found; losses are mean divergences from the float model, in nats.

    Attributes:
        criterion: the prediction whose plan was best.
        measured: the measured loss of each criterion's plan.
        loss: that of the plan in the end, after layers have traded bits.
        exchanges: trades that were accepted.
        plans: how many plans were measured.
    """

    criterion: str
    measured: Mapping[str, float]
    loss: float
    exchanges: int
    plans: int


@dataclass(frozen=True)
class LayerWeights:
    """The integer weights of one layer, in the weight's own shape.

    Attributes:
        codes: int8, weight_shape; uint8 where they are positions in `levels`.
        scale: float32 [channels].
        bits: int8 [channels].
        zero_point: int8 [channels]; None for 0.
        levels: float32, a table that the codes look up; None for the codes themselves.
        table: int8, rising, the only codes that occur, of which the file may hold positions in place of the codes; None
            if any may occur. The bits are then those of a position.
    """

    codes: Array
    scale: Array
    bits: Array
    zero_point: Array | None = None
    levels: Array | None = None
    table: Array | None = None

    def bias_scale(self, activation_scale: float) -> Array:
        """The scale s_x s_w of the int32 bias, float32 [channels]."""
        return np.asarray(self.scale * np.float32(activation_scale), np.float32)


@dataclass(frozen=True)
class Written:
    """What is written: a graph with float weights, its layers, and the integers that stand for their weights."""

    model: Model
    layers: Layers
    weights: Mapping[str, LayerWeights]


@dataclass(frozen=True)
class KeptZero:
    """Channels of 0 bits that stay in a layer as zeros, and why."""

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Removal:
    """Channels that were cut out of the layers.

    Attributes:
        removed: layer name -> which of its channels; layers that lost none are left out.
        kept_zero: channels of 0 bits that are still there.
        macs: multiplications of all layers for one sample, before and after.
        notes: what a user should know.
    """

    removed: Mapping[str, tuple[int, ...]]
    kept_zero: tuple[KeptZero, ...]
    macs: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What a model does on labelled samples. Accuracies are in percent.

    Attributes:
        top1: share of samples whose largest class score is that of their label.
        top5: share whose label is among the five largest; None with 10 classes or fewer.
        per_class: top-1 of each class; None for a class without samples.
        confusion: samples by (label, prediction), int64 [classes, classes].
        bytes: size of the model's file or files.
        latency_ms: median milliseconds of a run at batch 1 (or at the batch that the model insists on).
    """

    top1: float
    top5: float | None
    per_class: tuple[float | None, ...]
    confusion: Array
    bytes: int
    latency_ms: float

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.confusion.sum())

    @property
    def worst_class(self) -> int:
        """The class of lowest accuracy."""
        return min(
            (m for m, accuracy in enumerate(self.per_class) if accuracy is not None),
            key=lambda m: self.per_class[m] or 0.0,
        )
