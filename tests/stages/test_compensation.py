"""Rounding layer after layer: what comes out of a whole net is nearer to float than any simpler way gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence.rounders import NearestRounder, TableRounder
from onnx_cbq.evidence.statistics import Collector, Run
from onnx_cbq.evidence.tables import make_tables, run_of
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.graph.placement import place_activations
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.activations import Histogram, choose_grid
from onnx_cbq.quantize.digits import on_steps
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Layers, Plan, Seen
from onnx_cbq.records.grids import fits_bits
from onnx_cbq.runtime import Session
from onnx_cbq.stages.compensation import Fitting, Rounded, fitting_plan, round_in_order, round_to_nearest
from onnx_cbq.storage.qdq import simulate_activations
from tests.conftest import random_set
from tests.exports import CLASSES, NETS, make_net
from tests.graphs import make_model, node

CONFIG = RoundingConfig()
SAMPLES = 60
Exported = Callable[..., onnx.ModelProto]


def workload(exported: Exported, name: str) -> Workload:
    return prepare(exported(name, dynamo=False), random_set(make_net(name).example_shape, SAMPLES))  # type: ignore[arg-type]


def run_over_all(work: Workload, config: RoundingConfig = CONFIG) -> Run:
    return run_of(work, draw(work.samples, work.class_names, None, seed=0), config, np.ones(work.logits.classes))


def uniform(work: Workload, bits: int) -> Plan:
    return Plan({layer.name: np.full(layer.channels, bits, np.int8) for layer in work.layers})


def values(model: Model, work: Workload, names: list[str]) -> dict[str, Array]:
    x = work.samples.read(np.arange(SAMPLES))
    return Session(model.with_graph(outputs=names)).run(x)


def error(
    work: Workload, constants: Mapping[str, Array], model: Model | None = None, tensor: str | None = None
) -> float:
    """Mean squared error of the logits with some constants replaced."""
    name = tensor or work.logits.tensor
    exact = values(work.model, work, [work.logits.tensor])[work.logits.tensor]
    found = values((model or work.model).with_constants(constants), work, [name])[name]
    return float(np.mean((found - exact) ** 2))


def by_tables(work: Workload, bits: int) -> dict[str, Array]:
    """Every layer compensated by the moments of the float model, biases shifted: not sequential."""
    rounder = TableRounder(make_tables(work, run_over_all(work), RoundingConfig()))
    constants: dict[str, Array] = {}
    for layer in work.layers:
        widths = np.full(layer.channels, bits, np.int8)
        constants[layer.weight] = layer.unrows(rounder.rows(layer, widths))
        for number, use in enumerate(layer.uses):
            shift = rounder.shift(layer, number, widths)
            if shift is not None and use.bias is not None:
                constants[use.bias] = (work.model.weight(use.bias) + shift).astype(np.float32)
    return constants


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["residual", "depthwise", "signal"])
def test_in_order_beats_each_layer_alone_and_that_beats_the_nearest(exported: Exported, name: str, bits: int) -> None:
    work = workload(exported, name)
    plan = uniform(work, bits)
    in_order = error(
        work,
        round_in_order(
            work.model, None, work.layers, Fitting(fitting_plan(plan, CONFIG)), run_over_all(work)
        ).constants(work.layers),
    )
    alone = error(work, by_tables(work, bits))
    nearest = error(work, round_to_nearest(work.model, work.layers, plan).constants(work.layers))
    assert in_order < alone < nearest


@pytest.mark.parametrize("name", NETS)
def test_codes_fit_the_plan_and_the_float_model_stays_as_it_was(exported: Exported, name: str) -> None:
    work = workload(exported, name)
    random = np.random.default_rng(0)
    plan = Plan({layer.name: random.integers(0, 9, layer.channels).astype(np.int8) for layer in work.layers})
    before = {layer.weight: work.model.weight(layer.weight).copy() for layer in work.layers}
    found = round_in_order(work.model, None, work.layers, Fitting(fitting_plan(plan, CONFIG)), run_over_all(work))
    assert set(found.weights) == {layer.name for layer in work.layers}
    for layer in work.layers:
        weights = found.weights[layer.name]
        assert weights.codes.shape == layer.weight_shape
        np.testing.assert_array_equal(weights.bits, plan.bits[layer.name])
        for codes, bits in zip(layer.rows(weights.codes), weights.bits, strict=True):
            assert fits_bits(codes, int(bits))
        np.testing.assert_array_equal(work.model.weight(layer.weight), before[layer.weight])
    constants = found.constants(work.layers)
    for name_, value in constants.items():
        assert (value.shape, value.dtype.name) == (work.model.weight(name_).shape, "float32")


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_biases_take_up_the_mean_shift_of_every_output(exported: Exported, name: str) -> None:
    """At 2 bits outputs are far off; on the calibration samples their means are not, nor those of sums of branches."""
    work = workload(exported, name)
    plan = uniform(work, 2)
    found = round_in_order(work.model, None, work.layers, Fitting(fitting_plan(plan, CONFIG)), run_over_all(work))
    uses = [use for layer in work.layers for use in layer.uses]
    outputs = [use.output if use.beside is None else work.model.consumers[use.output][0].output[0] for use in uses]
    exact = values(work.model, work, outputs)
    constants = found.constants(work.layers)
    corrected = values(work.model.with_constants(constants), work, outputs)
    plain = {name_: value for name_, value in constants.items() if name_ not in found.biases}
    shifted = values(work.model.with_constants(plain), work, outputs)
    assert set(found.biases) == {use.bias for layer in work.layers for use in layer.uses}

    def shift(values_: Array, exact_: Array) -> float:
        """The largest mean shift of a channel, relative to what the outputs vary."""
        axes = (0, *range(2, exact_.ndim))
        return float(np.abs((values_ - exact_).mean(axis=axes)).max() / exact_.std())

    assert max(shift(corrected[z], exact[z]) for z in outputs) < 1e-4
    assert max(shift(shifted[z], exact[z]) for z in outputs) > 0.05


@pytest.mark.parametrize("bits", [2, 3])
def test_the_last_layer_of_a_block_repairs_what_the_other_branch_has_lost(exported: Exported, bits: int) -> None:
    work = workload(exported, "residual")
    alone = Layers(
        tuple(replace(layer, uses=tuple(replace(use, beside=None) for use in layer.uses)) for layer in work.layers)
    )
    assert alone != work.layers

    ends = [use.output for layer in work.layers for use in layer.uses if use.beside is not None]
    sums = list(dict.fromkeys(work.model.consumers[end][0].output[0] for end in ends))
    assert len(sums) >= 2
    exact = values(work.model, work, sums)

    def errors(layers: Layers) -> Array:
        plan, run = Fitting(fitting_plan(uniform(work, bits), CONFIG)), run_over_all(work)
        constants = round_in_order(work.model, None, layers, plan, run).constants(layers)
        found = values(work.model.with_constants(constants), work, sums)
        return np.array([np.square(found[name] - exact[name]).mean() for name in sums])

    assert (errors(work.layers) < 0.98 * errors(alone)).all()


def test_deep_nets_share_passes(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred layers would mean a hundred runs over the samples; fewer passes still beat none."""
    work = workload(exported, "residual")
    plan, run = uniform(work, 3), run_over_all(work)
    runs = 0

    def counted(*arguments: object) -> object:
        nonlocal runs
        runs += 1
        return collect(*arguments)

    collect: Callable[..., object] = Collector.collect
    monkeypatch.setattr(Collector, "collect", counted)
    errors = {}
    for passes in (1, 2, 3, 32):
        runs = 0
        config = replace(CONFIG, passes=passes)
        found = round_in_order(
            work.model, None, work.layers, Fitting(fitting_plan(plan, config)), replace(run, config=config)
        )
        errors[passes] = error(work, found.constants(work.layers))
        assert runs <= min(passes, len(work.layers))
        assert set(found.weights) == set(plan.bits)
    assert errors[32] < errors[1]
    assert errors[3] < errors[1]
    assert max(errors.values()) < error(work, round_to_nearest(work.model, work.layers, plan).constants(work.layers))


