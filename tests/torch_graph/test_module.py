"""The module around the operators: what training replaces and reads, what is written back, what is refused."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_cbq.errors import ConfigError, ModelError, UnsupportedOperatorError
from onnx_cbq.graph.load import load
from onnx_cbq.model import INLINE_BYTES, Model
from onnx_cbq.runtime import Session
from onnx_cbq.torch_graph import Speed, TorchGraph, choose_device, has_bfloat16
from tests.gradient.cases import floats
from tests.graphs import make_model, node

CPU = torch.device("cpu")
X = np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)
TOLERANCE = 1e-5  # of the output's scale: the goal set for this module


def small_net() -> Model:
    """Conv, BatchNormalization, Clip, pool, Gemm: one weight large enough to lie outside the skeleton, one inside."""
    constants = {
        "conv.w": floats(40, 2, 3, 3),
        "conv.b": floats(40, seed=1),
        "scale": floats(40, seed=2),
        "shift": floats(40, seed=3),
        "mean": floats(40, seed=4),
        "var": np.abs(floats(40, seed=5)) + 0.5,
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "head.w": floats(5, 40, seed=6),
        "head.b": floats(5, seed=7),
        "unused": floats(3),
    }
    nodes = [
        node("Conv", "x conv.w conv.b", "z", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "z scale shift mean var", "n"),
        node("Clip", "n low high", "a"),
        node("GlobalAveragePool", "a", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f head.w head.b", "logits", transB=1),
    ]
    return load(make_model(nodes, {"x": ["N", 2, 6, 6]}, ["logits"], constants))


@pytest.fixture(name="module")
def fixture_module() -> TorchGraph:
    return TorchGraph(small_net(), device=CPU)


def agrees(value: Tensor, expected: np.ndarray) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=TOLERANCE * scale)


def halved(tensor: Tensor) -> Tensor:
    return tensor / 2


def test_parameters_are_what_is_trained_and_nothing_else(module: TorchGraph) -> None:
    """Bounds of a Clip and the statistics of a normalization must not move when an optimizer gets all parameters."""
    assert set(module.weights) == {"conv.w", "conv.b", "scale", "shift", "head.w", "head.b"}
    assert sum(1 for _ in module.parameters()) == 6
    assert {tuple(buffer.shape) for buffer in module.buffers()} == {(40,)}


def test_only_chosen_initializers_are_trained() -> None:
    chosen = TorchGraph(small_net(), ["conv.w", "head.b"], device=CPU)
    assert set(chosen.weights) == {"conv.w", "head.b"}
    assert sum(parameter.numel() for parameter in chosen.parameters()) == 40 * 2 * 9 + 5
    with pytest.raises(ConfigError, match=r"trained: 'low' is no initializer that can be trained; known: conv\.b"):
        TorchGraph(small_net(), ["low"], device=CPU)


def test_replaced_weights_are_used_and_gradients_reach_what_they_were_made_of(module: TorchGraph) -> None:
    """Straight-through training: the pass sees rounded weights and biases, the parameters get the gradient."""
    rounded = {}
    for name in ("conv.w", "head.w", "head.b"):
        parameter = module.weights[name]
        rounded[name] = parameter + (parameter.round() - parameter).detach()
    y = module(torch.tensor(X), weights=rounded)["logits"]
    y.square().sum().backward()

    oracle = small_net().with_constants({name: value.detach().numpy() for name, value in rounded.items()})
    agrees(y, Session(oracle).run({"x": X})["logits"])
    at_rounded = TorchGraph(oracle, device=CPU)
    at_rounded(torch.tensor(X))["logits"].square().sum().backward()
    for name, parameter in module.weights.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, at_rounded.weights[name].grad)


def test_hooks_replace_what_is_read_behind_them(module: TorchGraph) -> None:
    """On an input, an inner tensor and an output; the gradient goes through the hook."""
    x = torch.tensor(X, requires_grad=True)
    hooks = {"x": halved, "a": torch.round, "logits": torch.neg}
    found = module(x, ["logits", "a", "x"], hooks=hooks)
    again = module(torch.tensor(X / 2), ["a"])["a"]
    torch.testing.assert_close(found["x"], x / 2)
    torch.testing.assert_close(found["a"], again.round())
    pooled = found["a"].mean((2, 3))
    weights = module.weights
    torch.testing.assert_close(found["logits"], -functional.linear(pooled, weights["head.w"], weights["head.b"]))

    plain = torch.tensor(X, requires_grad=True)
    module(plain)["logits"].sum().backward()
    scaled = torch.tensor(X * 2, requires_grad=True)
    module(scaled, hooks={"x": halved})["logits"].sum().backward()
    assert plain.grad is not None
    assert scaled.grad is not None
    torch.testing.assert_close(scaled.grad, plain.grad / 2)


def test_inner_tensors_come_beside_the_logits_and_can_be_differentiated(module: TorchGraph) -> None:
    oracle = Session(small_net().with_graph(outputs=["z", "f", "logits"]), "off").run({"x": X})
    found = module(torch.tensor(X), ["logits", "z", "f"])
    assert list(found) == ["logits", "z", "f"]
    for name, expected in oracle.items():
        agrees(found[name], expected)
    (gradient,) = torch.autograd.grad(found["logits"].sum(), found["f"])
    torch.testing.assert_close(gradient, module.weights["head.w"].sum(0).expand(3, -1))


def test_no_more_is_computed_than_the_outputs_need(module: TorchGraph) -> None:
    """Layers behind the one that is trained would be paid for at every step."""
    seen: list[str] = []

    def note(tensor: Tensor) -> Tensor:
        seen.append("head")
        return tensor

    assert module(torch.tensor(X), ["n"], hooks={"p": note, "logits": note}).keys() == {"n"}
    assert seen == []


def test_tensors_are_dropped_after_their_last_use(module: TorchGraph) -> None:
    """Without it all activations of a net are alive at its end; deep nets would not fit."""
    alive: list[weakref.ref[Tensor]] = []

    def watch(tensor: Tensor) -> Tensor:
        alive.append(weakref.ref(tensor))
        return tensor

    def count(tensor: Tensor) -> Tensor:
        gc.collect()
        assert [ref() is None for ref in alive] == [True, False, False]
        return tensor

    # Behind the pool, z is gone; a is what the pool reads, and p is made.
    with torch.no_grad():
        module(torch.tensor(X), hooks={"z": watch, "a": watch, "p": lambda tensor: count(watch(tensor))})
    assert len(alive) == 3


def test_trained_weights_go_back_and_nothing_else_changes(module: TorchGraph) -> None:
    model = small_net()
    before = model.skeleton.SerializeToString()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(torch.tensor(X))["logits"].square().mean().backward()
    optimizer.step()
    trained = module.write_back(model)

    assert model.skeleton.SerializeToString() == before
    assert model.weight("conv.w").nbytes >= INLINE_BYTES > model.weight("head.b").nbytes
    for tensor in trained.skeleton.graph.initializer:
        changed = not np.array_equal(trained.weight(tensor.name), model.weight(tensor.name))
        assert changed == (tensor.name in module.weights), tensor.name
        assert trained.weight(tensor.name).dtype == np.float32
    restored = trained.with_constants({name: model.weight(name) for name in module.weights})
    assert restored.to_proto() == model.to_proto()
    agrees(module(torch.tensor(X))["logits"], Session(trained).run({"x": X})["logits"])


def test_the_module_keeps_its_own_copy_of_the_weights() -> None:
    """Arrays of a model are shared between models; training one must not train them all."""
    model = small_net()
    original = model.weight("conv.w").copy()
    with torch.no_grad():
        TorchGraph(model, device=CPU).weights["conv.w"].zero_()
    np.testing.assert_array_equal(model.weight("conv.w"), original)


def test_state_is_saved_and_restored(module: TorchGraph) -> None:
    """A long training run has to be resumable."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    y = module(torch.tensor(X))["logits"]
    nn.init.zeros_(module.weights["conv.w"])
    other = TorchGraph(small_net(), device=CPU)
    other.load_state_dict(state)
    torch.testing.assert_close(other(torch.tensor(X))["logits"], y)


