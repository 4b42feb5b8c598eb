"""The state of a training on disk, so that a killed run can go on: an `.npz` without pickles, written whole."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from cattrs import structure
from cattrs.errors import ClassValidationError
from torch import Tensor, nn

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array
from onnx_cbq.storage.files import write_arrays
from onnx_cbq.training.records import STATE_HEADER, Course

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_DAMAGED = (OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, ClassValidationError)


@dataclass(frozen=True)
class Checkpoint:
    """A file for the state of one training.

    Attributes:
        path: of the file.
        key: stands for everything that the training depends on; another training's file is refused.
        resume: whether to go on from the file.
    """

    path: Path
    key: str
    resume: bool

    def save(self, student: nn.Module, optimizer: torch.optim.Adam, course: Course, best: dict[str, Tensor]) -> None:
        """Write the state.

        Raises:
            OutputError: it cannot be written.
        """
        states = {"now": student.state_dict(), "best": best}
        arrays = {f"{kind}/{name}": _array(value) for kind, state in states.items() for name, value in state.items()}
        for i, moments in optimizer.state_dict()["state"].items():
            arrays |= {f"adam/{i}/{name}": _array(moments[name]) for name in _MOMENTS}
        header = json.dumps({"key": self.key, "course": asdict(course)})
        write_arrays(self.path, {STATE_HEADER: np.frombuffer(header.encode(), np.uint8), **arrays})

    def load(self, student: nn.Module, optimizer: torch.optim.Adam) -> tuple[Course, dict[str, Tensor]]:
        """Put the state back; returns the course and the best state.

        Raises:
            ModelError: the file is damaged, or belongs to another training.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                header = json.loads(bytes(stored[STATE_HEADER]))
                if header["key"] != self.key:
                    raise ModelError(
                        f"{self.path}: belongs to a run with another model, other samples or settings; "
                        "leave out --resume to start anew"
                    )
                course = structure(header["course"], Course)
                tensors = {name: torch.from_numpy(stored[name]) for name in stored.files if name != STATE_HEADER}
                student.load_state_dict(_part(tensors, "now"))
                state = optimizer.state_dict()
                indices = {int(name.split("/")[1]) for name in tensors if name.startswith("adam/")}
                state["state"] = {i: _part(tensors, f"adam/{i}") for i in sorted(indices)}
                optimizer.load_state_dict(state)
                device = next(student.parameters()).device
                return course, {name: value.to(device) for name, value in _part(tensors, "best").items()}
        except _DAMAGED as error:
            raise ModelError(
                f"{self.path}: not the state of a training: {type(error).__name__}; leave out --resume to start anew"
            ) from error


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): value for name, value in tensors.items() if name.startswith(f"{kind}/")}
