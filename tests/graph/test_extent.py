"""A few bytes ask for more memory or time than there is: refused before anything of that size is made."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import outputs_of
from onnx_cbq.graph.shapes import Example
from onnx_cbq.system.allowance import FACTOR, advice
from tests.graphs import make_model, node

HUGE = np.array([100_000, 100_000], np.int64)
SHAPE: list[int | str] = ["N", 1, 8, 8]


def model(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    return make_model(nodes, {"x": SHAPE}, ["y"], dict(constants))


BOMBS: dict[str, onnx.ModelProto] = {
    "ConstantOfShape": model(node("ConstantOfShape", "n", "c"), node("Add", "x c"), n=HUGE),
    "Expand": model(node("Expand", "s n", "c"), node("Add", "x c"), n=HUGE, s=np.array([1], np.float32)),
    "Tile": model(node("Tile", "x n"), n=np.array([1, 1, 10**5, 10**5], np.int64)),
    "Pad": model(node("Pad", "x n"), n=np.array([0, 0, 10**5, 10**5, 0, 0, 0, 0], np.int64)),
    "Resize": model(node("Resize", "x _ n"), n=np.array([1, 1, 1e4, 1e4], np.float32)),
    "Conv": model(node("Conv", "x w", pads=[10**5] * 4), w=np.ones((1, 1, 1, 1), np.float32)),
    "behind another": model(
        node("Concat", "n n", "both", axis=0), node("Expand", "s both", "c"), node("Add", "x c"), n=HUGE[:1],
        s=np.array([1], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_tensors_far_larger_than_the_model_are_refused_before_they_are_made(bomb: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"tensor '\w+' becomes .* bytes, expected at most \d+ of a model of this"):
            load(BOMBS[bomb])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_the_environment_moves_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    small = model(node("Tile", "x n"), n=np.array([1, 1, 10, 10], np.int64))
    load(small)
    monkeypatch.setenv(FACTOR, "1e-5")
    with pytest.raises(ModelError, match=r"becomes 3 x 1 x 80 x 80, 76800 bytes, expected at most 5368 "):
        load(small)


@pytest.mark.parametrize(
    "shape", [["N", 1, 100_000, 100_000], ["N", *"abcdefghi"], [10**9, 1, 8, 8], ["N", 2**62, 2**62]]
)
def test_inputs_of_any_declared_size_are_not_made_up(shape: list[int | str]) -> None:
    proto = make_model([node("Flatten", "x")], {"x": shape}, ["y"])
    with pytest.raises(ModelError, match=r"is declared as|becomes"):
        Example.made_up(load(proto))


def test_scalars_beside_samples_are_made_up() -> None:
    proto = make_model([node("Mul", "x s")], {"x": SHAPE, "s": []}, ["y"])
    example = Example.made_up(load(proto))
    assert (example.batch, example.feeds["s"].shape) == (3, ())
    assert len(outputs_of(load(proto), example)) == 2


def test_a_loop_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside onnxruntime, which looks at nothing but its own flag."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "on", "on2"), node("Add", "s x", "s2")],
        "body",
        [info("i", 7, []), info("on", 9, []), info("s", 1, None)],
        [info("on2", 9, []), info("s2", 1, None)],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    # A size that is not declared is tried out, and once is enough.
    loaded = load(make_model([loop], {"x": ["N", 1, "H", 8]}, ["y"], {"n": np.array(10**12)}))
    monkeypatch.setattr("onnx_cbq.runtime._TRIAL_SECONDS", 0.3)
    monkeypatch.setattr("onnx_cbq.runtime.allowed", float)
    began = time.perf_counter()
    with pytest.raises(ModelError, match="does not end within 0 s on a few samples: it may hold a loop without end"):
        Example.made_up(loaded)
    with pytest.raises(ModelError, match="it may hold a loop without end"):
        outputs_of(loaded, Example({"x": np.ones((3, 1, 8, 8), np.float32)}))
    assert time.perf_counter() - began < 5


def test_what_no_machine_could_do_is_not_advised() -> None:
    assert advice(65, 50) == f"set {FACTOR}=2 if you trust the file"
    assert advice(3 * 2**300, 5) == "no machine could do that; export it again"