def test_channels_last_computes_the_same() -> None:
    plain, last = TorchGraph(small_net(), device=CPU), TorchGraph(small_net(), device=CPU, channels_last=True)
    assert last.weights["conv.w"].is_contiguous(memory_format=torch.channels_last)
    y, z = (module(torch.tensor(X))["logits"] for module in (plain, last))
    agrees(z, y.detach().numpy())
    trained = last.write_back(small_net())
    np.testing.assert_array_equal(trained.weight("conv.w"), small_net().weight("conv.w"))


def test_bfloat16_gives_float32_results_near_the_exact_ones() -> None:
    """bfloat16 has 8 bits of mantissa: each of a handful of roundings errs by up to 2^-9 of a number's size."""
    if not has_bfloat16(CPU):
        with pytest.raises(ConfigError, match="bfloat16: this cpu has no instructions for it"):
            TorchGraph(small_net(), device=CPU, speed=Speed(bfloat16=True))
        return
    exact = TorchGraph(small_net(), device=CPU)(torch.tensor(X))["logits"].detach()
    module = TorchGraph(small_net(), device=CPU, speed=Speed(bfloat16=True))
    y = module(torch.tensor(X))["logits"]
    assert y.dtype == torch.float32
    assert not torch.equal(y, exact)
    torch.testing.assert_close(y, exact, rtol=0, atol=2**-6 * float(exact.abs().max()))
    y.sum().backward()
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}