def test_layers_learn_from_quantized_activations(exported: Exported) -> None:
    """Rounded for the activations that they will see, they lose less than rounded for float ones."""
    work = workload(exported, "residual")
    placement = place_activations(work.model, work.layers)
    inner = [name for name in placement.measured if name != "input"]
    seen_values = {**values(work.model, work, inner), **work.samples.read(np.arange(SAMPLES))}
    grids = {name: choose_grid(Histogram.empty().add(seen_values[name]), 3) for name in placement.measured}
    simulated: Seen = simulate_activations(work.model, placement, grids)
    plan, run = uniform(work, 3), run_over_all(work)
    tensor = simulated.name(work.logits.tensor)
    aware, unaware = (
        error(
            work,
            round_in_order(work.model, seen, work.layers, Fitting(fitting_plan(plan, CONFIG)), run).constants(
                work.layers
            ),
            simulated.model,
            tensor,
        )
        for seen in (simulated, None)
    )
    assert aware < 0.9 * unaware


def test_progress_and_damping_are_told(exported: Exported) -> None:
    work = workload(exported, "residual")
    steps: list[tuple[str, int, int]] = []
    plan = uniform(work, 4)
    found = round_in_order(
        work.model,
        None,
        work.layers,
        Fitting(fitting_plan(plan, CONFIG)),
        run_over_all(work),
        lambda *step: steps.append(step),
    )
    assert steps[-1] == ("rounding", len(work.layers), len(work.layers))
    assert found.notes == ()


