"""`--method differentiable`: budgets are met exactly, channels that matter less get less, a run can be repeated."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import (
    CalibrationError,
    CalibrationSet,
    ConfigError,
    DifferentiableConfig,
    QuantizeConfig,
    RefineConfig,
    quantize,
)
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.methods.descent import Descending
from onnx_cbq.methods.differentiable import Differentiable, WidthReport
from onnx_cbq.methods.method import Planned
from onnx_cbq.model import Array
from onnx_cbq.search.widths import Descent, LayerWidths, Moment
from tests.command import Command, refused_without_torch
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.scenes import scene_of

QUICK = DifferentiableConfig(updates=30, batch=32, rate=0.1, bfloat16=False)


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


def plan(work: Workload, settings: DifferentiableConfig = QUICK, weights: Array | None = None, **more: Any) -> Planned:
    """A plan of levels rounded to nearest, which need no statistics."""
    method = Differentiable(**asdict(settings))
    config = QuantizeConfig(method=method, rounding="nearest", activation_bits=0, samples=20, **more)
    scene = scene_of(work, config)
    return method.plan(scene if weights is None else scene.weighing(weights), config.bits)


def report_of(planned: Planned) -> WidthReport:
    assert isinstance(planned.report, WidthReport)
    return planned.report


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("bits", [0.3, 2.0, 3.7, 8.0])
def test_budgets_are_met(work: Workload, granularity: str, bits: float) -> None:
    found = plan(work, replace(QUICK, granularity=granularity), bits=bits)
    layers = work.layers
    largest = max(layer.size if granularity == "layer" else layer.weights_per_channel for layer in layers)
    assert bits - largest / layers.size <= found.plan.average_bits(layers) <= bits
    if granularity == "layer":
        assert all(len(np.unique(part)) == 1 for part in found.plan.bits.values())


def test_layers_that_are_kept_count(work: Workload) -> None:
    found = plan(work, bits=3, keep=(("/0*", 8), ("12", 5)))
    assert set(found.plan.bits["/0/Conv"].tolist()) == {8}
    assert set(found.plan.bits["12"].tolist()) == {5}
    assert 2.9 < found.plan.average_bits(work.layers) <= 3
    assert list(report_of(found).layers) == ["/3/Conv", "/7/Conv"]
    with pytest.raises(ConfigError, match="cannot be met: the layers of --keep"):
        plan(work, bits=3, keep=(("/7*", 8),))


def test_channels_that_nothing_reads_end_narrower(work: Workload) -> None:
    """The classifier reads half of the last filters with weights next to nothing: those can go."""
    head, last = work.layers.by_name["12"], work.layers.by_name["/7/Conv"]
    weight = work.model.weight(head.weight).copy()
    rows = head.rows(weight)
    rows[:, : rows.shape[1] // 2] *= 1e-3
    changed = replace(work, model=work.model.with_constants({head.weight: head.unrows(rows)}))
    bits = plan(changed, replace(QUICK, updates=60), bits=2).plan.bits[last.name]
    half = last.channels // 2
    assert bits[:half].mean() < bits[half:].mean() - 1


def test_a_repeated_run_gives_the_same(work: Workload) -> None:
    settings = replace(QUICK, augment=("shift",), alpha=0.3)
    one, other = plan(work, settings, bits=2), plan(work, settings, bits=2)
    assert report_of(one) == report_of(other)
    for name, bits in one.plan.bits.items():
        np.testing.assert_array_equal(bits, other.plan.bits[name])


def test_widths_learn_from_changed_images(work: Workload) -> None:
    plain, changed = plan(work, bits=2), plan(work, replace(QUICK, augment=("shift",)), bits=2)
    assert report_of(plain) != report_of(changed)


def test_samples_that_are_no_images_cannot_be_changed() -> None:
    """Said before the work begins; pixels in a row have no neighbours to be shifted to."""
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model = make_model([node("MatMul", "x w", "logits")], {"x": ["N", 8]}, ["logits"], constants={"w": weight})
    rows = CalibrationSet.from_arrays(np.zeros((40, 8), np.float32), np.arange(40) % 4)
    config = QuantizeConfig(method="differentiable", differentiable=replace(QUICK, augment=("shift",)))
    with pytest.raises(CalibrationError, match="--augment shift is for images"):
        quantize(model, rows, config)


def test_classes_that_do_not_count_are_not_learned_from(work: Workload) -> None:
    """With a weight of 0 for all but one class every batch has that class only, and the plan differs."""
    one = plan(work, weights=np.eye(10)[3], bits=2)
    assert any((one.plan.bits[name] != bits).any() for name, bits in plan(work, bits=2).plan.bits.items())


def test_classes_that_count_more_are_learned_from_more(work: Workload) -> None:
    """The samples are the same; limits raise the weights of a class whose accuracy falls too far."""
    more = plan(work, weights=np.where(np.arange(10) == 3, 50.0, 1.0), bits=2)
    assert any((more.plan.bits[name] != bits).any() for name, bits in plan(work, bits=2).plan.bits.items())


def test_time_ends_the_descent(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says a second went by at every look; the budget holds all the same."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("onnx_cbq.methods.descent.time.monotonic", lambda: float(next(ticks)))
    found = plan(work, replace(QUICK, updates=500, minutes=0.5), bits=2)
    assert 20 < report_of(found).trace[-1].updates <= 31
    assert 1.9 < found.plan.average_bits(work.layers) <= 2


def test_widths_that_are_worse_than_all_alike_are_not_kept(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a descent of few updates, or from few samples: the plan was 17 points worse than it had begun as."""

    def lost(self: Descending, _: object, sizes: Array, budget: float) -> Descent:
        widths = np.where(np.arange(len(sizes)) % 2, 0.0, 2 * budget)
        return Descent(widths, (Moment(9, 1.0, 1.0, budget),), budget, self.config.batch)

    monkeypatch.setattr(Descending, "run", lost)
    found = plan(work, bits=2)
    assert all((part == 2).all() for part in found.plan.bits.values())
    assert report_of(found).divergence > report_of(found).even
    assert any("so they stay alike" in note for note in found.notes)


