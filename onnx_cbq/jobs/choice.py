"""From what a user writes down to the objects that do it: the one place that knows the names of settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx_cbq import goals, methods
from onnx_cbq import storage as storages
from onnx_cbq.errors import ConfigError
from onnx_cbq.goals import Goal
from onnx_cbq.methods import Entropy, Method, SharedValues, find_codebook, find_method
from onnx_cbq.settings import check, either
from onnx_cbq.stages.scene import SceneSettings
from onnx_cbq.storage import Storage, find_storage
from onnx_cbq.targets.fit import check_target
from onnx_cbq.targets.target import Target

# What `codebook` is called where every channel has a grid of its own.
UNIFORM = "uniform"
# What fields of members were given: class -> field -> value; those of a class count for what inherits from it.
Given = Mapping[type, Mapping[str, Any]]


@dataclass(frozen=True)
class Choice:
    """The objects that settings stand for, checked to go together.

    Attributes:
        method, goal, target: how weights are chosen, how far to go, and what for.
        scene: what the scene is gathered by, with rounding and storage.
        equalizes: whether layers are equalized where that helps.
        run_check: whether the result is run as it will run.
    """

    method: Method
    goal: Goal
    target: Target
    scene: SceneSettings
    equalizes: bool
    run_check: bool

    @property
    def gathers(self) -> bool:
        """Whether anything is estimated from samples; else they only show what the result does."""
        return self.method.gathers or self.scene.rounding.compensates or self.scene.activations.bits > 0


def make_storage(storage: str | Storage, given: Given) -> Storage:
    """The storage of that name with what its fields were given."""
    if isinstance(storage, Storage):
        return storage
    kind = find_storage(storage)
    return kind(**fields_of(kind, given))


def make_method(method: str | Method, codebook: tuple[str, str], storage: Storage, given: Given) -> Method:
    """The method of that name with what its fields were given; or what an archive or a codebook makes of the default.

    `codebook` is the name of the values that weights may take, and which of them share these.
    """
    name, scope = codebook
    if isinstance(method, Method):
        check(name == UNIFORM, f"--codebook {name}", "no method beside it", method.option)
        return method
    kind, is_default = find_method(method), method == methods.METHODS[0].name
    if name != UNIFORM:
        sharing = find_codebook(name, UNIFORM)
        check(is_default, f"--codebook {name}", "no --method beside it", method)
        return sharing(**fields_of(sharing, given))
    check(scope == SharedValues.scope, "--codebook-scope", "another --codebook beside it", name)
    if storage.coded and is_default:
        return Entropy(**fields_of(Entropy, given))
    return kind(**fields_of(kind, given))


def make_goal(bits: float, given: Given) -> Goal:
    """The goal that was asked for by one of its fields; else so many bits."""
    asked = [kind for kind in goals.GOALS if any(value is not None for value in fields_of(kind, given).values())]
    for other in asked[1:]:
        check(False, asked[0].options, f"no {other.options} beside it", "both")  # noqa: FBT003
    kind = asked[0] if asked else goals.Bits
    return kind.of(bits, fields_of(kind, given))


def fields_of(kind: type, given: Given) -> dict[str, Any]:
    """What the fields of a member of that kind were given."""
    return {name: value for owner, fields in given.items() if issubclass(kind, owner) for name, value in fields.items()}


def check_together(choice: Choice, averages: Iterable[float]) -> None:
    """Hold what was chosen against what the members say that they go together with.

    Raises:
        ConfigError: with the option, what it expects beside it, and what it got.
    """
    method, goal, settings = choice.method, choice.goal, choice.scene
    storage, rounding, option = settings.storage, settings.rounding, method.option
    fit = method.fit(storage)
    if fit is None:
        others = either(tuple(kind.name for kind in storages.STORAGES if method.fit(kind()) is not None))
        raise ConfigError(f"{option}: expected --storage {others} beside it, got {storage.name}")
    beside = option if option.endswith(storage.name) else f"{option} and --storage {storage.name}"
    check(fit.goals or goal.name == goals.Bits.name, beside, f"{goals.Bits.options} beside it", goal.option)
    check(fit.nearest or rounding.compensates, beside, "a --rounding that compensates", rounding.name)
    check(fit.learned or not rounding.learns, beside, "another --rounding beside it", rounding.name)
    # Limits are proved on samples that nothing else used, and take many attempts.
    alone = goal.name == goals.Bits.name or not rounding.learns
    check(alone, f"--rounding {rounding.name}", f"{goals.Bits.options} beside it", goal.option)
    check(fit.keep or not settings.keep, beside, "no --keep beside it", settings.keep)
    for bits in averages:
        check(fit.fractions or float(bits).is_integer(), "--bits", f"a whole number with {beside}", bits)
    needed = goal.goes_with(storage)
    check(not needed, goal.option, f"{needed} beside it", f"--storage {storage.name}")
    check_target(choice.target, settings.activations.widths, storage.name, option if method.shares_values else "")
