"""What a plan does to a model, against onnxruntime and the definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnx_cbq.calibration.draw import draw
from onnx_cbq.calibration.samples import Batch, Samples
from onnx_cbq.evidence import reading
from onnx_cbq.evidence import relay as relays
from onnx_cbq.evidence.measure import Measured, PlanMeasure, spread_out
from onnx_cbq.evidence.rounders import NearestRounder, Rounder, TableRounder
from onnx_cbq.evidence.tables import make_tables, run_of
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Grouping, Plan, Seen
from onnx_cbq.runtime import Session
from tests.conftest import random_set
from tests.exports import CLASSES, export, make_net

SHAPE = (3, 16, 16)
SAMPLES = 42
GROUPS = [0, 1, 0, 2, 1]


def net() -> nn.Module:
    """A net with random weights that tells its samples apart: the mean of its logits is 0, and they are far apart."""
    net = make_net("residual")
    x = random_set(SHAPE, SAMPLES).source.read("x", range(SAMPLES))
    head = net.get_submodule("head")
    with torch.no_grad():
        head.weight.mul_(40)  # type: ignore[operator]
        head.bias.sub_(net(torch.tensor(x)).mean(0))  # type: ignore[operator]
    return net


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(export(net(), dynamo=False), random_set(SHAPE, SAMPLES))


def everything(work: Workload) -> Array:
    return draw(work.samples, work.class_names, None, seed=0).indices


def measure_of(
    work: Workload, rounder: Rounder | None, of_class: list[int] | None = None, size: int = 10
) -> PlanMeasure:
    groups = Grouping.of(work.class_names, np.array(of_class or range(CLASSES)))
    return PlanMeasure(
        work.model, work.layers, (work.samples, everything(work), size), (work.logits, groups, ()), rounder
    )


def tables_of(work: Workload) -> TableRounder:
    drawn = draw(work.samples, work.class_names, None, seed=0)
    run = run_of(work, drawn, RoundingConfig(), np.ones(CLASSES))
    return TableRounder(make_tables(work, run, RoundingConfig()))


def random_plan(work: Workload, seed: int, low: int = 1) -> Plan:
    random = np.random.default_rng(seed)
    return Plan({layer.name: random.integers(low, 6, layer.channels).astype(np.int8) for layer in work.layers})


def probabilities(work: Workload, constants: dict[str, Array]) -> tuple[Array, Array]:
    """Of all samples by onnxruntime, and their labels."""
    indices = everything(work)
    x = work.samples.read(indices)
    logits = Session(work.model.with_constants(constants)).run(x)["logits"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True), work.samples.labels[indices]


def expected(work: Workload, constants: dict[str, Array], of_class: Array) -> tuple[Array, Array, Array]:
    """Counts, hits and divergence of each class by their definitions, a sample at a time."""
    p, labels = probabilities(work, {})
    q, _ = probabilities(work, constants)
    counts, hits, divergence = np.zeros((3, CLASSES))
    for one, other, label in zip(p, q, labels, strict=True):
        counts[label] += 1
        hits[label] += of_class[other.argmax()] == of_class[label]
        for group in np.unique(of_class):
            a, b = one[of_class == group].sum(), other[of_class == group].sum()
            divergence[label] += a * np.log(a / b)
    return counts, hits, divergence


def constants_of(work: Workload, rounder: Rounder, plan: Plan) -> dict[str, Array]:
    """Weights of the plan, and biases with what rounding took from the mean."""
    constants: dict[str, Array] = {}
    for layer in work.layers:
        rows = rounder.rows(layer, plan.bits[layer.name])
        constants[layer.weight] = np.moveaxis(
            rows.reshape(len(rows), *np.delete(layer.weight_shape, layer.weight_axis)), 0, layer.weight_axis
        )
        for number, use in enumerate(layer.uses):
            shift = rounder.shift(layer, number, plan.bits[layer.name])
            if shift is not None and use.bias is not None:
                constants[use.bias] = (work.model.weight(use.bias) + shift).astype(np.float32)
    return constants


def assert_measured(found: Measured, wanted: tuple[Array, Array, Array]) -> None:
    counts, hits, divergence = wanted
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_allclose(found.divergence, divergence, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("of_class", [None, GROUPS], ids=["classes", "groups"])
@pytest.mark.parametrize("make", [tables_of, lambda work: NearestRounder(work.model)], ids=["tables", "nearest"])
def test_a_plan_measures_what_onnxruntime_and_the_definitions_give(
    work: Workload, make: Callable[[Workload], Rounder], of_class: list[int] | None
) -> None:
    rounder = make(work)
    measure, plan = measure_of(work, rounder, of_class), random_plan(work, 0)
    wanted = expected(work, constants_of(work, rounder, plan), np.array(of_class or range(CLASSES)))
    assert wanted[2].sum() > 0.05
    assert len(set(wanted[1].tolist())) > 1
    assert_measured(measure(plan), wanted)


def test_a_layer_that_changed_is_rounded_again(work: Workload) -> None:
    """Layers whose widths stay keep their rounded weights; none may keep those of an older plan."""
    measure, plans = measure_of(work, NearestRounder(work.model)), [random_plan(work, seed) for seed in range(3)]
    name = work.layers.layers[2].name
    plans.append(Plan({**plans[0].bits, name: plans[1].bits[name]}))
    alone = [measure_of(work, NearestRounder(work.model))(plan) for plan in plans]
    for number in (0, 1, 0, 3, 0, 2, 3):
        found = measure(plans[number])
        np.testing.assert_array_equal(found.divergence, alone[number].divergence)


def test_the_float_model_diverges_from_itself_by_nothing(work: Workload) -> None:
    found = measure_of(work, None).run({})
    np.testing.assert_allclose(found.divergence, 0, atol=1e-9)
    p, labels = probabilities(work, {})
    assert 0 < found.accuracy < 1
    assert found.accuracy == pytest.approx(np.mean(p.argmax(axis=1) == labels))


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_that_fill_up_a_fixed_batch_do_not_count(work: Workload, batch: int) -> None:
    proto: onnx.ModelProto = export(net(), dynamo=False, dynamic_batch=False, batch=batch)
    fixed = prepare(proto, random_set(SHAPE, SAMPLES))
    plan = random_plan(work, 0)
    found = measure_of(fixed, NearestRounder(fixed.model))(
        Plan({b.name: plan.bits[a.name] for a, b in zip(work.layers, fixed.layers, strict=True)})
    )
    one = measure_of(work, NearestRounder(work.model))(plan)
    assert_measured(found, (one.counts, one.hits, one.divergence))


def test_nearest_rounding_rounds_each_channel_to_its_bits(work: Workload) -> None:
    layer, bits = work.layers.layers[1], random_plan(work, 3, low=0).bits[work.layers.layers[1].name]
    rounder: Rounder = NearestRounder(work.model)
    rows = layer.rows(work.model.weight(layer.weight))
    np.testing.assert_array_equal(rounder.rows(layer, bits), quantize_rows(rows, bits).values)
    assert rounder.shift(layer, 0, bits) is None


def test_another_model_is_measured_by_the_same_definitions(work: Workload) -> None:
    """Its class scores may have another name; the reference stays the float model."""
    plan = random_plan(work, 0)
    rounder = NearestRounder(work.model)
    changed = work.model.with_constants(constants_of(work, rounder, plan))
    graph = changed.with_graph([onnx.helper.make_node("Identity", ["logits"], ["renamed"])], outputs=["renamed"])
    found = measure_of(work, None).run_instead(Seen(graph, {"logits": "renamed"}))
    assert_measured(found, expected(work, constants_of(work, rounder, plan), np.arange(CLASSES)))


def test_losses_weigh_classes(work: Workload) -> None:
    """A sample counts as its class does; a class of weight 0 not at all."""
    found = measure_of(work, NearestRounder(work.model))(random_plan(work, 0))
    assert found.accuracy == pytest.approx(found.hits.sum() / SAMPLES)
    assert found.loss(np.ones(CLASSES)) == pytest.approx(found.divergence.sum() / SAMPLES)
    assert found.loss(np.eye(CLASSES)[2]) == pytest.approx(found.divergence[2] / found.counts[2])
    weights = np.arange(CLASSES)
    assert found.losses(weights).mean() == pytest.approx(found.loss(weights))
    labels = work.samples.labels[spread_out(everything(work), 10)]
    np.testing.assert_array_equal(found.losses(weights)[labels == 0], 0)
    expected_loss = (weights * found.divergence).sum() / (weights * found.counts).sum()
    assert found.loss(weights) == pytest.approx(expected_loss)


def test_a_measure_that_is_stopped_gives_the_first_samples_on_the_same_scale(work: Workload) -> None:
    """A plan that is given up early is held against the same samples of another, so their losses must be the same."""
    measure, plan = measure_of(work, NearestRounder(work.model)), random_plan(work, 3)
    whole, asked = measure(plan), []

    def stop(found: Measured) -> bool:
        asked.append(len(found.further))
        return len(asked) == 2

    part, weights = measure(plan, stop), np.arange(1.0, CLASSES + 1)
    assert asked == [10, 20]
    np.testing.assert_array_equal(part.divergences.toarray(), whole.divergences.toarray()[:20])
    np.testing.assert_allclose(part.losses(weights), whole.losses(weights)[:20], rtol=1e-12)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (12, 4), (5, 8), (1, 1)])
def test_every_batch_has_samples_from_everywhere(count: int, size: int) -> None:
    """Folders give one class after the other; the first batch would then know nothing of the others."""
    found = spread_out(np.arange(count), size)
    assert sorted(found.tolist()) == list(range(count))
    first = found[: -(-count // -(-count // size))]
    assert np.diff(first).max(initial=0) <= -(-count // size)
    assert first.max() >= count - -(-count // size)


def test_answers_that_are_no_numbers_are_as_wrong_as_can_be(work: Workload) -> None:
    """A loss of NaN cannot be compared, and a search with one ended in an exception."""
    measure = measure_of(work, None)
    name = work.layers.layers[-1].weight
    found = measure.run({name: np.full_like(work.model.weight(name), np.nan)})
    assert found.loss(np.ones(CLASSES)) == pytest.approx(708.4, abs=0.1)


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "nothing-fits"])
@pytest.mark.parametrize("skipped", [0, 2])
def test_a_change_of_one_layer_measures_as_the_whole_plan_does(
    work: Workload, monkeypatch: pytest.MonkeyPatch, limit: int, skipped: int
) -> None:
    """Batches that begin at a layer give what the whole net gives; the samples are read once where everything fits."""
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    measure = measure_of(work, NearestRounder(work.model))
    base, other = random_plan(work, 1), random_plan(work, 2)
    layers = list(work.layers)[skipped:]
    wanted = [measure(Plan({**base.bits, layer.name: other.bits[layer.name]})) for layer in layers]
    of_chunks, reads = Samples.of_chunks, []

    def read(samples: Samples, chunks: list[Array]) -> Iterator[Batch]:
        reads.append(1)
        return of_chunks(samples, chunks)

    monkeypatch.setattr(Samples, "of_chunks", read)
    monkeypatch.setattr(relays, "KEPT_BYTES", limit)
    changes = ((layer, measure.constants(other, [layer])) for layer in layers)
    for found, whole in zip(measure.alone(measure.constants(base), changes), wanted, strict=True):
        np.testing.assert_allclose(found.divergences.toarray(), whole.divergences.toarray(), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(found.hits, whole.hits)
        np.testing.assert_array_equal(found.counted, whole.counted)
    assert len(reads) == (1 if limit else 2 * len(layers))
