"""A training in the cache: its state as long as it lasts, so that a killed run goes on, and then what came of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from cattrs import structure
from cattrs.errors import ClassValidationError
from torch import Tensor, nn

from onnx_cbq.evidence.cache import Cache, Kept, Parts
from onnx_cbq.evidence.fingerprint import fingerprint
from onnx_cbq.evidence.kept import checked
from onnx_cbq.model import Array
from onnx_cbq.system.store import Entry

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _T = TypeVar("_T", bound=DataclassInstance)
else:
    _T = TypeVar("_T")

Tensors = Mapping[str, Tensor]
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NOW, _BEST, _ADAM = "now/", "best/", "adam/"


@dataclass(frozen=True)
class _Standing(Generic[_T]):
    """How far a training came, and its arrays: states by `now/` and `best/`, moments by `adam/` and their parameter."""

    facts: _T
    arrays: Mapping[str, Array]

    def tensors(self, start: str, device: torch.device) -> dict[str, Tensor]:
        """Those whose names start so, which is left out."""
        found = {name.removeprefix(start): value for name, value in self.arrays.items() if name.startswith(start)}
        return {name: torch.from_numpy(np.array(value)).to(device) for name, value in found.items()}


class Checkpoint(Generic[_T]):
    """Where one training is kept.

    Args:
        cache: of the run.
        name: what lists and notes call the result.
        version: of how the training goes on; raised with every change.
        parts: everything that the training depends on.
        facts: the dataclass that says how far it came.
    """

    def __init__(self, cache: Cache, name: str, version: int, parts: Parts, facts: type[_T]) -> None:
        self._cache, self._name, self._version, self._facts = cache, name, version, facts
        # Models and samples are looked at once, and not for every state.
        known = functools.cache(lambda: fingerprint(*parts()))
        self._parts: Parts = lambda: [known()]

    def result(self, net: nn.Module) -> _T | None:
        """How the training went if it is over; the net is then as it was left."""
        found = self._cache.find(self._kept(self._name, _state(net, _BEST)), self._parts)
        if found is None:
            return None
        net.load_state_dict(found.tensors(_BEST, _device(net)))
        return found.facts

    def load(self, net: nn.Module, optimizer: torch.optim.Adam) -> tuple[_T, dict[str, Tensor]] | None:
        """Put the last state back, if there is one; returns how far it came, and the best state so far."""
        found = self._cache.find(self._unfinished(net, optimizer), self._parts)
        if found is None:
            return None
        net.load_state_dict(found.tensors(_NOW, _device(net)))
        state = optimizer.state_dict()
        indices = {int(name.split("/")[1]) for name in found.arrays if name.startswith(_ADAM)}
        state["state"] = {i: found.tensors(f"{_ADAM}{i}/", torch.device("cpu")) for i in sorted(indices)}
        optimizer.load_state_dict(state)
        return found.facts, found.tensors(_BEST, _device(net))

    def save(self, net: nn.Module, optimizer: torch.optim.Adam, facts: _T, best: Tensors | None = None) -> None:
        """Keep the state, in place of the one before; `best` is that of the net now if it is left out."""
        arrays = _state(net, _NOW)
        arrays |= _state(net, _BEST) if best is None else _named(best, _BEST)
        for i, moments in optimizer.state_dict()["state"].items():
            arrays |= _named({name: moments[name] for name in _MOMENTS}, f"{_ADAM}{i}/")
        self._cache.hold(self._unfinished(net, optimizer), self._parts, _Standing(facts, arrays))

    def finish(self, best: Tensors, facts: _T) -> None:
        """Keep what came of the training, and the state no longer."""
        arrays = _named(best, _BEST)
        self._cache.keep(self._kept(self._name, arrays), self._parts, _Standing(facts, arrays))
        self._cache.drop(self._kept(self._unfinished_name, {}), self._parts)

    @property
    def _unfinished_name(self) -> str:
        return f"unfinished {self._name}"

    def _unfinished(self, net: nn.Module, optimizer: torch.optim.Adam) -> Kept[_Standing[_T]]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments: dict[str, Array] = {}
        for i, parameter in enumerate(parameters):
            value = _array(parameter)
            moments |= {f"{_ADAM}{i}/{name}": value for name in _MOMENTS[1:]}
            moments[f"{_ADAM}{i}/{_MOMENTS[0]}"] = np.zeros((), np.float32)
        return self._kept(self._unfinished_name, {**_state(net, _NOW), **_state(net, _BEST)}, moments)

    def _kept(
        self, name: str, expected: Mapping[str, Array], allowed: Mapping[str, Array] | None = None
    ) -> Kept[_Standing[_T]]:
        """Arrays as those that are expected, and perhaps some that are allowed."""
        allowed = allowed or {}

        def unpack(entry: Entry) -> _Standing[_T]:
            try:
                facts = structure(entry.facts, self._facts)
            except ClassValidationError as error:
                raise ValueError(str(error)) from error
            of_adam = {name.rpartition("/")[0] for name in entry.arrays.keys() - expected.keys()}
            wanted = {**expected, **{f"{one}/{name}": allowed[f"{one}/{name}"] for one in of_adam for name in _MOMENTS}}
            return _Standing(
                facts, {name: checked(entry.arrays[name], one.dtype.str, one.shape) for name, one in wanted.items()}
            )

        return Kept(name, self._version, lambda standing: Entry(standing.arrays, asdict(standing.facts)), unpack)


def _state(net: nn.Module, start: str) -> dict[str, Array]:
    return _named(net.state_dict(), start)


def _named(tensors: Mapping[str, Any], start: str) -> dict[str, Array]:
    return {f"{start}{name}": _array(value) for name, value in tensors.items()}


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
