"""Nested subnets in torch: they compute what the masks say, their gradients are damped, moves and training repeat."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch.nn import functional

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence.cache import Cache
from onnx_cbq.model import Array
from onnx_cbq.records import Grouping
from onnx_cbq.runtime import Session
from onnx_cbq.stepping.assignment import subnet_macs
from onnx_cbq.stepping.masks import Nested, subnet_model
from onnx_cbq.stepping.units import Units
from onnx_cbq.stepping.widening import counterparts
from onnx_cbq.system.store import Store
from onnx_cbq.torch_graph import EXACT, Speed, can_fuse
from onnx_cbq.training import loop, nesting
from onnx_cbq.training.batches import Batches, TrainingBatch
from onnx_cbq.training.imitation import Imitation
from onnx_cbq.training.importance import importance
from onnx_cbq.training.nested import NestedNet, NestedObjective
from onnx_cbq.training.nesting import NestingTask, run_nesting
from onnx_cbq.training.settings import StepConfig
from tests.stepping.nets import CLASSES, joined_net, padded_net, random_nested, units_of

STEPS = 3
QUICK = StepConfig(macs=(0.3, 0.5, 0.8), updates=12, batch=16, rounds=2, round_updates=2, check_every=4, bfloat16=False)
BETA = 0.6
# Batches of 16 that have 256 samples.
STATISTICS = 16


def shares_of(units: Units) -> list[float]:
    return [share * units.macs for share in QUICK.macs]


def make_batch(units: Units, count: int = 8) -> TrainingBatch:
    random = np.random.default_rng(0)
    shape = (count, *units.shapes[units.model.inputs[0].name][1:])
    x = torch.tensor(random.normal(0, 1, shape).astype(np.float32))
    return TrainingBatch({units.model.inputs[0].name: x}, torch.arange(count) % CLASSES)


def make_net(units: Units, nested: Nested, speed: Speed = EXACT) -> NestedNet:
    net = NestedNet(units, units.model, nested.steps, BETA, make_batch(units, 40).feeds, speed)
    net.assign(nested.assignment)
    assert net.biases is not None
    with torch.no_grad():
        net.biases.copy_(torch.tensor(nested.biases))
    return net.eval()


@pytest.mark.parametrize("make", [padded_net, joined_net])
def test_one_pass_gives_the_scores_of_every_subnet(make: Callable[[], ModelProto]) -> None:
    units, _ = units_of(make())
    nested = random_nested(units, STEPS, 0)
    net, batch = make_net(units, nested), make_batch(units)
    feeds = {name: value.numpy() for name, value in batch.feeds.items()}
    scores = net(batch.feeds).detach().numpy()
    for k in range(1, STEPS + 1):
        model = subnet_model(units, nested, k).with_graph(outputs=[units.logits.tensor])
        expected = Session(model).run(feeds)[units.logits.tensor]
        np.testing.assert_allclose(scores[k - 1], expected.reshape(scores[k - 1].shape), atol=1e-5)
    original = Session(units.model.with_graph(outputs=[units.logits.tensor])).run(feeds)[units.logits.tensor]
    np.testing.assert_allclose(net.teach(batch.feeds).numpy(), original.reshape(scores[0].shape), atol=1e-5)
    np.testing.assert_array_equal(net.nested().assignment, nested.assignment)


def test_what_was_normalized_is_folded_again() -> None:
    """The subnets that are handed on give, as ONNX, what the net gives in torch once its statistics have moved."""
    units, _ = units_of(padded_net())
    random = random_nested(units, STEPS, 4)
    net, batch = make_net(units, random), make_batch(units)
    with torch.no_grad():
        for norm in net._norms.values():
            norm.scale.mul_(1.5).add_(0.1)
            norm.shift.add_(0.2)
    net.settle([make_batch(units, 20)] * 3)
    scores = net.eval()(batch.feeds).detach().numpy()
    feeds = {name: value.numpy() for name, value in batch.feeds.items()}
    for k in range(1, STEPS + 1):
        found = Session(subnet_model(units, net.nested(), k).with_graph(outputs=["z"])).run(feeds)["z"]
        np.testing.assert_allclose(found, scores[k - 1], atol=1e-4)


def test_a_model_with_a_batch_of_one_is_trained_without_normalization() -> None:
    """Statistics of one sample would be the sample."""
    proto = padded_net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    units, _ = units_of(proto)
    random = np.random.default_rng(0)
    data = CalibrationSet.from_arrays(random.normal(0, 1, (20, 3, 8, 8)).astype(np.float32), np.arange(20) % CLASSES)
    samples = data.for_model(units.model.inputs)
    same = counterparts(units, 1)
    nested, course = run_nesting(
        NestingTask(units, units.model, shares_of(units), samples, np.arange(15), np.arange(15, 20), "abcde", same),
        QUICK,
    )
    assert course.updates == 12
    assert all(np.isfinite(value).all() for value in nested.constants.values())


@pytest.mark.parametrize("fused", [False, True])
def test_what_a_larger_subnet_changes_is_damped(*, fused: bool) -> None:
    """Against a gradient per subnet, each damped weight by weight as the paper has it: beta^(k-i)."""
    if fused and not can_fuse(torch.device("cpu")):
        pytest.skip("no C++ compiler that torch.compile can use")
    units, _ = units_of(padded_net())
    nested = random_nested(units, STEPS, 1)
    batch = make_batch(units)
    nothing = Imitation(units, (), QUICK.macs, BETA, ())
    objective = NestedObjective(0.3, BETA, torch.ones(CLASSES), Grouping.single("abcde"), nothing)
    net = make_net(units, nested, Speed(fused=fused)).train()
    before = copy.deepcopy(net.state_dict())
    loop.compile_updates(net, objective, iter([batch]))
    assert all(graph.fused is fused for graph in net.graphs)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    objective(net, batch, batch.taught(net.teach))[0].backward()
    total = sum(BETA**k for k in range(1, STEPS + 1))
    found = gradients(net)
    expected = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
    for k in range(1, STEPS + 1):
        plain = NestedNet(units, units.model, STEPS, 1.0, batch.feeds, EXACT).train()
        plain.load_state_dict(net.state_dict())
        plain.assign(nested.assignment)
        losses = objective.losses(plain.teach(batch.feeds), plain(batch.feeds), batch.labels).mean(dim=1)
        losses[k - 1].backward()
        for name, gradient in gradients(plain).items():
            damped = BETA ** (k - owners(units, nested.assignment, name, tuple(gradient.shape)))
            expected[name] = expected[name] + gradient * torch.tensor(damped.astype(np.float32)) / total
    for name, gradient in found.items():
        assert gradient.abs().max() > 0
        np.testing.assert_allclose(gradient.numpy(), expected[name].numpy(), rtol=1e-3, atol=1e-6)


def gradients(net: NestedNet) -> dict[str, torch.Tensor]:
    """By the names of weights, of outputs that are normalized, and of the head's biases."""
    named = dict(zip(net._names, net.values, strict=True))
    found = {name: value.grad for name, value in named.items()}
    for output, norm in net._norms.items():
        found |= {output: norm.shift.grad, f"{output} scale": norm.scale.grad}
    assert net.biases is not None
    found["head"] = net.biases.grad
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def owners(units: Units, assignment: Array, name: str, shape: tuple[int, ...]) -> Array:
    """The subnet of each weight, by its place in the graph."""
    outputs = {"w1": "c1", "w2": "c2", "w3": "c3", "w4": "c4"}
    if name == "head":
        return np.broadcast_to(np.arange(1, STEPS + 1)[:, None], shape)
    if name == "w5":
        return np.broadcast_to(assignment[units.of["f"]][:, None], shape)
    own = assignment[units.of[outputs.get(name, name.removesuffix(" scale"))]]
    return np.broadcast_to(own.reshape(-1, *(1,) * (len(shape) - 1)), shape)


