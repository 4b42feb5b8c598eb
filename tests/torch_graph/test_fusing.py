"""Graphs as code that is made for them: the same numbers, and what happens where no code can be made."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onnx_cbq.graph.load import load
from onnx_cbq.model import Model
from onnx_cbq.records import ActivationGrid
from onnx_cbq.torch_graph import Speed, TorchGraph, can_fuse, fusing
from onnx_cbq.torch_graph.fusing import Fused
from onnx_cbq.training.grids import LearnedGrid, fixed_grid
from onnx_cbq.training.normalization import Normalization, scaled_gradient
from tests.gradient.cases import floats
from tests.graphs import make_model, node

CPU = torch.device("cpu")


def small_net() -> Model:
    """Two layers around a Relu, with a sum of branches; five channels fill no vectors."""
    constants = {
        "first": floats(5, 2, 3, 3),
        "bias": floats(5, seed=1),
        "second": floats(5, 5, 3, 3, seed=2),
        "head": floats(3, 5, seed=3),
    }
    nodes = [
        node("Conv", "x first bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("Conv", "r second", "b", pads=[1, 1, 1, 1]),
        node("Add", "b r", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f head", "logits", transB=1),
    ]
    return load(make_model(nodes, {"x": ["N", 2, 8, 8]}, ["logits"], constants))


def learned(model: Model, *, fused: bool) -> tuple[Tensor, list[Tensor]]:
    """What a graph gives with weights and hooks as training has them, and the gradients of all that is learned."""
    graph = TorchGraph(model, trained=(), device=CPU, channels_last=True, speed=Speed(fused=fused))
    values = {name: torch.tensor(model.weight(name), requires_grad=True) for name in ("first", "second", "head")}
    grid = LearnedGrid(ActivationGrid(scale=0.5, zero_point=0, bits=3, signed=False), CPU)
    norm = Normalization(torch.zeros(5), torch.ones(5))
    norm.damping = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    hooks = {"r": grid, "b": norm, "s": fixed_grid(ActivationGrid(scale=0.05, zero_point=3, bits=8, signed=False))}
    weights = {name: scaled_gradient(2 * value, 0.5) for name, value in values.items()}
    for _ in range(2):
        found = graph(torch.tensor(floats(4, 2, 8, 8, seed=4)), ["logits"], weights=weights, hooks=hooks)["logits"]
    parameters = [*values.values(), *grid.parameters(), *norm.parameters()]
    return found, list(torch.autograd.grad(found.square().sum(), parameters))


def test_fused_graphs_give_the_same_numbers_and_gradients() -> None:
    """Guards against hooks, replaced weights and damped gradients that compiling loses.

    Both compute in float32: sums of at most 4 x 64 positions of 45 products, each rounded to 2^-24, in another order.
    """
    if not can_fuse(CPU):
        pytest.skip("no C++ compiler that torch.compile can use")
    (plain, gradients), (found, others) = (learned(small_net(), fused=fused) for fused in (False, True))
    for expected, value in ((plain, found), *zip(gradients, others, strict=True)):
        scale = float(expected.detach().abs().max())
        assert scale > 0
        np.testing.assert_allclose(value.detach().numpy(), expected.detach().numpy(), rtol=0, atol=1e-4 * scale)


def test_a_function_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a training that ends, or grows slow in silence, where a compiler is missing."""

    def refuse(*_: Any, **__: Any) -> Any:
        def raise_(*_: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\npages of it")

        return raise_

    monkeypatch.setattr(torch, "compile", refuse)
    double = Fused(lambda x: {"y": 2 * x})
    with caplog.at_level(logging.WARNING, "onnx_cbq"):
        results = [float(double(torch.tensor(3.0))["y"]) for _ in range(2)]
    assert results == [6, 6]
    assert [record.message for record in caplog.records] == [
        "training goes operator by operator, which takes longer: No working C++ compiler found"
    ]
    can_fuse.cache_clear()
    assert not can_fuse(CPU)
    can_fuse.cache_clear()


def test_what_a_function_raises_itself_is_raised() -> None:
    """Guards against a compiler that is blamed, and a function that is run again, for a fault of its own."""

    def fails(x: Tensor) -> dict[str, Tensor]:
        return {"y": x @ torch.ones(7)}

    with pytest.raises(RuntimeError, match="size"):
        Fused(fails)(torch.ones(2, 3))


def test_each_graph_is_compiled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the limit of torch for all functions of one line: graphs behind it would go slowly, in silence."""
    if not can_fuse(CPU):
        pytest.skip("no C++ compiler that torch.compile can use")
    monkeypatch.setattr(fusing._LOG, "warning", pytest.fail)

    def times(factor: int) -> Fused:
        return Fused(lambda x: {"y": factor * x})

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        assert [float(times(factor)(torch.tensor(3.0))["y"]) for factor in (2, 3, 4)] == [6, 9, 12]
