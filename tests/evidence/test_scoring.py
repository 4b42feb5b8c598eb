"""Class scores against torch autograd, one sample at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence import scoring
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.scoring import fisher_squares, score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping, LayerScores, Scores
from tests.conftest import random_set
from tests.exports import CLASSES, export
from tests.graphs import make_model, node

# Both sides sum in float32 in another order.
TOLERANCE = 1e-4
SAMPLES = 23  # no multiple of any batch size below


class SmallNet(nn.Module):
    """A strided convolution, a grouped one, a layer used twice, and a transposed one, each behind a ReLU."""

    example_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, 6, 3, stride=2, padding=1),
                nn.Conv2d(6, 6, 3, padding=1, groups=2),
                nn.Conv2d(6, 6, 1),
                nn.ConvTranspose2d(6, 4, 2, stride=2),
                nn.Linear(4, CLASSES),
            ]
        )

    def outputs(self, x: Tensor) -> list[list[Tensor]]:
        """The outputs z of every layer, one for each use; the last are the logits."""
        first, grouped, shared, transposed, head = self.layers
        a = first(x)
        b = grouped(torch.relu(a))
        c = shared(torch.relu(b))
        d = shared(torch.relu(c))
        e = transposed(torch.relu(d))
        logits = head(torch.relu(e).mean((2, 3)))
        return [[a], [b], [c, d], [e], [logits]]

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1][0]


class TokenNet(nn.Module):
    """Linear layers over tokens: the exporter's MatMul becomes a Gemm whose rows are samples times tokens."""

    example_shape = (7, 4)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)])

    def outputs(self, x: Tensor) -> list[list[Tensor]]:
        """The outputs z of every layer [N, T, C], and the logits."""
        a = self.layers[0](x)
        b = self.layers[1](torch.relu(a))
        return [[a], [b], [self.layers[2](torch.tanh(b).mean(1))]]

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1][0]


Net = SmallNet | TokenNet
NETS: dict[str, Callable[[], Net]] = {"conv": SmallNet, "tokens": TokenNet}


@dataclass
class Expected:
    """Scores by the definition, [classes, channels] per layer."""

    beta: list[Array]
    saliency: list[Array]
    gradient_square: list[Array]


def expected_scores(net: Net, x: Array, y: Array, config: ScoringConfig) -> Expected:
    """Every definition in the words of the records, with a Python loop over the samples."""
    count = len(net.layers)
    critical: list[list[list[list[Array]]]] = [[[] for _ in range(CLASSES)] for _ in range(count)]
    saliency: list[list[list[Array]]] = [[[] for _ in range(CLASSES)] for _ in range(count)]
    square: list[list[list[Array]]] = [[[] for _ in range(CLASSES)] for _ in range(count)]
    for sample, label in zip(x, y, strict=True):
        outputs = net.outputs(torch.tensor(sample[None]))
        flat = [z for uses in outputs for z in uses]
        found = iter(torch.autograd.grad(outputs[-1][0][0, label], flat, allow_unused=True))
        for index, uses in enumerate(outputs):
            pairs = []
            for z in uses:
                g = next(found)
                assert g is not None
                # [1, C, H, W] or [1, T, C] or [1, C] -> [C, positions]
                axis = 2 if z.ndim == 3 else 1
                pairs.append([t.detach().numpy()[0].swapaxes(0, axis - 1).reshape(z.shape[axis], -1) for t in (z, g)])
            products = [np.abs(z * g) for z, g in pairs]
            limits = [config.epsilon * (p.mean() if config.relative else 1.0) for p in products]
            critical[index][label].append([p > limit for p, limit in zip(products, limits, strict=True)])
            saliency[index][label].append(np.mean([p.mean(axis=1) for p in products], axis=0))
            square[index][label].append(np.sum([(g**2).sum(axis=1) for _, g in pairs], axis=0))
    beta = [
        np.array(
            [
                np.max([np.mean(use, axis=0).max(axis=1) for use in zip(*samples, strict=True)], axis=0)
                for samples in layer
            ]
        )
        for layer in critical
    ]
    return Expected(
        beta,
        [np.array([np.mean(samples, axis=0) for samples in layer]) for layer in saliency],
        [np.array([np.mean(samples, axis=0) for samples in layer]) for layer in square],
    )


