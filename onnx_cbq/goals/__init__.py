"""How far to go. A goal is a class in a file of this folder, listed here; the first that is asked for counts."""

from __future__ import annotations

from onnx_cbq.goals.accuracy import Accuracy
from onnx_cbq.goals.bits import Bits
from onnx_cbq.goals.bytes import Bytes
from onnx_cbq.goals.goal import Goal

__all__ = ["GOALS", "Accuracy", "Bits", "Bytes", "Goal"]

GOALS: tuple[type[Goal], ...] = (Bytes, Accuracy, Bits)
