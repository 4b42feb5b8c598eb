"""What every script of this folder is asked for: a model, samples, bits, a way to quantize, and a file to write.

Each script runs in an environment of its own, which `peers.py` makes, so none imports anything of this project.

PYTHON benchmarks/peer_tools/SCRIPT.py MODEL.onnx SAMPLES.npz OUT.onnx --bits 4 --way NAME --processor avx2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feeds = dict[str, Any]
# Arrays of the file of samples that are no inputs of the model.
_LABELS, _NAMES = "y", "class_names"
# DequantizeLinear takes 4-bit codes from this version of the operators on.
_INT4_OPERATORS = 21


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        inputs: what the model takes, [samples, ...] by name, prepared; `labels` are [samples].
        way: one of those that the script knows.
        processor: the kind of this processor, as `onnx_cbq.system.processor` names it.
    """

    model: Path
    inputs: Feeds
    labels: Any
    output: Path
    bits: int
    way: str
    processor: str

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.labels)

    def batches(self, size: int) -> list[Feeds]:
        """The inputs in whole batches of so many samples, or of as many as the model insists on; the rest is left.

        Raises:
            ValueError: the model insists on more than there are.
        """
        fixed = self._fixed_batch()
        if fixed > self.samples:
            raise ValueError(f"the model takes {fixed} samples at a time, and there are {self.samples}")
        size = fixed or min(size, self.samples)
        starts = range(0, self.samples - size + 1, size)
        return [{name: values[start : start + size] for name, values in self.inputs.items()} for start in starts]

    def _fixed_batch(self) -> int:
        """How many samples the model takes at a time, 0 for any."""
        shape = onnx.load(self.model, load_external_data=False).graph.input[0].type.tensor_type.shape
        return int(shape.dim[0].dim_value) if shape.dim else 0


class Reader:
    """Samples one by one, and a range of them, as the calibrators of onnxruntime and of its kin ask for them."""

    def __init__(self, task: Task) -> None:
        self._feeds = task.batches(1)
        self._left: Iterator[Feeds] = iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def get_next(self) -> Feeds | None:
        """The next sample, None at the end."""
        return next(self._left, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give those samples next."""
        self._left = iter(self._feeds[start_index:end_index])

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._feeds)


def load_for_int4(path: Path) -> onnx.ModelProto:
    """A model with operators that know 4-bit codes."""
    model = onnx.load(path)
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if versions[""] >= _INT4_OPERATORS:
        return model
    return onnx.version_converter.convert_version(model, _INT4_OPERATORS)


def run(ways: Mapping[str, Callable[[Task], None]]) -> None:
    """Do what the command line says; what goes wrong is said in one line."""
    parser = argparse.ArgumentParser()
    for name in ("model", "samples", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--way", choices=sorted(ways), required=True)
    parser.add_argument("--processor", default="")
    options = parser.parse_args()
    with np.load(options.samples) as file:
        arrays = dict(file)
    labels = arrays.pop(_LABELS)
    arrays.pop(_NAMES, None)
    task = Task(options.model, arrays, labels, options.output, options.bits, options.way, options.processor)
    try:
        ways[options.way](task)
    except Exception as error:  # noqa: BLE001, of every tool another
        text = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {text}" if text else type(error).__name__)
