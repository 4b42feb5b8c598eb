"""A pinned part of what `benchmarks/hostile_files.py` does at length: damaged files are read or refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import ArchiveError, OnnxCbqError
from onnx_cbq.jobs.inspect import check, inspect
from onnx_cbq.storage.archive import archive, restore
from tests.hostile import bases
from tests.hostile.archives import archives_of, damaged
from tests.hostile.judge import Verdict, judge
from tests.hostile.messages import mutated

MODELS, ARCHIVES, SEED = 200, 200, 20
LOOKS: tuple[Callable[[Path], object], ...] = (inspect, check, archive)


@pytest.fixture
def _quiet() -> Iterator[None]:
    """As in the command, which leaves warnings to whoever writes a program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def models() -> list[onnx.ModelProto]:
    return [*(make() for make in bases.FLOAT), bases.quantized()]


@pytest.mark.usefixtures("_quiet")
def test_damaged_models_are_read_or_refused_in_one_line(tmp_path: Path, models: list[onnx.ModelProto]) -> None:
    random = np.random.default_rng(SEED)
    path = tmp_path / "m.onnx"
    for index in range(MODELS):
        base = int(random.integers(len(models)))
        path.write_bytes(mutated(models[base], random))
        # What is said of a float model by the others is no more than that it is one.
        look = LOOKS[index % len(LOOKS)] if base == len(models) - 1 else inspect
        try:
            look(path)
        except OnnxCbqError as error:
            # The command makes one line of what libraries say in several.
            assert str(error)  # noqa: PT017, most are refused, and none need be


@pytest.mark.usefixtures("_quiet")
def test_damaged_archives_are_refused_or_restore(models: list[onnx.ModelProto]) -> None:
    """Whatever comes back has the SHA-256 that the archive promises, so only refusals need a look."""
    random, held = np.random.default_rng(SEED), archives_of(models[-1])
    for _ in range(ARCHIVES):
        content = damaged(held, models[-1], random)
        try:
            restore(content)
        except ArchiveError as error:
            assert "\n" not in str(error)  # noqa: PT017, as above


def test_every_kind_of_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that finds nothing may be blind."""

    def ended(action: str) -> Verdict:
        monkeypatch.setattr("onnx_cbq.cli.main.main", lambda: exec(action))  # noqa: S102, the actions stand below
        return judge(("inspect", "x"), tmp_path)

    assert ended("raise SystemExit(0)").fault == ""
    assert ended("import os; os.write(2, b'onnx-cbq: no\\n'); raise SystemExit(1)").fault == ""
    assert ended("raise KeyError('x')").fault == "traceback"
    assert ended("raise MemoryError").fault == "memory"
    assert ended("import os; os.write(2, b'onnx-cbq: out of memory: x\\n'); raise SystemExit(1)").fault == "memory"
    assert ended("import os; os.write(2, b'a warning\\n'); raise SystemExit(0)").fault == "stderr"
    assert ended("raise SystemExit(1)").fault == "stderr"
