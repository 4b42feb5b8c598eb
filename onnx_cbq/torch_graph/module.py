"""A normalised ONNX graph as an `nn.Module`.

The initializers that nodes multiply and add with are its parameters. Everything that can be known from the graph alone
is resolved when the module is made; a forward pass walks a list of functions, and drops each tensor after its last use
(autograd keeps what the backward pass needs).

Training needs to see, and to replace, what lies between input and output:

    module(x, ["logits", "/conv1/y"], weights={"conv1.w": quantized(w)}, hooks={"/relu1/y": fake_quantize})
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from onnx import NodeProto
from torch import Tensor, nn

from onnx_cbq.errors import ConfigError, ModelError, UnsupportedOperatorError
from onnx_cbq.model import STANDARD, Array, Model
from onnx_cbq.torch_graph.fusing import fused
from onnx_cbq.torch_graph.node import OnnxNode, Run, title
from onnx_cbq.torch_graph.operators import OPERATORS

Hook = Callable[[Tensor], Tensor]

# Measured, not trained: mean and variance of the samples that a model was trained on.
_STATISTICS = {"BatchNormalization": (3, 4)}


@dataclass(frozen=True)
class Speed:
    """How a graph is computed faster than operator by operator in float32; what is computed changes by rounding only.

    Attributes:
        bfloat16: in bfloat16 where torch's autocast finds that safe; parameters and results stay float32.
        fused: by code that is made for it when it runs first (see `fusing.fused`).
    """

    bfloat16: bool = False
    fused: bool = False


EXACT = Speed()


@dataclass(frozen=True)
class _Step:
    """One node: what it runs, what it reads (None for what is resolved or omitted) and makes, what can go after it."""

    run: Run
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...] = ()


def choose_device() -> torch.device:
    """A GPU where torch finds one, else the CPU.

    On a GPU torch multiplies in convolutions with 10 bits of mantissa unless `torch.backends.cudnn.allow_tf32` is off.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch before 2.10 does not tell; then the answer is no.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(found.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))


