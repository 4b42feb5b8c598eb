"""Every command on models made at random: right, or refused for a true reason; see `tests.generator`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from onnx_cbq.quantize import schemes
from onnx_cbq.quantize.grid import quantize_rows
from tests.generator.features import OFF
from tests.generator.jobs import JOBS, Job, choose
from tests.generator.models import OPSETS, Case, build, cases
from tests.generator.properties import BrokenError, examine

EXAMPLES = 160
# benchmarks/fuzz.py makes failing nets smaller; here that would take minutes.
_PINNED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    verbosity=Verbosity.quiet,  # it would print every sample
    suppress_health_check=list(HealthCheck),
)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    return choose(lambda low, high: draw(st.integers(low, high)))


@_PINNED
@given(case=cases(frozenset(OFF)), job=jobs())
def test_every_command_is_right_or_refuses_truly(
    case: Case, job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        examine(case, job, tmp_path_factory.mktemp("case"))
    except Exception as error:
        error.add_note(f"{job} of {case}")
        raise


def test_generator_covers_what_it_offers() -> None:
    """Without this a fault in the generator could leave out nearly everything, and the properties would hold."""
    counted: Counter[str] = Counter()
    made = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        case = build(lambda low, high: int(random.integers(low, high + 1)))  # noqa: B023
        if case is not None:
            made += 1
            counted.update(case.features)
    assert made > 320
    assert all(counted[f"opset {opset}"] for opset in OPSETS)
    for feature in ("Conv", "Gemm", "MatMul", "ConvTranspose", "LSTM", "If", "Loop", "Resize", "MaxPool", "Softmax"):
        assert counted[feature], feature
    assert len(counted) > 200


def test_the_bound_is_no_formality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights a tenth too large are found: without this a bound that allows anything would pass for a proof."""
    random = np.random.default_rng(3)
    case = build(lambda low, high: int(random.integers(low, high + 1)), frozenset(OFF))
    assert case is not None
    job = next(job for job in JOBS if job.name == "quantize 8 bits, data-free")
    examine(case, job, tmp_path)
    monkeypatch.setattr(schemes, "quantize_rows", lambda rows, bits: quantize_rows(1.1 * rows, bits))
    with pytest.raises(BrokenError, match="far from the float model"):
        examine(case, job, tmp_path)