def test_weights_that_break_the_reuse_rule_never_matter() -> None:
    units, _ = units_of(padded_net())
    nested = random_nested(units, STEPS, 2)
    net, batch = make_net(units, nested), make_batch(units)
    before = net(batch.feeds).detach()
    outputs, inputs = (nested.assignment[units.of[name]] for name in ("c2", "r1"))
    forbidden = torch.tensor(inputs[None, :] > outputs[:, None])[:, :, None, None]
    with torch.no_grad():
        net.values[net._names.index("w2")].add_(forbidden * 9.0)
    assert forbidden.any()
    torch.testing.assert_close(net(batch.feeds), before, rtol=0, atol=0)


def test_weights_that_stay_take_up_what_those_did_that_go() -> None:
    """The second convolution, whose inputs are as they were: nearer than with weights left out, statistics as seen."""
    units, _ = units_of(padded_net())
    net, batch = make_net(units, random_nested(units, STEPS, 0)), make_batch(units, 40)
    net.assign(np.ones(units.count, np.int64))
    product = units.hidden[1]
    weight, norm = product.layer.weight, net._norms[product.use.output]
    (read,) = net.look(batch.feeds, (product.use.activation,))[1]

    def outputs() -> torch.Tensor:
        value = dict(zip(net._names, net.values, strict=True))[weight] * net._masks[weight]
        return functional.conv2d(read, value, torch.tensor(units.model.weight("b2")), stride=2, padding=1).detach()

    whole, kept = outputs(), dict(zip(net._names, net.values, strict=True))[weight].detach().clone()
    assignment = random_nested(units, STEPS, 0).assignment
    net.reassign(assignment, [batch])
    taken_up, mean, variance = outputs(), norm.mean.clone(), norm.variance.clone()
    with torch.no_grad():
        dict(zip(net._names, net.values, strict=True))[weight].copy_(kept)
    left_out = outputs()
    np.testing.assert_array_equal(net.assignment, assignment)
    lost, remaining = (
        (found - whole - (found - whole).mean(dim=(0, 2, 3), keepdim=True)).square().mean()
        for found in (left_out, taken_up)
    )
    assert 0 < remaining < 0.95 * lost
    np.testing.assert_allclose(mean, taken_up.mean(dim=(0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(variance, taken_up.var(dim=(0, 2, 3), unbiased=False), rtol=1e-3)


def test_importance_is_what_a_multiplier_changes() -> None:
    """Against finite differences with the layers' rows multiplied, one sample at a time."""
    units, _ = units_of(padded_net())
    nested = random_nested(units, STEPS, 3)
    net, batch = make_net(units, nested), make_batch(units, 3)
    net.double()
    net._exact = [part.double() for part in net._exact]
    batch = TrainingBatch({name: value.double() for name, value in batch.feeds.items()}, batch.labels)
    net._masks = {name: mask.double() for name, mask in net._masks.items()}
    found = importance(net, units, [batch], BETA)
    single = np.zeros((STEPS, units.count))
    for unit in range(1, units.count):
        squares = np.zeros(STEPS)
        for sample in range(3):
            one = {name: value[sample : sample + 1] for name, value in batch.feeds.items()}
            high, low = (
                losses_with(net, units, unit, factor, one, batch.labels[sample : sample + 1])
                for factor in (1 + 1e-5, 1 - 1e-5)
            )
            squares += ((high - low) / 2e-5) ** 2
        single[:, unit] = squares / 3
    for k in reversed(range(STEPS - 1)):
        single[k] += BETA * single[k + 1]
    np.testing.assert_allclose(found, single, rtol=2e-3, atol=1e-7)


def losses_with(
    net: NestedNet, units: Units, unit: int, factor: float, feeds: dict[str, torch.Tensor], label: torch.Tensor
) -> Array:
    """Cross-entropy of every subnet with all layers' outputs of a unit multiplied."""
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for output, norm in net._norms.items():
            rows = torch.tensor(units.of[output] == unit)
            for value in (norm.scale, norm.shift):
                value[rows] *= factor
        losses = [float(functional.cross_entropy(one, label)) for one in net(feeds)]
    net.load_state_dict(saved)
    return np.array(losses)


@pytest.fixture(scope="module")
def task() -> NestingTask:
    """Random images that differ by class, so that there is something to learn."""
    random = np.random.default_rng(1)
    labels = np.arange(100) % CLASSES
    x = random.normal(0, 1, (100, 3, 8, 8)) + random.normal(0, 1, (CLASSES, 3, 8, 8))[labels]
    units, _ = units_of(padded_net())
    samples = CalibrationSet.from_arrays(x.astype(np.float32), labels).for_model(units.model.inputs)
    learned, held = draw(samples, "abcde", None, 0).split(0.2)
    same = counterparts(units, 1)
    return NestingTask(units, units.model, shares_of(units), samples, learned.indices, held.indices, "abcde", same)


def test_training_makes_subnets_better_within_their_limits(task: NestingTask) -> None:
    nested, course = run_nesting(task, replace(QUICK, updates=90, check_every=20, rate=3e-3))
    assert course.best.loss < 0.8 * course.start.loss
    limits = np.array(QUICK.macs) * task.units.macs
    assert (subnet_macs(task.units, nested.assignment, STEPS) <= limits).all()
    assert course.stopped == "updates"
    assert course.updates == 90


def test_a_repeated_run_gives_the_same(task: NestingTask) -> None:
    config = replace(QUICK, augment=("flip",), alpha=0.2)
    first, second = (run_nesting(task, config)[0] for _ in range(2))
    np.testing.assert_array_equal(first.assignment, second.assignment)
    for name, value in first.constants.items():
        np.testing.assert_array_equal(value, second.constants[name])
    other = run_nesting(task, replace(config, seed=1))[0]
    assert any((value != other.constants[name]).any() for name, value in first.constants.items())


def test_ctrl_c_while_units_move_still_gives_subnets_within_their_limits(
    task: NestingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(nesting, "update", interrupted)
    nested, course = run_nesting(task, QUICK)
    assert (course.stopped, course.updates) == ("Ctrl-C", 0)
    assert (subnet_macs(task.units, nested.assignment, STEPS) <= np.array(QUICK.macs) * task.units.macs).all()


def test_ctrl_c_while_samples_are_read_does_so_too(task: NestingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that an exception went through gives nothing more."""
    calls, batch = itertools.count(), Batches._batch

    def interrupted(self: Batches, *arguments: Any) -> TrainingBatch:
        # The first are those that statistics come from, the next are looked at.
        if next(calls) == STATISTICS + 1:
            raise KeyboardInterrupt
        return batch(self, *arguments)

    monkeypatch.setattr(Batches, "_batch", interrupted)
    nested, course = run_nesting(task, QUICK)
    assert (course.stopped, course.updates) == ("Ctrl-C", 0)
    assert (subnet_macs(task.units, nested.assignment, STEPS) <= np.array(QUICK.macs) * task.units.macs).all()


def test_training_imitates_the_original_less_and_less(task: NestingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before every update behind the moves, and never by the samples that decide what is kept."""
    told: list[float] = []
    kept = Imitation.advance

    def advance(self: Imitation, share: float) -> None:
        told.append(share)
        kept(self, share)

    monkeypatch.setattr(Imitation, "advance", advance)
    _, course = run_nesting(task, QUICK)
    moved = QUICK.rounds * QUICK.round_updates
    assert len(told) == course.updates - moved
    assert told[0] == 0
    assert told == sorted(told)
    assert told[-1] < 1


@torch.no_grad()
def test_hidden_tensors_count_while_training_and_at_no_other_time() -> None:
    units, _ = units_of(padded_net())
    net, batch = make_net(units, random_nested(units, STEPS, 1)), make_batch(units)
    shown = [net.shown(batch.feeds, ("a1", "a2"))]
    imitation = Imitation(units, counterparts(units, 1), (0.3, 0.5, 0.8), BETA, shown)
    losses = {}
    for training in (True, False):
        for one in (imitation, Imitation(units, (), (0.3, 0.5, 0.8), BETA, ())):
            objective = NestedObjective(0.0, BETA, torch.ones(CLASSES), Grouping.single("abcde"), one)
            loss, _ = objective(net.train(training), batch, net.teach(batch.feeds))
            losses[training, one is imitation] = float(loss)
    net.train()
    some = net.shown(imitation.some(batch.feeds), ("a1", "a2"))
    distance = imitation(net.assignment, net.look(batch.feeds, imitation.tensors)[1], some)
    assert float(distance) > 0.01
    np.testing.assert_allclose(losses[True, True] - losses[True, False], float(distance), rtol=1e-4)
    assert losses[False, True] == losses[False, False]


def test_time_ends_moving_and_training(task: NestingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says a second went by at every look."""
    ticks = iter(range(100_000))
    monkeypatch.setattr("onnx_cbq.training.loop.time.monotonic", lambda: float(next(ticks)))
    nested, course = run_nesting(task, replace(QUICK, updates=5000, round_updates=50, minutes=0.5))
    assert course.stopped == "time"
    assert course.updates < 40
    assert (subnet_macs(task.units, nested.assignment, STEPS) <= np.array(QUICK.macs) * task.units.macs).all()


def test_rounds_that_there_is_no_time_for_are_left_out(task: NestingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of a large net can take longer than all of them may; every look at the clock says ten seconds later."""
    ticks = iter(range(0, 1_000_000, 10))
    monkeypatch.setattr("onnx_cbq.training.loop.time.monotonic", lambda: float(next(ticks)))
    looks: list[Array] = []

    def counted(*arguments: Any) -> Array:
        looks.append(importance(*arguments))
        return looks[-1]

    monkeypatch.setattr(nesting, "importance", counted)
    nested, _ = run_nesting(task, replace(QUICK, rounds=50, round_updates=1, updates=5000, minutes=3))
    # A third of the minutes are six looks.
    assert 1 <= len(looks) <= 6
    assert (subnet_macs(task.units, nested.assignment, STEPS) <= np.array(QUICK.macs) * task.units.macs).all()


@pytest.mark.parametrize("updates", [1, 3, 9, 15])
def test_a_killed_run_goes_on_to_the_same_subnets(
    task: NestingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """While units move, and while all subnets learn; what was over before is not gone through again."""
    config = replace(QUICK, updates=18, rounds=3, round_updates=2, augment=("flip",))
    whole, course = run_nesting(task, config)
    calls: list[int] = []
    real = loop.update

    def killed(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) > updates:
            raise SystemExit
        return real(*arguments)

    def counted(*arguments: Any) -> float:
        calls.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        for module in (nesting, loop):
            patch.setattr(module, "update", killed)
        with pytest.raises(SystemExit):
            run_nesting(replace(task, cache=Cache(tmp_path)), config)
    calls.clear()
    for module in (nesting, loop):
        monkeypatch.setattr(module, "update", counted)
    found, resumed = run_nesting(replace(task, cache=Cache(tmp_path)), config)
    # A round of moving is kept as a whole, as is every `check_every` of training.
    since = 6 + (updates - 6) // 4 * 4 if updates >= 6 else updates // 2 * 2
    assert len(calls) == 18 - since
    again, _ = run_nesting(replace(task, cache=Cache(tmp_path)), config)
    assert len(calls) == 18 - since
    for one in (found, again):
        np.testing.assert_array_equal(one.assignment, whole.assignment)
        assert one.constants.keys() == whole.constants.keys()
        for name, value in one.constants.items():
            np.testing.assert_array_equal(value, whole.constants[name])
        assert one.biases is not None
        assert whole.biases is not None
        np.testing.assert_array_equal(one.biases, whole.biases)
    assert (resumed.updates, resumed.losses) == (course.updates, course.losses)
    assert {entry.kind for entry in Store(tmp_path).entries()} == {"moved units", "trained subnets"}


def test_units_that_ctrl_c_moved_are_not_kept(
    task: NestingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    whole, _ = run_nesting(task, QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(nesting, "update", interrupted)
        assert run_nesting(replace(task, cache=Cache(tmp_path)), QUICK)[1].stopped == "Ctrl-C"
    found, course = run_nesting(replace(task, cache=Cache(tmp_path)), QUICK)
    assert course.stopped == "updates"
    np.testing.assert_array_equal(found.assignment, whole.assignment)
