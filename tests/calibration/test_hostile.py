"""A few hundred damaged cards, archives and images, of a pinned seed; `benchmarks/hostile_data.py` tries thousands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq.verification import comparison
from tests.calibration import mutations
from tests.calibration.trials import Trials

SEED = 16


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.setattr(comparison, "median_latency", lambda sessions, *_: [0.0] * len(sessions))
    return Trials(tmp_path)


@pytest.mark.parametrize("kind", ["card", "npz", "image"])
def test_damaged_data_is_used_or_refused_in_one_line(trials: Trials, kind: str) -> None:
    """No exception of a library gets through, and nothing takes seconds or gigabytes."""
    bases, ends = mutations.image_bases(), Counter[str]()
    for index in range({"card": 150, "npz": 100, "image": 80}[kind]):
        random = np.random.default_rng([SEED, index])
        if kind == "card":
            found = trials.card(mutations.card(random))
        elif kind == "npz":
            found = trials.npz(mutations.npz(random))
        else:
            found = trials.image(*mutations.image(random, bases), skip=bool(index % 2))
        assert not found.is_fault, (index, found)
        ends[found.end] += 1
    assert min(ends["used"], ends["refused"]) >= 5