def test_bfloat16_is_refused_where_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    with pytest.raises(ConfigError, match="bfloat16: this cpu has no instructions for it; train in float32"):
        TorchGraph(small_net(), device=CPU, speed=Speed(bfloat16=True))


def test_all_tensors_live_on_the_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a GPU: what is left on the CPU could not be computed with there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    assert TorchGraph(small_net()).device == CPU
    module = TorchGraph(small_net(), device=torch.device("meta"))
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    y = module(torch.tensor(X))["logits"]
    assert (y.device.type, tuple(y.shape)) == ("meta", (3, 5))


@pytest.mark.parametrize(
    ("feeds", "settings", "message"),
    [
        ({"y": X}, {}, "feeds: expected x, got y"),
        ({}, {}, "feeds: expected x, got nothing"),
        ({"x": X}, {"outputs": ["nothing"]}, "outputs: the graph has no 'nothing'; known: a, f, logits, n, p, ..."),
        ({"x": X}, {"hooks": {"conv.w": halved}}, "hooks: the graph has no 'conv.w'; known: a, f, logits, n, p"),
        ({"x": X}, {"weights": {"low": torch.zeros(())}}, "weights: the graph has no 'low'; known: conv.b, conv.w"),
        ({"x": X}, {"weights": {"head.b": torch.zeros(4)}}, r"weights: 'head.b' has shape \(5,\), got \(4,\)"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_refused(
    module: TorchGraph, feeds: dict[str, np.ndarray], settings: dict[str, object], message: str
) -> None:
    """A misspelt name would quietly train without what it names."""
    with pytest.raises(ConfigError, match=message):
        module({name: torch.tensor(value) for name, value in feeds.items()}, **settings)


def test_an_operator_that_is_not_known_is_named_with_its_node() -> None:
    proto = make_model([node("Relu", "x", "r"), node("Det", "r")], {"x": ["N", 2, 2]}, ["y"])
    message = (
        "node 'Det_y': operator Det cannot be trained; quantize without training, or export the model with standard "
        "operators"
    )
    with pytest.raises(UnsupportedOperatorError, match=f"^{message}$"):
        TorchGraph(load(proto), device=CPU)
    proto.graph.node[1].domain, proto.graph.node[1].name = "com.microsoft", ""
    with pytest.raises(UnsupportedOperatorError, match=r"node 'y': operator com\.microsoft\.Det cannot"):
        TorchGraph(Model.from_proto(proto), device=CPU)


UNSUPPORTED = [
    (node("MaxPool", "x", "y i", kernel_shape=[2, 2]), ["y", "i"], {}, r"its output number 2 \('i'\)"),
    (node("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER", dilations=[2, 2]), ["y"], {}, "and dilations"),
    (node("Dropout", "x _ mode"), ["y"], {"mode": np.array(True)}, "training_mode"),  # noqa: FBT003
    (node("Cast", "x", to=8), ["y"], {}, "a cast to STRING"),
    (node("Pad", "x pads x"), ["y"], {"pads": np.zeros(8, np.int64)}, "a pad value that is computed"),
    (node("Resize", "x _ x"), ["y"], {}, "scales that are computed"),
    (
        node("Resize", "x _ _ s", keep_aspect_ratio_policy="not_larger"),
        ["y"],
        {"s": np.array([3, 2, 4, 4])},
        "keep_aspect_ratio_policy not_larger",
    ),
]


@pytest.mark.parametrize(("wrong", "outputs", "constants", "what"), UNSUPPORTED)
def test_a_setting_that_is_not_known_is_named(
    wrong: object, outputs: list[str], constants: dict[str, np.ndarray], what: str
) -> None:
    """Running it all the same would train another net than the one that is quantized."""
    proto = make_model([wrong], {"x": [3, 2, 6, 6]}, outputs, constants)  # type: ignore[list-item]
    with pytest.raises(UnsupportedOperatorError, match=rf"node '\w+_y' \(\w+\) cannot be trained with .*{what}"):
        TorchGraph(Model.from_proto(proto), device=CPU)


def test_a_tensor_that_nothing_makes_is_named() -> None:
    proto = make_model([node("Add", "x ghost")], {"x": ["N", 2]}, ["y"])
    with pytest.raises(ModelError, match="tensor 'ghost' is read but nothing makes it"):
        TorchGraph(Model.from_proto(proto), device=CPU)
