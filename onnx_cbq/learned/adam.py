"""Adam (Kingma and Ba, ICLR 2015, arXiv 1412.6980), an array at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_cbq.model import Array

_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Adam:
    """What is remembered of a parameter's gradients: running means of them and of their squares, after some steps."""

    mean: Array
    square: Array
    steps: int = 0

    @staticmethod
    def of(value: Array) -> Adam:
        """Nothing yet."""
        return Adam(np.zeros_like(value), np.zeros_like(value))

    def step(self, value: Array, gradient: Array, rate: float) -> tuple[Array, Adam]:
        """The next value, and what is remembered then (algorithm 1). Cost: about ten passes over the values."""
        steps = self.steps + 1
        mean = _FIRST * self.mean + (1 - _FIRST) * gradient
        square = _SECOND * self.square + (1 - _SECOND) * np.square(gradient)
        direction = (mean / (1 - _FIRST**steps)) / (np.sqrt(square / (1 - _SECOND**steps)) + _SMALL)
        return np.asarray(value - rate * direction, value.dtype), Adam(mean, square, steps)
