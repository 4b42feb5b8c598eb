"""The comparison of "Towards the Limit of Network Quantization" (Choi et al., arXiv 1612.01543), its shape.

LeNet and ResNet-20, values shared by the whole net as in the paper, without pruning and without fine-tuning, 1,000
calibration samples, top-1 on 3,000 test images. Two tables for each net:

    indices of one length   k-means, Hessian-weighted k-means, uniform steps; the paper's best is the Hessian's
    words of any length     uniform steps, ECSQ, k-means, at equal entropy; the paper's best are uniform steps

The row "compensated" is what `quantize --codebook hessian-kmeans` does by default: values shared per layer, and weights
that make up for each other's errors. The diagonal of the Hessian is the mean square of the gradient at a channel's
outputs times that of what the weight multiplies; "own gradients" takes the mean square of each weight's own gradient
instead, by the same backward graph, and the correlation of the two logarithms is printed.

The exit code is 1 if a shape does not hold, as a mean over the rates. On ResNet-20 that of the second table does not:
at an entropy of 3, where no row is near the float accuracy, k-means beats uniform steps; from 3.5 on it does not. Takes
about ten minutes on two busy cores.

python benchmarks/limit.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from common import CARDS, Requirements, data_file, print_table
from scipy.special import softmax

from onnx_cbq import CalibrationSet, QuantizeConfig
from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.calibration.samples import Batch
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.gradient.backward import attach, build_backward
from onnx_cbq.gradient.expand import expand
from onnx_cbq.methods.codebooks import HessianKMeans
from onnx_cbq.methods.shared_values import Share, ShareEvidence, round_to_values
from onnx_cbq.model import Array
from onnx_cbq.quantize.codebook import code_lengths, ecsq, kmeans, make_codebook
from onnx_cbq.quantize.patches import input_rows
from onnx_cbq.runtime import Session
from onnx_cbq.stages.scene import Scene, make_scene

NETS = {
    "LeNet": ("lenet_mnist.onnx", "mnist.toml", "mnist"),
    "ResNet-20": ("resnet20_cifar10.onnx", "cifar10.toml", "cifar10"),
}
BITS = (2, 3, 4, 5)
# Without fine-tuning ResNet-20 keeps little accuracy at rates where LeNet loses none.
RATES = {"LeNet": (1.5, 2.0, 2.5, 3.0), "ResNet-20": (3.0, 3.5, 4.0, 4.5)}
SAMPLES = 1000
IMAGES = 3000
_BATCH = 50
_HALVINGS = 24
_STRIDE = 16
_RAISE = 1.05

# What `quantize` makes its codebooks by.
METHOD = HessianKMeans()

# A weight's values -> those in place of them, and the share of weights that each takes.
Assigned = tuple[Array, Array]


@dataclass(frozen=True)
class Net:
    """A net with what its comparison needs: weights and Hessians of all layers in one row."""

    scene: Scene
    tests: list[Batch]
    shares: ShareEvidence
    values: Array
    product: Array
    own: Array

    @property
    def work(self) -> Workload:
        """The net and its calibration samples."""
        return self.scene.work


def load(model: str, card: str, data: str) -> Net:
    """The net, its samples, and both estimates of its Hessian."""
    sets = [CalibrationSet.from_card(CARDS / card, data_file(f"{data}_{part}.npz")) for part in ("calibration", "test")]
    work, test = (prepare(data_file(model), samples) for samples in sets)
    scene = gather(work)
    shares = METHOD.shares(scene.evidence, scene.settings.rounding, METHOD.option)
    own = own_squares(work, scene.drawn)
    images = draw(test.samples, test.class_names, IMAGES, 0).indices
    return Net(
        scene=scene,
        tests=list(test.samples.batches(images, 100)),
        shares=shares,
        values=_row(work, {layer.name: layer.rows(work.model.weight(layer.weight)) for layer in work.layers}),
        product=_row(work, shares.hessian),
        own=_row(work, own),
    )


def gather(work: Workload) -> Scene:
    """What `quantize` makes its codebooks of, activations in float; all samples drawn count for the Hessian."""
    settings = QuantizeConfig(method=METHOD, activation_bits=0, samples=SAMPLES).choice.scene
    return make_scene(work, replace(settings, samples=replace(settings.samples, held_back=0.0)))


def own_squares(work: Workload, drawn: Draw) -> dict[str, Array]:
    """Half the mean over samples of the square of each weight's gradient, sum_p g_p x_p, [channels, n] by layer.

    The gradient is that of the log-likelihood of a class that the model itself draws: the Fisher information.
    """
    expanded = expand(work.model, work.example).model
    shapes = work.example.shapes(expanded)
    uses = [(layer, use) for layer in work.layers for use in layer.uses]
    backward = build_backward(expanded, shapes, work.logits.tensor, [use.output for _, use in uses])
    inputs = {spec.name for spec in work.model.inputs}
    wanted = [backward.gradients[use.output] for _, use in uses]
    wanted += [use.activation for _, use in uses if use.activation not in inputs]
    session = Session(attach(expanded, backward, work.logits.tensor, shapes, dict.fromkeys(wanted)))
    forward = Session(work.model.with_graph(outputs=[work.logits.tensor]))
    random = np.random.default_rng(0)
    totals = {layer.name: np.zeros((layer.channels, layer.weights_per_channel)) for layer in work.layers}
    for batch in work.samples.batches(drawn.indices, _BATCH):
        shares = softmax(forward.run(batch.feeds)[work.logits.tensor].astype(np.float64), axis=1)
        chosen = (shares.cumsum(axis=1) > random.random((len(shares), 1))).argmax(axis=1)
        seed = (np.eye(shares.shape[1])[chosen] - shares).astype(np.float32)
        found = {**session.run({**batch.feeds, backward.seed: seed}), **batch.feeds}
        for layer, use in uses:
            rows = input_rows(layer, use, found[use.activation], sys.maxsize, random)[0]
            gradient = np.moveaxis(found[backward.gradients[use.output]], use.channel_axis, -1)
            gradient = gradient.reshape(len(seed), -1, layer.channels)
            each = gradient.swapaxes(1, 2) @ rows.reshape(len(seed), -1, layer.weights_per_channel)
            totals[layer.name] += 0.5 * np.square(each, dtype=np.float64).sum(axis=0) / len(drawn.indices)
    return totals


def accuracy(net: Net, constants: Mapping[str, Array]) -> float:
    """Top-1 on the test images, in percent."""
    session = Session(net.work.model.with_graph(outputs=[net.work.logits.output]).with_constants(constants))
    hits = [session.run(b.feeds)[net.work.logits.output].argmax(axis=1) == b.labels for b in net.tests]
    return float(100 * np.concatenate(hits).mean())


def accuracy_of(net: Net, values: Array) -> float:
    """Likewise with these values for the weights of all layers, in one row."""
    parts = np.split(values.astype(np.float32), np.cumsum([layer.size for layer in net.work.layers])[:-1])
    return accuracy(net, {x.weight: x.unrows(p) for x, p in zip(net.work.layers, parts, strict=True)})


def on_values(net: Net, centres: Array) -> Assigned:
    """Every weight on the nearest centre, as int8 tables have them."""
    levels = make_codebook(centres).levels
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, net.values)
    return levels[index], np.bincount(index, minlength=len(levels))


def uniform_levels(net: Net, count: int) -> Array:
    """`count` evenly spaced values with the reach of least squared error."""
    top = float(np.abs(net.values).max())
    tried = [np.linspace(-top * share, top * share, count) for share in np.geomspace(0.05, 1, 40)]
    errors = [np.square(net.values - on_values(net, levels)[0]).sum() for levels in tried]
    return tried[int(np.argmin(errors))]


def uniform_steps(net: Net, step: float) -> Assigned:
    """The paper's uniform quantization: cells of one size, each with its weighted mean as value."""
    index = np.unique(np.rint(net.values / step), return_inverse=True)[1].reshape(-1)
    weights = net.product + np.finfo(np.float32).tiny
    means = np.bincount(index, weights * net.values) / np.bincount(index, weights)
    return means[index], np.bincount(index)


