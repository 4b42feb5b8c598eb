"""Where and how a net is trained: what every training begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.model import Array
from onnx_cbq.torch_graph import choose_device, has_bfloat16
from onnx_cbq.training.batches import Batches


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


@dataclass(frozen=True)
class Setup:
    """Where tensors live, and whether what is computed of them is rounded to bfloat16."""

    device: torch.device
    bfloat16: bool

    @staticmethod
    def of(config: Learns, seed: int | None = None) -> Setup:
        """For these settings; with a seed, torch's random numbers begin there.

        Raises:
            ConfigError: torch is not installed.
        """
        device = choose_device()
        if seed is not None:
            torch.manual_seed(seed)
        return Setup(device, config.bfloat16 and has_bfloat16(device))

    @property
    def parts(self) -> tuple[object, ...]:
        """What the last digits of a training depend on here."""
        return torch.__version__, str(self.device), self.bfloat16, torch.get_num_threads()

    def batches(self, samples: Samples, indices: Indices, config: Learns, views: int = 1) -> Batches:
        """Some samples, in batches."""
        return Batches(samples.remembered(indices), indices, config.batch, config.augment, views, self.device)

    def tensor(self, values: Array) -> Tensor:
        """An array in float32."""
        return torch.tensor(np.asarray(values, np.float32), device=self.device)