def test_rounding_to_nearest_leaves_biases(exported: Exported) -> None:
    work = workload(exported, "signal")
    found = round_to_nearest(work.model, work.layers, uniform(work, 3))
    assert (found.biases, found.notes) == ({}, ())
    for layer in work.layers:
        rows = layer.rows(work.model.weight(layer.weight))
        expected = quantize_rows(rows, np.full(layer.channels, 3, np.int8))
        np.testing.assert_array_equal(layer.rows(found.weights[layer.name].codes), expected.codes)
        np.testing.assert_array_equal(NearestRounder(work.model).rows(layer, expected.bits), expected.values)


def weight(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def rounded(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], bits: int = 3, **constants: Array
) -> tuple[Workload, Rounded]:
    proto = make_model(nodes, {"x": ["N", *shape]}, ["y"], constants)
    work = prepare(proto, random_set(shape, SAMPLES))
    fitting = Fitting(fitting_plan(uniform(work, bits), CONFIG))
    return work, round_in_order(work.model, None, work.layers, fitting, run_over_all(work))


def test_a_weight_that_is_used_twice_fits_both_uses() -> None:
    """Each use has its own bias and its own shift."""
    nodes = [
        node("Gemm", "x w b", "a"),
        node("Relu", "a", "r"),
        node("Gemm", "r w c", "d"),
        node("Relu", "d", "e"),
        node("Gemm", "e v"),
    ]
    work, found = rounded(nodes, (8,), 2, w=weight(8, 8), b=weight(8), c=weight(8) + 1, v=weight(8, CLASSES))
    assert len(work.layers) == 2
    assert len(found.biases) == 3
    nearest = round_to_nearest(work.model, work.layers, uniform(work, 2))
    assert error(work, found.constants(work.layers)) < error(work, nearest.constants(work.layers))