def scores_of(
    proto: onnx.ModelProto, shape: tuple[int, ...], config: ScoringConfig | None = None, logits: str | None = None
) -> Scores:
    work = prepare(proto, random_set(shape, SAMPLES), logits)
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config or ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    return score_channels(ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names)), drawn)


def assert_close(found: Scores, expected: Expected) -> None:
    assert len(found.layers) == len(expected.beta)
    for index, layer in enumerate(found.layers):
        np.testing.assert_allclose(layer.beta, expected.beta[index], atol=1e-12, err_msg=layer.layer)
        for name in ("saliency", "gradient_square"):
            other = getattr(expected, name)[index]
            assert np.linalg.norm(getattr(layer, name) - other) < TOLERANCE * np.linalg.norm(other), (layer.layer, name)


def samples_of(net: Net) -> tuple[Array, Array]:
    x = random_set(net.example_shape, SAMPLES).source.read("x", range(SAMPLES))
    return x, np.arange(SAMPLES) % CLASSES


CONFIGS = {
    "paper": ScoringConfig(),
    "absolute": ScoringConfig(epsilon=1e-3),
    "relative": ScoringConfig(epsilon=0.7, relative=True),
}


@pytest.mark.parametrize(
    ("config", "dynamo"), [("paper", True), ("paper", False), ("absolute", False), ("relative", False)]
)
@pytest.mark.parametrize("name", NETS)
def test_scores_match_autograd_sample_by_sample(
    name: str, config: str, dynamo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums inside the graph, over batches that do not divide the samples, against one sample at a time."""
    monkeypatch.setattr(scoring, "LARGEST_BATCH", 3)
    net = NETS[name]().eval()
    expected = expected_scores(net, *samples_of(net), CONFIGS[config])
    assert_close(scores_of(export(net, dynamo=dynamo), net.example_shape, CONFIGS[config]), expected)
    # The test means something only where some neurons are critical and some are not.
    assert 0 < np.mean([beta.mean() for beta in expected.beta[:-1]]) < 1


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", NETS)
def test_a_fixed_batch_scores_as_a_dynamic_one(name: str, batch: int) -> None:
    """The last batch of each class is padded with samples that must not count."""
    net = NETS[name]().eval()
    proto = export(net, dynamo=False, dynamic_batch=False, batch=batch)
    assert_close(scores_of(proto, net.example_shape), expected_scores(net, *samples_of(net), ScoringConfig()))


def hand_made(nodes: list[onnx.NodeProto], **constants: Array) -> Scores:
    return scores_of(make_model(nodes, {"x": ["N", 4]}, ["y"], constants), (4,))


def weight(rows: int, columns: int) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)


def test_a_channel_that_no_class_needs_scores_nothing() -> None:
    """Its outgoing weights are 0: pruning it changes nothing, which is what 0 bits are for."""
    v = weight(6, CLASSES)
    v[2] = 0
    scores = hand_made([node("Gemm", "x w", "z"), node("Gemm", "z v")], w=weight(4, 6), v=v)
    gamma = scores.layers[0].gamma
    assert gamma[2] == 0
    np.testing.assert_array_equal(np.delete(gamma, 2), CLASSES)
    assert scores.layers[0].saliency[:, 2].max() == 0


def test_a_channel_that_one_class_needs_scores_one() -> None:
    v = weight(6, CLASSES)
    v[2] = 0
    v[2, 3] = 1
    scores = hand_made([node("Gemm", "x w", "z"), node("Gemm", "z v")], w=weight(4, 6), v=v)
    assert scores.layers[0].beta[:, 2].tolist() == [0, 0, 0, 1, 0]
    assert scores.layers[0].gamma[2] == 1


def test_a_layer_without_influence_on_the_logits_scores_nothing() -> None:
    nodes = [node("Gemm", "x w", "y"), node("Gemm", "x v", "z")]
    proto = make_model(nodes, {"x": ["N", 4]}, ["y", "z"], {"w": weight(4, CLASSES), "v": weight(4, 2)})
    found = scores_of(proto, (4,), logits="y").by_layer
    assert found["w"].gamma.max() > 0
    for name in ("beta", "saliency", "gradient_square"):
        np.testing.assert_array_equal(getattr(found["v"], name), np.zeros((CLASSES, 2)))


def test_a_softmax_at_the_end_is_stepped_over() -> None:
    """Behind it the gradient of a sure prediction vanishes, and every score with it."""
    nodes = [node("Gemm", "x w", "z"), node("Gemm", "z v", "l")]
    constants = {"w": 50 * weight(4, 6), "v": 50 * weight(6, CLASSES)}
    plain = hand_made([*nodes, node("Identity", "l")], **constants)
    softmax = hand_made([*nodes, node("Softmax", "l")], **constants)
    np.testing.assert_array_equal(plain.layers[0].saliency, softmax.layers[0].saliency)


def test_batches_shrink_with_large_layer_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory must not depend on the net: 6 + 5 neurons of 4 bytes are 44 bytes a sample."""
    proto = make_model(
        [node("Gemm", "x w", "z"), node("Gemm", "z v")],
        {"x": ["N", 4]},
        ["y"],
        {"w": weight(4, 6), "v": weight(6, CLASSES)},
    )
    layers = prepare(proto, random_set((4,))).layers
    for limit, expected in ((44 * 7, 7), (44 * 7 - 1, 6), (10, 1), (1 << 30, 100)):
        monkeypatch.setattr(scoring, "BATCH_BYTES", limit)
        assert scoring.batch_size(layers) == expected


def test_progress_counts_samples_and_the_record_names_what_was_seen() -> None:
    proto = make_model([node("Gemm", "x w")], {"x": ["N", 4]}, ["y"], {"w": weight(4, CLASSES)})
    work = prepare(proto, random_set((4,), SAMPLES))
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    seen: list[tuple[str, int, int]] = []
    groups = Grouping.single(work.class_names)
    scores = score_channels(
        ScoringWork(graph, work.layers, work.samples, groups), drawn, lambda *step: seen.append(step)
    )
    assert scores.samples == (5, 5, 5, 4, 4)
    assert scores.class_names == ("0", "1", "2", "3", "4")
    assert seen == [("scoring", done, SAMPLES) for done in (5, 10, 15, 19, 23)]
    assert isinstance(scores.by_layer["w"], LayerScores)
    assert set(scores.arrays()) == {"class_names", "samples"} | {
        f"{kind}/w" for kind in ("beta", "gamma", "saliency", "gradient_square")
    }


class GivenSigns:
    """A generator that always draws the same signs."""

    def __init__(self, signs: Array) -> None:
        self.signs = signs

    def choice(self, values: Array, shape: tuple[int, ...]) -> Array:
        assert sorted(values.tolist()) == [-1, 1]
        return np.broadcast_to(self.signs, shape).astype(values.dtype)


def exact_fisher(net: Net, x: Array, y: Array, of_class: Array) -> list[Array]:
    """sum over groups G of P_G (d log P_G / dz)^2, summed over neurons, mean over samples: [groups, channels]."""
    groups = int(of_class.max()) + 1
    sums = [[np.zeros(0)] * groups for _ in net.layers]
    for sample, label in zip(x.astype(np.float64), y, strict=True):
        outputs = net.outputs(torch.tensor(sample[None]))
        shares = torch.softmax(outputs[-1][0][0], 0)
        flat = [z for uses in outputs for z in uses]
        by_layer = [[np.zeros(0)] for _ in outputs]
        for group in range(groups):
            share = shares[torch.tensor(of_class == group)].sum()
            found = iter(torch.autograd.grad(share.log(), flat, retain_graph=True))
            for index, uses in enumerate(outputs):
                for z in uses:
                    square = float(share.detach()) * next(found).numpy()[0] ** 2
                    channels = np.moveaxis(square, 0 if z.ndim != 3 else 1, 0)
                    by_layer[index].append(channels.reshape(len(channels), -1).sum(axis=1))
        for index, parts in enumerate(by_layer):
            group = int(of_class[label])
            total = np.sum(parts[1:], axis=0)
            sums[index][group] = sums[index][group] + total if sums[index][group].size else total
    counts = [np.sum(of_class[y] == group) for group in range(groups)]
    return [np.stack([total / count for total, count in zip(layer, counts, strict=True)]) for layer in sums]


@pytest.mark.parametrize(
    ("of_class", "batch"), [([0, 1, 2, 3, 4], None), ([0, 1, 0, 2, 1], 4)], ids=["classes", "groups-fixed-batch"]
)
@pytest.mark.parametrize("name", NETS)
def test_the_fisher_information_is_exact_over_all_signs(
    monkeypatch: pytest.MonkeyPatch, name: str, of_class: list[int], batch: int | None
) -> None:
    """The expectation over random signs is their mean over all of them; a fixed batch is padded."""
    net = NETS[name]().eval()
    proto = export(net, dynamo=False, dynamic_batch=batch is None, batch=batch or 2)
    work = prepare(proto, random_set(net.example_shape, SAMPLES))
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    groups = Grouping.of(work.class_names, np.array(of_class))
    estimates = []
    for signs in itertools.product((-1.0, 1.0), repeat=len(groups.names)):
        monkeypatch.setattr(np.random, "default_rng", lambda _, signs=signs: GivenSigns(np.array(signs)))
        estimates.append(fisher_squares(ScoringWork(graph, work.layers, work.samples, groups), drawn, 0))
    monkeypatch.undo()
    expected = exact_fisher(NETS[name]().double().eval(), *samples_of(net), np.array(of_class))
    for index, layer in enumerate(work.layers):
        found = np.mean([estimate[layer.name] for estimate in estimates], axis=0)
        assert found.shape == expected[index].shape
        np.testing.assert_allclose(found, expected[index], rtol=1e-3, atol=1e-4 * expected[index].max())


def test_random_signs_are_drawn_by_the_seed() -> None:
    net = SmallNet().eval()
    work = prepare(export(net, dynamo=False), random_set(net.example_shape, SAMPLES))
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    groups = Grouping.single(work.class_names)
    one, same, other = (
        fisher_squares(ScoringWork(graph, work.layers, work.samples, groups), drawn, seed)[work.layers.layers[0].name]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one.sum(), other.sum(), rtol=0.7)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_classes_without_samples_take_no_memory() -> None:
    """ViT-B/16 has 1,000 classes and 85,000 channels: scores of classes that no sample has were 3 GB of zeros."""
    many = 4000
    proto = make_model(
        [node("Gemm", "x a", "z"), node("Relu", "z", "r"), node("Gemm", "r b", "y")],
        {"x": ["N", 4]},
        ["y"],
        {"a": weight(4, many), "b": weight(many, many)},
    )
    work = prepare(proto, random_set((4,), SAMPLES))
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn, groups = draw(work.samples, work.class_names, None, seed=0), Grouping.single(work.class_names)
    before = resident()
    scores = score_channels(ScoringWork(graph, work.layers, work.samples, groups), drawn)
    squares = fisher_squares(ScoringWork(graph, work.layers, work.samples, groups), drawn, seed=0)
    taken = resident() - before
    stored = sum(layer.beta.nbytes * 3 for layer in scores.layers) + sum(found.nbytes for found in squares.values())
    assert stored == 8 * 4 * 2 * many * many
    assert taken < stored / 4
    assert scores.layers[0].beta[CLASSES - 1].any()
    assert not scores.layers[0].beta[CLASSES:].any()


def resident() -> int:
    """Bytes of memory that this process has now."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
