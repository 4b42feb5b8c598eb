"""Every record can be saved and loaded; what is not one is refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.errors import ModelError, OutputError
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.shapes import Example
from onnx_cbq.records import Evaluation, Layers, LayerScores, LayerWeights, LeftFloat, Plan, Scores
from onnx_cbq.store import load_record, save_record
from tests.graphs import make_model, node


def layers() -> Layers:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto = make_model(
        [node("Conv", "x w b", "a"), node("Flatten", "a", "f"), node("Gemm", "f v")],
        {"x": ["N", 3, 5, 5]},
        ["y"],
        {"w": weight, "b": np.zeros(4, np.float32), "v": np.zeros((36, 5), np.float32)},
    )
    model = load(proto)
    found = find_layers(model, Example.made_up(model).shapes(model))
    return Layers(found.layers, (LeftFloat("other", "MatMul", "its weight is computed", 12),))


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


RECORDS: dict[str, object] = {
    "Layers": layers(),
    "Scores": Scores((LayerScores("w", array(3, 4), array(3, 4), array(3, 4)),), ("a", "b", "ü"), (5, 6, 7)),
    "Plan": Plan({"w": np.arange(4, dtype=np.int8), "layer/with.odd name": np.zeros(0, np.int8)}),
    "LayerWeights": LayerWeights(
        np.arange(-3, 3, dtype=np.int8).reshape(2, 3), np.array([0.5, 2], np.float32), np.array([3, 3], np.int8)
    ),
    "Evaluation": Evaluation(50.0, None, (25.0, 75.0, None), np.eye(3, dtype=np.int64), 1234, 0.5),
}


def assert_equal(one: Any, other: Any) -> None:
    """The same types and values all the way down."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_is_the_same_after_saving_and_loading(record: object, tmp_path: Path) -> None:
    """A stage that is run alone must see what it would have seen in one go: the same types, values and order."""
    save_record(tmp_path / "record.npz", record)
    assert_equal(load_record(tmp_path / "record.npz", type(record)), record)


def test_loaded_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    save_record(tmp_path / "record.npz", RECORDS["Plan"])
    loaded = load_record(tmp_path / "record.npz", Plan)
    with pytest.raises(ValueError, match="read-only"):
        loaded.bits["w"][0] = 1


@pytest.mark.parametrize(("saved", "wanted"), list(permutations(RECORDS, 2)))
def test_a_record_of_another_type_is_refused(saved: str, wanted: str, tmp_path: Path) -> None:
    save_record(tmp_path / "record.npz", RECORDS[saved])
    with pytest.raises(ModelError, match=f"record.npz: not a saved {wanted}: .*; make it again"):
        load_record(tmp_path / "record.npz", type(RECORDS[wanted]))


def damaged(tmp_path: Path) -> dict[str, bytes | None]:
    path = tmp_path / "whole.npz"
    save_record(path, RECORDS["Plan"])
    np.savez(tmp_path / "objects.npz", record=np.array([{}], object), array0=np.zeros(1))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    content = path.read_bytes()
    return {
        "missing": None,
        "empty": b"",
        "text": b"no archive",
        "truncated": content[:-40],
        "pickled": (tmp_path / "objects.npz").read_bytes(),
        "one-array": (tmp_path / "array.npy").read_bytes(),
        "other-arrays": (tmp_path / "other.npz").read_bytes(),
        "damaged-inside": content[:60] + bytes(40) + content[100:],
    }


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "truncated", "pickled", "one-array", "other-arrays", "damaged-inside"]
)
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    """One kind of error, whatever numpy and zlib call it; and nothing is unpickled."""
    content = damaged(tmp_path)[kind]
    path = tmp_path / "record.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"record\.npz: not a saved Plan"):
        load_record(path, Plan)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save_record(tmp_path / "no" / "record.npz", RECORDS["Plan"])