@pytest.mark.parametrize(
    ("operator", "inputs", "shape"),
    [("MatMul", "x w", (2, 4, 4)), ("ConvTranspose", "x w", (4, 2, 2, 2))],
    ids=["stack", "shared-scales"],
)
def test_layers_without_rows_are_rounded_to_nearest(operator: str, inputs: str, shape: tuple[int, ...]) -> None:
    """Nothing is known about their inputs but their size."""
    attributes = {"group": 2} if operator == "ConvTranspose" else {}
    x = (2, 3, 4) if operator == "MatMul" else (4, 3, 3)
    nodes = [node(operator, inputs, "a", **attributes), node("Flatten", "a", "f"), node("Gemm", "f v")]
    size = 24 if operator == "MatMul" else 64
    work, found = rounded(nodes, x, w=weight(*shape), v=weight(size, CLASSES))
    (layer,) = [layer for layer in work.layers if layer.operator == operator]
    rows = layer.rows(work.model.weight(layer.weight))
    values_ = layer.rows(found.weights[layer.name].codes) * found.weights[layer.name].scale[:, None]
    expected = quantize_rows(rows, np.full(layer.channels, 3, np.int8)).values
    assert np.square(values_ - rows).sum() <= np.square(expected - rows).sum() * (1 + 1e-5)


def test_a_dead_filter_at_one_bit_takes_none() -> None:
    """One bit has no zero: it would come to life."""
    w = weight(8, 6)
    w[:, 2] = 0
    nodes = [node("Gemm", "x w", "a"), node("Relu", "a", "r"), node("Gemm", "r v")]
    work, found = rounded(nodes, (8,), 1, w=w, v=weight(6, CLASSES))
    assert found.weights["w"].bits.tolist() == [1, 1, 0, 1, 1, 1]
    assert not work.layers.layers[0].rows(found.weights["w"].codes)[2].any()


def test_tables_of_many_layers_are_made_a_part_at_a_time(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(exported, "residual")
    whole = make_tables(work, run_over_all(work), RoundingConfig())
    monkeypatch.setattr("onnx_cbq.evidence.tables.MOMENT_BYTES", 1)
    steps: list[tuple[str, int, int]] = []
    parts = make_tables(work, run_over_all(work), RoundingConfig(), lambda *step: steps.append(step))
    assert list(whole) == list(parts) == [layer.name for layer in work.layers]
    assert steps[-1] == ("tables", len(work.layers), len(work.layers))
    for name in whole:
        np.testing.assert_array_equal(whole[name].codes, parts[name].codes)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@pytest.mark.parametrize("bits", [2, 5])
def test_short_biases_cost_next_to_nothing(exported: Exported, name: str, bits: int) -> None:
    """They are multiples of their steps, which are as fine as the weights are, and what the net gives is as good."""
    work = workload(exported, name)
    fitting = fitting_plan(uniform(work, bits), CONFIG)
    long, short = (
        round_in_order(work.model, None, work.layers, found, run_over_all(work))
        for found in (Fitting(fitting), Fitting(fitting, {}))
    )
    assert not long.steps
    assert set(short.steps) == set(short.biases)
    for bias, steps in short.steps.items():
        assert np.array_equal(on_steps(short.biases[bias], steps), short.biases[bias])
        assert np.array_equal(np.log2(steps), np.rint(np.log2(steps)))
    # A step of a quarter of the error adds 1 / 192 of it to each output; some are read by several layers.
    assert error(work, short.constants(work.layers)) < 1.1 * error(work, long.constants(work.layers))


def test_short_int32_biases_count_in_what_is_written(exported: Exported) -> None:
    """Multiples of a power of two times s_x s_w: anything else would have arbitrary low bits as an int32."""
    work = workload(exported, "residual")
    unit = 1e-3
    units = {use.bias: unit for layer in work.layers for use in layer.uses if use.bias is not None}
    fitting = Fitting(fitting_plan(uniform(work, 3), CONFIG), units)
    found = round_in_order(work.model, None, work.layers, fitting, run_over_all(work))
    coarse = 0
    for layer in work.layers:
        for use in layer.uses:
            codes = found.biases[use.bias or ""] / found.weights[layer.name].bias_scale(unit)
            assert codes == pytest.approx(np.rint(codes), abs=1e-2)
            coarse += int((np.rint(codes) % 4 == 0).sum())
    assert coarse > 0.9 * sum(map(len, found.biases.values()))