def priced(net: Net, price: float, stride: int = 1) -> Assigned:
    """ECSQ at a price, Hessian-weighted, of every weight or every `stride`-th."""
    values, weights = net.values[::stride], net.product[::stride]
    clusters = ecsq(values, weights, price)
    charges = price * code_lengths(clusters.counts)
    index = np.concatenate(
        [
            (np.square(v[:, None] - clusters.centres) * h[:, None] + charges).argmin(axis=1)
            for v, h in zip(*(np.array_split(part, 64) for part in (values, weights)), strict=True)
        ]
    )
    return clusters.centres[index], np.bincount(index)


def entropy(counts: Array) -> float:
    """Bits per weight."""
    counts = counts[counts > 0]
    return float(counts @ code_lengths(counts) / counts.sum())


def at_rate(assign: Callable[[float], Assigned], rate: float, low: float, high: float) -> float:
    """The least parameter, on a logarithmic scale, whose values have an entropy of at most the rate."""
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        found = entropy(assign(middle)[1])
        low, high = (low, middle) if found <= rate else (middle, high)
        if 0.995 * rate < found <= rate:
            break
    return high


def ecsq_at_rate(net: Net, rate: float) -> Array:
    """ECSQ at a price that is found with some of the weights, and raised until all of them keep the rate."""
    scale = float(np.mean(net.product)) * float(np.var(net.values))
    price = at_rate(lambda price: priced(net, price, _STRIDE), rate, scale / 1e4, scale * 10)
    values, counts = priced(net, price)
    while entropy(counts) > rate:
        price *= _RAISE
        values, counts = priced(net, price)
    return values