def test_fewer_samples_of_an_update_are_told(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_cbq.methods.descent.fitting_batch", lambda *_: 16)
    found = plan(work, bits=2)
    assert report_of(found).batch == 16
    assert any("too few for 30 updates of 32 samples, so they learned from 16 each" in note for note in found.notes)


@pytest.mark.parametrize("refine", [None, RefineConfig(updates=4, batch=32, check_every=4, bfloat16=False)])
def test_the_report_shows_how_widths_moved(refine: RefineConfig | None) -> None:
    """With compensated rounding, with and without the refinement behind it."""
    config = QuantizeConfig(bits=2, method="differentiable", differentiable=QUICK, samples=100, refine=refine)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert 1.95 < result.average_bits <= 2
    assert result.quantized.top1 > 80
    # Of 100 drawn, a quarter of each class is held back.
    learned = 480 if refine is None else 430
    assert any(f"widths learned from {learned} samples of the card" in note for note in result.notes)
    found = json.loads(result.to_json())["method"]
    assert found["name"] == "differentiable"
    assert [moment["updates"] for moment in found["trace"]][-1] == 30
    for name, layer in found["layers"].items():
        bits = result.plan.bits[name]
        assert layer["start"] == 3
        assert layer["average"] == pytest.approx(bits.mean())
        assert layer["channels"] == [int((bits == width).sum()) for width in range(9)]


def test_the_report_is_a_table_of_layers_by_width() -> None:
    """A column for each width that any layer has, and none for others."""
    layers = {
        "a": LayerWidths(3.0, 2.5, 4.5, (0, 1, 0, 0, 0, 0, 0, 0, 1)),
        "b": LayerWidths(3.0, 2.0, 1.0, (0, 4, 0, 0, 0, 0, 0, 0, 0)),
    }
    report = WidthReport(layers, (Moment(1, 0.9, 0.8, 3.0), Moment(9, 0.1, 0.2, 2.0)), 64, 0.25, 0.5)
    assert report.table() == [
        ["layer", "start", "end", "rounded", "1", "8"],
        ["a", "3.00", "2.50", "4.50", "1", "1"],
        ["b", "3.00", "2.00", "1.00", "4", ""],
    ]
    worth = "there, 0.2000 is what a bit on average is worth"
    assert report.lines()[1] == f"widths: 9 updates of 64 samples to a loss of 0.1000; {worth}"
    assert report.lines()[2] == "measured: divergence 0.2500 nats, with all channels alike 0.5000"
    assert report.to_json()["trace"][1] == {"updates": 9, "loss": 0.1, "price": 0.2, "average": 2.0}
    assert report.to_json()["layers"]["b"]["channels"] == (0, 4, 0, 0, 0, 0, 0, 0, 0)


def test_the_command_prints_how_widths_moved(command: Command, tmp_path: Path) -> None:
    done = command(
        *("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", "--samples", 100),
        *("--method", "differentiable", "--bits", 2, "--width-updates", 5, "--granularity", "layer"),
        *("--augment", "shift", "--json", tmp_path / "q.json"),
    )
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "q.json").read_text())["settings"]["augment"] == ["shift"]
    assert "widths: 5 updates of 128 samples to a loss of" in done.out
    table = done.out.split("layer    start")[1]
    assert table.split("/7/Conv")[1].split()[0] == "3.00"


@pytest.mark.parametrize("option", [("--granularity", "layer"), ("--width-updates", 9), ("--width-minutes", 1)])
def test_an_option_of_the_method_needs_the_method(command: Command, option: tuple[object, ...]) -> None:
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *option)
    assert done.code == 2
    assert f"only for --method differentiable; leave out {option[0]}" in done.err


def test_changed_images_need_something_that_learns_from_them(command: Command) -> None:
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--augment", "shift")
    assert done.code == 2
    said = " ".join(done.err.replace("│", " ").split())
    assert "only for --method differentiable or --refine; leave out --augment" in said


@pytest.mark.parametrize(
    "more",
    [
        ("--storage", "archive"),
        ("--codebook", "kmeans", "--storage", "packed"),
        ("--bytes", 9000, "--storage", "packed"),
        ("--max-drop", 1),
        ("--granularity", "filter"),
        ("--width-updates", 0),
        ("--width-minutes", 0),
    ],
)
def test_what_does_not_go_with_it_is_refused(command: Command, more: tuple[object, ...]) -> None:
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--method", "differentiable", *more)
    assert done.code == 1
    assert str(more[0]) in done.err
    assert "expected" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_without_torch_it_says_so_before_the_work_begins(tmp_path: Path) -> None:
    refused_without_torch(
        "quantize", "missing.onnx", "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", "--method", "differentiable"
    )
