"""Options that commands have in common because they are fields of one class of settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onnx_cbq import ExecutionConfig
from onnx_cbq.execution import Engine
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

QUICK = ("--samples", "60", "--rounding", "nearest")
COMMANDS = {
    "quantize": ("quantize", DIGITS_MODEL, *QUICK),
    "evaluate": ("evaluate", DIGITS_MODEL),
    "compare": ("compare", DIGITS_MODEL, DIGITS_MODEL),
    "score": ("score", DIGITS_MODEL, "--samples", "60"),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ExecutionConfig]:
    """What the jobs were told."""
    told: list[ExecutionConfig] = []
    real = ExecutionConfig.open

    @contextmanager
    def recorded(config: ExecutionConfig) -> Iterator[Engine]:
        told.append(config)
        with real(config) as engine:
            yield engine

    monkeypatch.setattr(ExecutionConfig, "open", recorded)
    return told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_goes_over_samples_hands_on_where(
    tmp_path: Path, command: Command, opened: list[ExecutionConfig], name: str
) -> None:
    out = ("--output", tmp_path / "q.onnx") if name == "quantize" else ()
    finished = command(*COMMANDS[name], "--data", DIGITS_CARD, "--quiet", "--threads", "1", *out)
    assert (finished.code, finished.err) == (0, "")
    assert opened == [ExecutionConfig(threads=1)]


def test_a_file_may_say_where(tmp_path: Path, command: Command, opened: list[ExecutionConfig]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("threads = 2\n")
    out = ("--output", tmp_path / "q.onnx")
    finished = command(*COMMANDS["quantize"], "--data", DIGITS_CARD, "--quiet", "--config", path, *out)
    assert (finished.code, finished.err) == (0, "")
    assert opened == [ExecutionConfig(threads=2)]


@pytest.mark.parametrize(
    ("name", "given", "code", "said"),
    [
        ("evaluate", ("--workers", "-1"), 1, "--workers: expected a number of at least 0, got -1"),
        ("score", ("--provider", "abacus"), 1, "--provider: expected "),
        ("evaluate", ("--provider", "cpu"), 2, "No such option: --provider"),
        ("compare", ("--provider", "cpu"), 2, "No such option: --provider"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, name: str, given: tuple[str, ...], code: int, said: str) -> None:
    """Files are evaluated as they will run: there is no provider to choose."""
    finished = command(*COMMANDS[name], "--data", DIGITS_CARD, *given)
    assert finished.code == code
    assert said in " ".join(finished.err.replace("│", " ").split())
