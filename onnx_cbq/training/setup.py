"""Where and how a net is trained: what every training begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.model import Array, Model
from onnx_cbq.torch_graph import Speed, can_fuse, choose_device, has_bfloat16
from onnx_cbq.training.batches import Batches

# Multiplications in a second, about: on two cores, and on a GPU. Passes of an update: one forward, two backward, and
# those of the float model.
_SPEED, _GPU_SPEED, _PASSES = 1e11, 1e13, 5
# Seconds that each node takes to be compiled, about, and how many times as long training must be for that.
_COMPILING, _TIMES = 0.5, 4
# Operators that are written out position by position, which takes too long to compile.
_WRITTEN_OUT = frozenset({"LSTM", "GRU", "RNN"})


class Learns(Protocol):
    """Settings of anything that learns from batches."""

    @property
    def batch(self) -> int:
        """Samples per update."""

    @property
    def augment(self) -> tuple[str, ...]:
        """How images are changed."""

    @property
    def bfloat16(self) -> bool:
        """Compute in bfloat16 where the processor has it."""


class Trains(Protocol):
    """Settings of anything that trains for a while."""

    @property
    def updates(self) -> int:
        """At most."""

    @property
    def minutes(self) -> float:
        """At most."""

    @property
    def fused(self) -> bool:
        """Compile what updates compute where that pays."""


@dataclass(frozen=True)
class Setup:
    """Where tensors live, and how training computes."""

    device: torch.device
    speed: Speed

    @staticmethod
    def of(config: Learns, seed: int | None = None) -> Setup:
        """For these settings; with a seed, torch's random numbers begin there.

        Raises:
            ConfigError: torch is not installed.
        """
        device = choose_device()
        if seed is not None:
            torch.manual_seed(seed)
        return Setup(device, Speed(bfloat16=config.bfloat16 and has_bfloat16(device)))

    def compiling(self, config: Trains, model: Model, macs: int, batch: int) -> Setup:
        """The same, fused where that pays and a compiler is there; that none is there is logged.

        Args:
            config: how long it trains.
            model: what is trained.
            macs: its multiplications for one sample.
            batch: samples per update.
        """
        fused = config.fused and fusing_pays(config, model, macs * batch, self.device) and can_fuse(self.device)
        return replace(self, speed=replace(self.speed, fused=fused))

    @property
    def parts(self) -> tuple[object, ...]:
        """What the last digits of a training depend on here."""
        return torch.__version__, str(self.device), self.speed, torch.get_num_threads()

    def batches(self, samples: Samples, indices: Indices, config: Learns, views: int = 1) -> Batches:
        """Some samples, in batches."""
        return Batches(samples.remembered(indices), indices, config.batch, config.augment, views, self.device)

    def tensor(self, values: Array) -> Tensor:
        """An array in float32."""
        return torch.tensor(np.asarray(values, np.float32), device=self.device)


def fusing_pays(config: Trains, model: Model, macs: int, device: torch.device) -> bool:
    """Whether training is long beside the compiling of what it computes; by counts, so that a repeated run does alike.

    Args:
        config: how long it goes on.
        model: what is trained.
        macs: its multiplications for a batch.
        device: where.
    """
    if any(node.op_type in _WRITTEN_OUT for node in model.nodes):
        return False
    speed = _SPEED if device.type == "cpu" else _GPU_SPEED
    seconds = min(60 * config.minutes, config.updates * _PASSES * macs / speed)
    return seconds >= _TIMES * _COMPILING * len(model.nodes)
