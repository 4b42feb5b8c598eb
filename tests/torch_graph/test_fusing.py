"""Graphs as code that is made for them: the same numbers, and what happens where no code can be made."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from onnx_cbq.graph.load import load
from onnx_cbq.model import Model
from onnx_cbq.records import ActivationGrid
from onnx_cbq.torch_graph import Speed, TorchGraph, can_fuse
from onnx_cbq.torch_graph.fusing import fused
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


def learned(model: Model, speed: Speed) -> tuple[Tensor, list[Tensor]]:
    """What a graph gives with weights and hooks as training has them; all gradients, and statistics after two runs."""
    graph = TorchGraph(model, trained=(), device=CPU, channels_last=True, speed=speed)
    values = {name: torch.tensor(model.weight(name), requires_grad=True) for name in ("first", "second", "head")}
    grid = LearnedGrid(ActivationGrid(scale=0.5, zero_point=0, bits=3, signed=False), CPU)
    norm = Normalization(torch.zeros(5), torch.ones(5))
    norm.damping = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    hooks = {"r": grid, "b": norm, "s": fixed_grid(ActivationGrid(scale=0.05, zero_point=3, bits=8, signed=False))}
    weights = {name: scaled_gradient(2 * value, 0.5) for name, value in values.items()}
    for _ in range(2):
        found = graph(torch.tensor(floats(4, 2, 8, 8, seed=4)), ["logits"], weights=weights, hooks=hooks)["logits"]
    parameters = [*values.values(), *grid.parameters(), *norm.parameters()]
    return found, [*torch.autograd.grad(found.square().sum(), parameters), norm.mean, norm.variance]


def test_fused_graphs_give_the_same_numbers_and_gradients() -> None:
    """Guards against hooks, replaced weights and damped gradients that compiling loses.

    Both compute in float32: sums of at most 4 x 64 positions of 45 products, each rounded to 2^-24, in another order.
    """
    if not can_fuse(CPU):
        pytest.skip("no C++ compiler that torch.compile can use")
    (plain, gradients), (found, others) = (learned(small_net(), Speed(fused=each)) for each in (False, True))
    for expected, value in ((plain, found), *zip(gradients, others, strict=True)):
        scale = float(expected.detach().abs().max())
        assert scale > 0
        np.testing.assert_allclose(value.detach().numpy(), expected.detach().numpy(), rtol=0, atol=1e-4 * scale)


def failing(error: Exception) -> Any:
    """torch.compile that cannot."""

    def compile_(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise error

        return run

    return compile_


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidCxxCompiler(), "No working C++ compiler found in"),
        (
            CppCompileError(["g++", "a.cpp"], "In file included\na.cpp:1:10: fatal error: Python.h: No such file"),
            "a.cpp:1:10: fatal error: Python.h: No such file",
        ),
        (BackendCompilerFailed(lambda: None, OSError("no room"), inspect.currentframe()), "no room"),
    ],
    ids=["no compiler", "no headers", "no room"],
)
def test_where_nothing_can_be_compiled_the_log_says_why(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a training that ends, or grows slow in silence, and against pages of text."""
    monkeypatch.setattr(torch, "compile", failing(error))
    with caplog.at_level(logging.WARNING, "onnx_cbq"):
        assert not can_fuse.__wrapped__(CPU)
    (record,) = (each for each in caplog.records if each.name == "onnx_cbq")
    start = "training goes operator by operator, which takes longer; torch.compile: "
    assert record.message.startswith(start + said)
    assert "\n" not in record.message


def test_a_graph_that_is_told_so_is_fused_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing(RuntimeError("not this one")))
    graph, x = TorchGraph(small_net(), device=CPU, speed=Speed(fused=True)), torch.tensor(floats(4, 2, 8, 8))
    with pytest.raises(RuntimeError, match="not this one"):
        graph(x)
    graph.unfuse()
    assert not graph.fused
    torch.testing.assert_close(graph(x), TorchGraph(small_net(), device=CPU)(x), rtol=0, atol=0)


def test_each_graph_is_compiled_by_itself() -> None:
    """Guards against the limit of torch for all functions of one line: graphs behind it could not be compiled."""
    if not can_fuse(CPU):
        pytest.skip("no C++ compiler that torch.compile can use")

    def times(factor: int) -> Any:
        return fused(lambda x: {"y": factor * x})

    with torch._dynamo.config.patch(recompile_limit=1):
        assert [float(times(factor)(torch.tensor(3.0))["y"]) for factor in (2, 3, 4)] == [6, 9, 12]
