"""onnx's reference evaluator with the operators replaced that it cannot run in float64 or gets wrong.

Erf, Gelu and GroupNormalization compute in float32 there, Pad refuses negative pads, ConvTranspose fails with groups
and with a given output size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_cbq.model import Array


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))),)


class GroupNormalization(OpRun):
    """From opset 21 on: one scale and bias per channel."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: float = 1e-5, num_groups: int = 1, stash_type: int = 1
    ) -> tuple[Array]:
        groups = x.reshape(len(x), num_groups, -1)
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + epsilon)
        shape = (-1, *[1] * (x.ndim - 2))
        repeat = x.shape[1] // len(scale)
        return (groups.reshape(x.shape) * scale.repeat(repeat).reshape(shape) + bias.repeat(repeat).reshape(shape),)


class Pad(OpRun):
    op_domain = ""

    def _run(
        self, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, mode: str = "constant"
    ) -> tuple[Array]:
        chosen = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        for i, axis in enumerate(chosen):
            before, after = int(pads[i]), int(pads[i + len(chosen)])
            x = np.take(x, np.arange(max(-before, 0), x.shape[axis] - max(-after, 0)), axis)
            widths = [(0, 0)] * x.ndim
            widths[axis] = (max(before, 0), max(after, 0))
            settings: dict[str, Any] = {"mode": mode}
            if mode == "constant":
                settings["constant_values"] = 0 if value is None else float(value)
            x = np.pad(x, widths, **settings)
        return (x,)


class ConvTranspose(OpRun):
    """Every input position adds the kernel, scaled, to the output: the definition, one kernel position at a time."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        d, s = dilations or [1] * rank, strides or [1] * rank
        extra, kernel = output_padding or [0] * rank, w.shape[2:]
        full = [s[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * d[i] + 1 for i in range(rank)]
        if auto_pad.startswith("SAME"):
            output_shape = [x.shape[2 + i] * s[i] for i in range(rank)]
        if output_shape:
            total = [max(f - o, 0) for f, o in zip(full, output_shape, strict=True)]
            half = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            pads = [*half, *(t - h for t, h in zip(total, half, strict=True))]
        pads = pads or [0] * 2 * rank
        inputs, outputs = x.shape[1] // group, w.shape[1]
        y = np.zeros((len(x), group * outputs, *full), x.dtype)
        for position in np.ndindex(*kernel):
            spots = tuple(
                slice(position[i] * d[i], position[i] * d[i] + s[i] * (x.shape[2 + i] - 1) + 1, s[i])
                for i in range(rank)
            )
            for g in range(group):
                part = x[:, g * inputs : (g + 1) * inputs]
                weight = w[(slice(g * inputs, (g + 1) * inputs), slice(None), *position)]
                y[(slice(None), slice(g * outputs, (g + 1) * outputs), *spots)] += np.einsum(
                    "ni...,io->no...", part, weight
                )
        y = y[(slice(None), slice(None), *(slice(pads[i], full[i] - pads[i + rank]) for i in range(rank)))]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=[Erf, Gelu, GroupNormalization, Pad, ConvTranspose])
