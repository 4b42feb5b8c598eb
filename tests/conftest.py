"""What many tests share: where the real data is, the bundled digits, exported nets."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Tests run side by side, so each has one thread for torch and BLAS, which wait in circles for cores that are taken.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test reads or writes the cache of whoever runs it, in a process of its own neither.
os.environ["ONNX_CBQ_CACHE"] = "off"
os.environ.pop("ONNX_CBQ_CACHE_SIZE", None)

import numpy as np
import onnx
import pytest
from hypothesis import settings

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.runtime import median_latency
from tests.command import Command, run
from tests.exports import CLASSES, export, make_net

# The same drawn examples in every run: what fails, fails again.
settings.register_profile("pinned", derandomize=True)
settings.load_profile("pinned")

ROOT = Path(__file__).parents[1]
DIGITS_MODEL = ROOT / "samples" / "digits_cnn.onnx"
DIGITS_CARD = ROOT / "calibration" / "digits.toml"


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a file of the real data; skips the test where it is missing."""
    folder = Path(os.environ.get("ONNX_CBQ_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"real data is missing: {folder / name} (set ONNX_CBQ_DATA)")
        return folder / name

    return find


@pytest.fixture(scope="session")
def exported() -> Callable[..., onnx.ModelProto]:
    """Nets as torch exports them; each is exported once."""
    made: dict[tuple[object, ...], onnx.ModelProto] = {}

    def get(name: str, *, dynamo: bool, dynamic_batch: bool = True) -> onnx.ModelProto:
        key = (name, dynamo, dynamic_batch)
        if key not in made:
            made[key] = export(make_net(name), dynamo=dynamo, dynamic_batch=dynamic_batch)
        return made[key]

    return get


@pytest.fixture(autouse=True)
def _brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured as briefly as possible: no test asks how long anything takes by this figure."""
    monkeypatch.setattr("onnx_cbq.verification.comparison.median_latency", partial(median_latency, seconds=0))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process."""
    return lambda *arguments: run(arguments, capfd, monkeypatch)


def random_set(shape: tuple[int, ...], count: int = 40, classes: int = CLASSES) -> CalibrationSet:
    """Random samples with every class in turn."""
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    return CalibrationSet.from_arrays(x, np.arange(count) % classes)
