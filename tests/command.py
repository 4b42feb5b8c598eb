"""The command line, run inside the test process: what a shell would see of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from onnx_cbq.cli.main import main


@dataclass(frozen=True)
class Finished:
    """Exit code, and what was written to stdout and stderr, by libraries in C++ too."""

    code: int
    out: str
    err: str


Command = Callable[..., Finished]


def run(arguments: tuple[object, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Run `onnx-cbq` with `arguments`."""
    monkeypatch.setattr(sys, "argv", ["onnx-cbq", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return Finished(stop.value.code, *capfd.readouterr())


def refused_without_torch(*arguments: object) -> None:
    """Run `onnx-cbq` where torch cannot be imported, and hold that one line says how to get it."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from onnx_cbq.cli.main import main\n"
        f"sys.argv = {['onnx-cbq', *map(str, arguments)]!r}\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "onnx-cbq: training needs torch, which is not installed; install it with pip install 'onnx-cbq[torch]'"
    )
