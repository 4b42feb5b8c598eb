"""A method, a criterion, a storage, a target and a goal, each one class here and one entry in a table.

Guards what `docs/extending` promises: nothing else has to change for a new member to work from the command line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import onnx_cbq.goals
import onnx_cbq.methods
import onnx_cbq.methods.criteria
import onnx_cbq.storage
import onnx_cbq.targets
from onnx_cbq.evidence import Evidence, width_tables
from onnx_cbq.goals.goal import Goal, Met, solve
from onnx_cbq.methods import Method, PlanMethod, Planned
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Layer, Plan
from onnx_cbq.settings import CHOOSE, REACH, STORING, option
from onnx_cbq.stages.scene import Scene
from onnx_cbq.storage import Storage
from onnx_cbq.targets.target import Target
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL


@dataclass(frozen=True)
class Alternating(PlanMethod):
    """Every second channel has fewer bits.

    Attributes:
        gap: how many fewer.
    """

    name: ClassVar[str] = "alternating"
    about: ClassVar[str] = "every second channel has fewer bits"

    gap: int = option(1, CHOOSE, "N")

    def plan(self, scene: Scene, bits: float) -> Planned:
        widths = {
            layer.name: np.where(np.arange(layer.channels) % 2, int(bits) - self.gap, int(bits)).astype(np.int8)
            for layer in scene.work.layers
        }
        return Planned(Plan(widths), (f"alternating: {self.gap} fewer",))


class Magnitude:
    """What rounding changes, whatever it does to the outputs."""

    name: ClassVar[str] = "magnitude"
    needs_gradients: ClassVar[bool] = False

    def losses(self, layer: Layer, evidence: Evidence, class_weights: Array) -> Array:
        table = evidence.of(width_tables)[layer.name]
        rows = layer.rows(evidence.work.model.weight(layer.weight))
        return np.asarray(np.square(table.codes * table.scale[:, :, None] - rows).sum(axis=2).T)


@dataclass(frozen=True)
class Stamped(Storage):
    """A byte for each weight, and who made it.

    Attributes:
        maker: a name that the file carries.
    """

    name: ClassVar[str] = "stamped"
    about: ClassVar[str] = "a byte per weight, with a name"

    maker: str = option("nobody", STORING, "NAME")

    def finish(self, model: Model) -> Model:
        model.skeleton.metadata_props.add(key="maker", value=self.maker)
        return model


@dataclass(frozen=True)
class Thrifty(Goal):
    """As many bits as a number has digits.

    Attributes:
        digits_of: the number.
    """

    name: ClassVar[str] = "thrifty"
    options: ClassVar[str] = "--digits-of"

    digits_of: int = option(None, REACH, "N")

    @property
    def option(self) -> str:
        return "--digits-of"

    @property
    def bits(self) -> float:
        return float(len(str(self.digits_of)))

    def meet(self, scene: Scene, method: Method) -> Met:
        return Met(solve(scene, method, self.bits), self.bits, (f"{self.digits_of} has {self.bits:g} digits",))


ROVER = Target("rover", "a rover on Mars", activation_bits=(8,), storages=("int8", "stamped"))


@pytest.fixture(autouse=True)
def _members(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, table, member in (
        (onnx_cbq.methods, "METHODS", Alternating),
        (onnx_cbq.methods.criteria, "CRITERIA", Magnitude()),
        (onnx_cbq.storage, "STORAGES", Stamped),
        (onnx_cbq.goals, "GOALS", Thrifty),
        (onnx_cbq.targets, "TARGETS", ROVER),
    ):
        monkeypatch.setattr(room, table, (*getattr(room, table), member))


def test_new_members_work_from_the_command_line(tmp_path: Path, command: Command) -> None:
    told = ("--storage", "stamped", "--maker", "Ada", "--target", "rover", "--samples", "100", "--json", tmp_path / "r")
    run = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", *told)
    finished = command(*run, "--method", "alternating", "--gap", "2", "--bits", "5")
    assert (finished.code, finished.err) == (0, "")
    assert "note: alternating: 2 fewer" in finished.out
    result = json.loads((tmp_path / "r").read_text())
    assert all(set(bits) == {3, 5} for bits in result["bits"].values())
    assert result["settings"] == {
        "bits": 5.0,
        "gap": 2,
        "maker": "Ada",
        "method": "alternating",
        "samples": 100,
        "storage": "stamped",
        "target": "rover",
    }
    assert b"Ada" in (tmp_path / "q.onnx").read_bytes()

    finished = command(*run, "--digits-of", "12345")
    assert (finished.code, finished.err) == (0, "")
    assert "note: 12345 has 5 digits" in finished.out
    result = json.loads((tmp_path / "r").read_text())
    assert 4.5 < result["average_bits"] <= 5
    assert "magnitude" in result["method"]["measured"]


def test_new_members_are_in_the_help(command: Command) -> None:
    words = " ".join(command("quantize", "--help").out.replace("│", " ").split())
    assert "alternating: every second channel has fewer bits" in words
    assert "For --method alternating: how many fewer. (default: 1)" in words
    assert "stamped: a byte per weight, with a name" in words
    assert "--digits-of" in words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gap", "2"), "only for --method alternating"),
        (("--maker", "Ada"), "only for --storage stamped"),
        (("--target", "rover", "--activation-bits", "4"), "targets that can: cpu"),
        (("--method", "alternating", "--digits-of", "12"), "--bits beside it, got --digits-of"),
    ],
)
def test_what_does_not_go_together_is_refused_for_them_too(
    tmp_path: Path, command: Command, options: tuple[str, ...], said: str
) -> None:
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", *options)
    assert finished.code in {1, 2}
    assert said in " ".join(finished.err.replace("│", " ").split())