def kmeans_at_rate(net: Net, rate: float) -> Array:
    """k-means with the most values whose entropy does not exceed the rate."""
    best = on_values(net, kmeans(net.values, np.ones_like(net.values), 2))[0]
    for count in range(3, 64):
        values, counts = on_values(net, kmeans(net.values, np.ones_like(net.values), count))
        if entropy(counts) > rate:
            break
        best = values
    return best


def compensated(net: Net, bits: int) -> float:
    """What `quantize --codebook hessian-kmeans` does by default, activations in float."""
    rounded = round_to_values(net.scene, METHOD, net.shares, Share(1 << bits))
    return accuracy(net, rounded.constants(net.work.layers))


def fixed_table(net: Net) -> dict[str, list[float]]:
    """Top-1 by bits of an index."""

    def nearest(weights: Array) -> list[float]:
        return [accuracy_of(net, on_values(net, kmeans(net.values, weights, 1 << b))[0]) for b in BITS]

    return {
        "uniform": [accuracy_of(net, on_values(net, uniform_levels(net, 1 << b))[0]) for b in BITS],
        "k-means": nearest(np.ones_like(net.values)),
        "Hessian k-means": nearest(net.product),
        "Hessian k-means, own gradients": nearest(net.own),
        "Hessian k-means, compensated": [compensated(net, b) for b in BITS],
    }


def variable_table(net: Net, rates: tuple[float, ...]) -> dict[str, list[float]]:
    """Top-1 by entropy."""
    spread = float(np.std(net.values))
    steps = [at_rate(lambda step: uniform_steps(net, step), rate, spread / 16, spread * 16) for rate in rates]
    return {
        "uniform steps": [accuracy_of(net, uniform_steps(net, step)[0]) for step in steps],
        "ECSQ": [accuracy_of(net, ecsq_at_rate(net, rate)) for rate in rates],
        "k-means": [accuracy_of(net, kmeans_at_rate(net, rate)) for rate in rates],
    }


def show(title: str, columns: tuple[str, ...], rows: Mapping[str, list[float]]) -> None:
    """A table of accuracies."""
    print()
    print_table((title, *columns), [[name, *(f"{found:.2f}" for found in row)] for name, row in rows.items()])


def correlation(one: Array, other: Array) -> float:
    """Of the logarithms of what is above 0 in both."""
    both = (one > 0) & (other > 0)
    return float(np.corrcoef(np.log(one[both]), np.log(other[both]))[0, 1])


def _row(work: Workload, parts: Mapping[str, Array]) -> Array:
    return np.concatenate([np.asarray(parts[layer.name], np.float64).reshape(-1) for layer in work.layers])


def main() -> int:
    """Measure, print, and return 1 if a shape does not hold."""
    required = Requirements()
    for name, files in NETS.items():
        net = load(*files)
        exact, variable = accuracy(net, {}), variable_table(net, RATES[name])
        show(f"{name}, top-1, % (float {exact:.2f})", tuple(f"entropy {r:g}" for r in RATES[name]), variable)
        fixed = fixed_table(net)
        show(f"{name}, top-1, % (float {exact:.2f})", tuple(f"{b} bits" for b in BITS), fixed)
        print(f"\n{name}: product and own gradients correlate by {correlation(net.product, net.own):.3f}")
        for rows, best in ((fixed, "Hessian k-means"), (variable, "uniform steps")):
            for other in [key for key in ("uniform", "k-means", "ECSQ") if key in rows]:
                gain = float(np.mean(rows[best]) - np.mean(rows[other]))
                required.at_least(f"{name}: mean points that {best} gains on {other}", gain, 0)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
