"""What a piece of evidence was computed from, as a SHA-256: the same values give the same in every process."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from itertools import chain

import numpy as np

from onnx_cbq.calibration.samples import Indices, Samples
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import versions
from onnx_cbq.system.processor import microarchitecture, processor_kind
from onnx_cbq.system.workers import cores

# Samples that are prepared at once.
_BATCH = 64
# Environment variables that libraries spread or choose their work by.
_STEERING = ("OMP_", "OPENBLAS_", "MKL_", "NPY_", "BLIS_")


class UnknownKindError(TypeError):
    """A value is no record, number, text or array; a frozen dataclass of such is one."""


@cache
def environment() -> str:
    """What the last digits of float sums depend on: packages, processor, and how many threads share the work."""
    steering = {name: value for name, value in os.environ.items() if name.startswith(_STEERING)}
    return fingerprint(
        version("onnx-cbq"),
        version("scipy"),
        versions(),
        platform.system(),
        processor_kind(),
        microarchitecture(),
        cores(),
        os.cpu_count(),
        sorted(steering.items()),
    )


def fingerprint(*values: object) -> str:
    """The SHA-256 of settings, records and arrays.

    Raises:
        UnknownKindError: one is of a kind that nothing is known of.
    """
    return _digest(values).hex()


class Digests:
    """Of models and samples, each weight and each sample looked at once."""

    def __init__(self) -> None:
        # What was looked at is held, so that its identity stays its own.
        self._arrays: dict[int, tuple[Array, bytes]] = {}
        self._samples: dict[int, tuple[object, dict[int, bytes]]] = {}

    def model(self, model: Model) -> str:
        """Of nodes, constants and weights. Cost: the weights are hashed, about a second for each 1.5 GB."""
        skeleton = model.skeleton.SerializeToString(deterministic=True)
        return fingerprint(skeleton, {name: self._array(value) for name, value in sorted(model.weights.items())})

    def samples(self, samples: Samples, indices: Indices) -> str:
        """Of some prepared samples in this order, with all that is known of their labels. Cost: they are read once."""
        # Where they come from and how they are prepared is settled when they are fitted to a model.
        known = self._samples.setdefault(id(samples.preparations), (samples.preparations, {}))[1]
        missing = np.array([i for i in dict.fromkeys(indices.tolist()) if i not in known], np.int64)
        numbers = iter(missing.tolist())
        for batch in samples.batches(missing, _BATCH) if len(missing) else ():
            feeds = sorted(batch.feeds.items())
            for row in range(batch.count):
                known[next(numbers)] = _digest([(name, value[row]) for name, value in feeds])
        prepared = b"".join(known[i] for i in indices.tolist())
        return fingerprint(prepared, samples.fixed_batch, samples.truth[indices], samples.labels[indices])

    def _array(self, value: Array) -> bytes:
        if id(value) not in self._arrays:
            self._arrays[id(value)] = value, _digest(value)
        return self._arrays[id(value)][1]


def _digest(value: object) -> bytes:
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.digest()


def _pieces(value: object) -> Iterator[bytes | memoryview]:
    """The bytes of a value; each kind begins with a letter of its own, and says how long it is."""
    if isinstance(value, np.ndarray):
        yield _named("a", f"{value.dtype.str}{value.shape}".encode())
        flat = np.ascontiguousarray(value).reshape(-1)
        if flat.size:
            yield flat.view(np.uint8).data
    elif isinstance(value, tuple | list):
        yield _named("t", str(len(value)).encode())
        yield from chain.from_iterable(map(_pieces, value))
    elif isinstance(value, Mapping | Set):
        # Neither tells apart what differs in its order alone, which may be another in every process.
        members = value.items() if isinstance(value, Mapping) else value
        yield _named("m" if isinstance(value, Mapping) else "s", str(len(value)).encode())
        yield from sorted(map(_digest, members))
    elif is_dataclass(value) and not isinstance(value, type):
        yield _named("r", f"{type(value).__module__}.{type(value).__qualname__}".encode())
        yield from _pieces([(field.name, getattr(value, field.name)) for field in fields(value)])
    else:
        yield _scalar(value)


def _scalar(value: object) -> bytes:
    """The bytes of a value that holds no others."""
    if value is None or isinstance(value, bool | int | float | str):
        return _named("v" + type(value).__name__, repr(value).encode())
    if isinstance(value, bytes):
        return _named("b", value)
    if isinstance(value, np.generic):
        return _named("n" + value.dtype.str, value.tobytes())
    if isinstance(value, np.dtype):
        return _named("d", value.str.encode())
    raise UnknownKindError(f"nothing is known of what a {type(value).__name__} depends on")


def _named(kind: str, content: bytes) -> bytes:
    return f"{kind}{len(content)}:".encode() + content
