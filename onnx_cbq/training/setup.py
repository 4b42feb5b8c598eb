"""Where and how a net is trained: what every training begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.model import Array, Model
from onnx_cbq.torch_graph import Speed, can_fuse, choose_device, has_bfloat16
from onnx_cbq.training.batches import Batches

# Multiplications in a second on two cores, about; passes of an update: forward, two backward, those of the float model.
_SPEED, _PASSES = 1e11, 5
# Seconds that each node takes to be compiled, about, and how many times as long training must be for that.
_COMPILING, _TIMES = 0.5, 4


class Learns(Protocol):
    """Settings of anything that learns from batches."""

    @property
    def batch(self) -> int:
        """Samples per update."""

    @property
    def augment(self) -> tuple[str, ...]:
        """How images are changed."""

    @property
    def updates(self) -> int:
        """At most."""

    @property
    def minutes(self) -> float:
        """At most."""

    @property
    def bfloat16(self) -> bool:
        """Compute in bfloat16 where the processor has it."""

    @property
    def fused(self) -> bool:
        """Compile what is computed where that pays."""


@dataclass(frozen=True)
class Setup:
    """Where tensors live, and how training computes."""

    device: torch.device
    speed: Speed

    @staticmethod
    def of(config: Learns, model: Model, macs: int, seed: int | None = None) -> Setup:
        """For these settings; with a seed, torch's random numbers begin there.

        Args:
            config: the settings.
            model: what learns.
            macs: its multiplications for one sample.
            seed: of the random numbers.

        Raises:
            ConfigError: torch is not installed.
        """
        device = choose_device()
        if seed is not None:
            torch.manual_seed(seed)
        fused = config.fused and fusing_pays(config, len(model.nodes), macs) and can_fuse(device)
        return Setup(device, Speed(config.bfloat16 and has_bfloat16(device), fused))

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


def fusing_pays(config: Learns, nodes: int, macs: int) -> bool:
    """Whether training is long beside the compiling of what it computes; by counts, so that a repeated run does alike.

    Args:
        config: how long it goes on.
        nodes: of the model.
        macs: multiplications for one sample.
    """
    seconds = min(60 * config.minutes, config.updates * config.batch * _PASSES * macs / _SPEED)
    return seconds >= _TIMES * _COMPILING * nodes