class TorchGraph(nn.Module):
    """`model` in torch; the same outputs as onnxruntime's to rounding, and gradients by autograd.

    Args:
        model: the graph; it is not changed, see `write_back`.
        trained: the initializers that become parameters; by default all of floating point that a node reads as a
            tensor, except the statistics of BatchNormalization. The others are buffers. Settings (shapes, the bounds
            of a Clip, a constant exponent) are neither.
        device: where all tensors live, by default `choose_device()`.
        channels_last: lay images out with the channels innermost.
        speed: how it is computed. A fused graph's hooks are compiled with it, so they have to stay the same functions.

    Raises:
        UnsupportedOperatorError: a node has an operator, or a setting, that is not known here.
        ModelError: a node reads a tensor that nothing makes, or an initializer has a type that torch lacks.
        ConfigError: `trained` names something else than initializers that can be trained, or bfloat16 is asked of a
            device without it.
    """

    def __init__(
        self,
        model: Model,
        trained: Collection[str] | None = None,
        *,
        device: torch.device | None = None,
        channels_last: bool = False,
        speed: Speed = EXACT,
    ) -> None:
        super().__init__()
        self.device = device or choose_device()
        if speed.bfloat16 and not has_bfloat16(self.device):
            raise ConfigError(f"bfloat16: this {self.device.type} has no instructions for it; train in float32")
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._bfloat16 = speed.bfloat16
        self._model = model
        self._steps, statistics = _compile(model)
        self._plans: dict[tuple[str, ...], tuple[_Step, ...]] = {}
        self._compiled = fused(self._compute) if speed.fused else None
        self._slots: dict[str, str] = {}
        read = dict.fromkeys(name for step in self._steps for name in step.inputs if name is not None)
        constants = {name: value for name in read if (value := model.constant(name)) is not None}
        trainable = {name for name, value in constants.items() if value.dtype.kind == "f"}
        chosen = trainable - statistics if trained is None else set(trained)
        if unknown := sorted(chosen - trainable):
            raise ConfigError(
                f"trained: {unknown[0]!r} is no initializer that can be trained; known: {_some(trainable)}"
            )
        for name, value in constants.items():
            self._register(name, value, trained=name in chosen)
        made = {name for step in self._steps for name in step.outputs}
        self._tensors = made | {spec.name for spec in model.inputs}
        self._check_sources(read)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the name of their initializer."""
        return {name: self._parameters[slot] for name, slot in self._slots.items() if slot in self._parameters}  # type: ignore[misc]

    @property
    def fused(self) -> bool:
        """Whether it is computed by code that is made for it."""
        return self._compiled is not None

    def unfuse(self) -> None:
        """From now on compute operator by operator."""
        self._compiled = None

    def forward(
        self,
        feeds: Tensor | Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Hook] | None = None,
    ) -> dict[str, Tensor]:
        """Run once; returns the named tensors (by default the graph's outputs), and computes no more than they need.

        Args:
            feeds: the inputs by name, or the only one.
            outputs: graph inputs, or whatever a node makes; what a hook returned where there is one.
            weights: tensors in place of initializers for this pass, of the same shape; gradients flow into them.
            hooks: tensor name -> a function of it, whose result everything behind reads in its place.

        Raises:
            ConfigError: a name is not known, a feed is missing, or a weight has another shape.
        """
        fed = self._fed(feeds)
        replaced, hooked = weights or {}, hooks or {}
        names = self._model.outputs if outputs is None else tuple(outputs)
        self._check_names(names, replaced, hooked)
        compute = self._compiled or self._compute
        return compute(self._plan(names), names, fed, self._constants() | dict(replaced), hooked)

    def write_back(self, model: Model) -> Model:
        """`model` with the parameters as they are now in place of its initializers; nothing else changes."""
        found = {name: parameter.detach().cpu().numpy() for name, parameter in self.weights.items()}
        return model.with_constants({name: value.astype(model.weight(name).dtype) for name, value in found.items()})

    def _compute(
        self,
        steps: tuple[_Step, ...],
        names: tuple[str, ...],
        fed: dict[str, Tensor],
        given: dict[str, Tensor],
        hooked: Mapping[str, Hook],
    ) -> dict[str, Tensor]:
        """The named tensors, from inputs and initializers."""
        values = dict(given)
        with torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else nullcontext():
            for name, tensor in fed.items():
                values[name] = hooked[name](tensor) if name in hooked else tensor
            for step in steps:
                made = step.run(*[None if name is None else values[name] for name in step.inputs])
                for name, tensor in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                    values[name] = hooked[name](tensor) if name in hooked else tensor
                for name in step.spent:
                    values.pop(name, None)
        return {name: _widened(values[name]) for name in names}

    def _register(self, name: str, value: Array, *, trained: bool) -> None:
        # torch takes no dot in a name; the number keeps names apart that differ in nothing else.
        slot = f"{len(self._slots)} {name.replace('.', '_')}"
        self._slots[name] = slot
        try:
            tensor = torch.tensor(value, device=self.device)
        except TypeError:
            raise ModelError(
                f"initializer {name!r} is {value.dtype}, which torch does not take; export float32"
            ) from None
        tensor = _formatted(tensor, self._format)
        if trained:
            self.register_parameter(slot, nn.Parameter(tensor))
        else:
            self.register_buffer(slot, tensor)

    def _check_sources(self, read: Collection[str]) -> None:
        for name in read:
            if name not in self._tensors and name not in self._slots:
                raise ModelError(f"tensor {name!r} is read but nothing makes it; normalise the model first")

    def _constants(self) -> dict[str, Tensor]:
        held = {**self._parameters, **self._buffers}
        return {name: tensor for name, slot in self._slots.items() if (tensor := held[slot]) is not None}

    def _fed(self, feeds: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        expected = [spec.name for spec in self._model.inputs]
        if isinstance(feeds, Tensor):
            feeds = {expected[0]: feeds} if expected else {}
        if set(feeds) != set(expected):
            raise ConfigError(f"feeds: expected {_some(expected)}, got {_some(feeds)}")
        return {name: _formatted(tensor.to(self.device), self._format) for name, tensor in feeds.items()}

    def _check_names(self, names: Collection[str], weights: Mapping[str, Tensor], hooks: Mapping[str, Hook]) -> None:
        for what, asked, known in (
            ("outputs", names, self._tensors),
            ("hooks", hooks, self._tensors),
            ("weights", weights, self._slots),
        ):
            if unknown := next((name for name in asked if name not in known), None):
                raise ConfigError(f"{what}: the graph has no {unknown!r}; known: {_some(known)}")
        for name, tensor in weights.items():
            expected = tuple(self._model.weight(name).shape)
            if tuple(tensor.shape) != expected:
                raise ConfigError(f"weights: {name!r} has shape {expected}, got {tuple(tensor.shape)}")

    def _plan(self, names: tuple[str, ...]) -> tuple[_Step, ...]:
        """The steps that `names` need, each with the tensors that nothing reads after it."""
        if names not in self._plans:
            kept = set(names) | self._slots.keys()
            wanted, steps = set(kept), []
            for step in reversed(self._steps):
                if wanted.isdisjoint(step.outputs):
                    continue
                wanted.update(name for name in step.inputs if name is not None)
                touched = {name for name in (*step.inputs, *step.outputs) if name is not None}
                steps.append(_Step(step.run, step.inputs, step.outputs, tuple(touched - kept)))
                kept |= touched
            self._plans[names] = tuple(reversed(steps))
        return self._plans[names]


def _compile(model: Model) -> tuple[list[_Step], set[str]]:
    """Every node as a step, and the names of statistics."""
    read = {name for node in model.nodes for name in node.input} | set(model.outputs)
    steps, statistics = [], set[str]()
    for proto in model.nodes:
        node = OnnxNode(proto, model, read)
        run = _operator(proto)(node)
        inputs = tuple(name if name and i not in node.resolved else None for i, name in enumerate(node.inputs))
        steps.append(_Step(run, inputs, node.outputs))
        statistics |= {node.inputs[i] for i in _STATISTICS.get(node.operator, ())}
    return steps, statistics


def _operator(node: NodeProto) -> Callable[[OnnxNode], Run]:
    found = OPERATORS.get(node.op_type) if node.domain in STANDARD else None
    if found is None:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise UnsupportedOperatorError(
            f"node {title(node)!r}: operator {operator} cannot be trained; quantize without training, or export the "
            f"model with standard operators"
        )
    return found


def _formatted(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """`tensor` in a memory layout, which only those of four axes have."""
    return (
        tensor.contiguous(memory_format=layout) if tensor.dim() == 4 and layout is not torch.preserve_format else tensor
    )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _some(names: Collection[str]) -> str:
    """Up to five names, for a message."""
    shown = ", ".join(sorted(names)[:5])
    return shown + (", ..." if len(names) > 5 else "") if names else "nothing"
