"""Samples that are run again and again are read once where they fit, and not at all where only labels are needed."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.samples import Samples
from onnx_cbq.evidence import reading
from onnx_cbq.evidence.reading import Reader
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from tests.graphs import make_model, node

X = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples were read at a time."""
    seen: list[int] = []
    read = Samples.read

    def counted(samples: Samples, indices: Array) -> dict[str, Array]:
        seen.append(len(indices))
        return read(samples, indices)

    monkeypatch.setattr(Samples, "read", counted)
    return seen


@pytest.mark.parametrize(("limit", "expected"), [(X.nbytes, [4, 4, 1]), (X.nbytes - 1, [4, 4, 1, 4, 4, 1])])
def test_what_fits_is_read_once(
    monkeypatch: pytest.MonkeyPatch, reads: list[int], limit: int, expected: list[int]
) -> None:
    """Decoding images again for each plan took longer than the net."""
    monkeypatch.setattr(reading, "HELD_BYTES", limit)
    model = load(make_model([node("Relu", "x")], {"x": ["N", 4]}, ["y"]))
    samples = CalibrationSet.from_arrays(X, np.arange(9) % 3).for_model(model.inputs)
    reader = Reader.of(samples, np.arange(9))
    shards = list(enumerate(samples.chunks(np.arange(9), 4)))
    reads.clear()
    labels = list(reader.batches(shards, inputs=False))
    assert [batch.feeds for batch in labels] == [{}, {}, {}]
    assert reads == []
    for _ in range(2):
        found = list(reader.batches(shards))
        np.testing.assert_array_equal(np.concatenate([batch.feeds["x"] for batch in found]), X)
        assert [batch.labels.tolist() for batch in found] == [batch.labels.tolist() for batch in labels]
    assert reads == expected
