"""Whether workers of a cluster compute what this process would: the same packages, the same kind of processor."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from onnx_cbq.errors import WorkerError
from onnx_cbq.execution.worker import arithmetic, sees
from onnx_cbq.runtime import versions

# What decides the bytes of results, or whether a parcel can be opened at all.
PACKAGES = ("onnx-cbq", "onnx", "numpy", "scipy")
_TOKEN = "token"  # noqa: S105, what a file is called


def check_alike(client: Any, addresses: Sequence[str]) -> None:
    """Hold workers against this process.

    Raises:
        WorkerError: one has other versions, lacks a package, has another kind of processor, or does not answer.
    """
    found: dict[str, dict[str, str]] = {address: {} for address in addresses}
    # Of the standard library, which every worker has.
    asked = {"Python": (platform.python_version, ())} | {name: (metadata.version, (name,)) for name in PACKAGES}
    for name, (function, values) in asked.items():
        for address, answer in _ask(client, addresses, function, *values).items():
            found[address][name] = answer
    own = {name: _own(function, values) for name, (function, values) in asked.items()}
    for address, packages in found.items():
        wrong = [f"{name} {packages[name]}, expected {own[name]}" for name in own if packages[name] != own[name]]
        if wrong:
            others = sum(packages != own for packages in found.values()) - 1
            raise WorkerError(
                f"--dask: worker {address}{f' and {others} more' if others else ''} has {'; '.join(wrong)}, as here; "
                f"install the same versions where the workers run"
            )
    ours = versions()
    for address, theirs in _ask(client, addresses, versions).items():
        # Of whichever build there is: onnxruntime-gpu and the like are packages of other names.
        wrong = [f"{name} {theirs[name]}, expected {ours[name]}" for name in ours if theirs[name] != ours[name]]
        if wrong:
            raise WorkerError(
                f"--dask: worker {address} has {'; '.join(wrong)}, as here; install the same versions where the "
                f"workers run"
            )
    here = arithmetic()
    for address, there in _ask(client, addresses, arithmetic).items():
        if there != here:
            raise WorkerError(
                f"--dask: worker {address} computes with {_listed(there)}, and this process with {_listed(here)}: the "
                f"last digits of sums would differ; use workers on machines like this one, or run this on one of theirs"
            )


def who_sees(client: Any, addresses: Sequence[str], folder: Path) -> list[str]:
    """The workers that find a file that lies in a folder here."""
    path, content = folder / _TOKEN, secrets.token_bytes(16)
    path.write_bytes(content)
    try:
        answers = _ask(client, addresses, sees, str(path), content)
        return [address for address in addresses if answers[address] is True]
    finally:
        path.unlink()


def _ask(client: Any, addresses: Sequence[str], function: Any, *values: Any) -> dict[str, Any]:
    """What a function gives on each worker.

    Raises:
        WorkerError: one does not answer.
    """
    answers: dict[str, Any] = client.run(function, *values, workers=list(addresses), on_error="return")
    for address in addresses:
        answer = answers.get(address)
        if isinstance(answer, metadata.PackageNotFoundError):
            answers[address] = "missing"
        elif answer is None or isinstance(answer, BaseException):
            raise WorkerError(
                f"--dask: worker {address} does not answer ({' '.join(str(answer).split()) or type(answer).__name__}); "
                f"restart it, or leave it out"
            )
    return answers


def _own(function: Any, values: tuple[str, ...]) -> str:
    try:
        return str(function(*values))
    except metadata.PackageNotFoundError:
        return "missing"


def _listed(kinds: Any) -> str:
    return ", ".join(map(str, kinds)) if isinstance(kinds, tuple) else str(kinds)
