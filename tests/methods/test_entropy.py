"""Quantization for archives: the rate is met by what the coder really spends, and it beats grids of few levels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import ConfigError, QuantizeConfig, RoundingConfig, archive, quantize, restore
from onnx_cbq.jobs.result import Result
from onnx_cbq.methods.entropy import _spread
from onnx_cbq.methods.rate import TOLERANCE
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Session
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

QUICK = RoundingConfig(refits=1, sweeps=1, rows=4000)


def run(bits: float = 2.0, storage: str = "archive", **settings: object) -> Result:
    config = QuantizeConfig(
        bits=bits,
        storage=storage,
        samples=200,
        activation_bits=0,
        compensation=QUICK,
        **settings,  # type: ignore[arg-type]
    )
    return quantize(DIGITS_MODEL, DIGITS_CARD, config)


@pytest.fixture(scope="module")
def made() -> Result:
    return run()


def test_the_rate_is_what_was_asked_for(made: Result) -> None:
    coded = made.sizes.coded_bits
    assert coded is not None
    assert 2.0 * (1 - 2 * TOLERANCE) <= coded <= 2.0


def test_the_archive_holds_the_model_that_was_measured(made: Result, tmp_path: Path) -> None:
    size = made.save(tmp_path / "model.cbqz")
    assert size == made.sizes.archive == (tmp_path / "model.cbqz").stat().st_size
    feeds = {"image": np.random.default_rng(0).random((3, 1, 8, 8), np.float32)}
    (tmp_path / "model.onnx").write_bytes(restore(tmp_path / "model.cbqz"))
    expected = Session(Model.from_proto(made.proto)).run(feeds)
    for name, value in Session(tmp_path / "model.onnx").run(feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_numbers_that_are_no_codes_take_little_room(made: Result, tmp_path: Path) -> None:
    """A float32 has 24 digits, of which a spacing needs seven, and a bias as many as weights leave of it."""
    made.save(tmp_path / "model.cbqz")
    (tmp_path / "model.onnx").write_bytes(restore(tmp_path / "model.cbqz"))
    floats = [t for t in onnx.load(tmp_path / "model.onnx").graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    numbers = sum(math.prod(tensor.dims) for tensor in floats)
    assert archive(tmp_path / "model.onnx").number_bytes < 2 * numbers


def test_codes_fit_the_widths_that_the_file_tells(made: Result) -> None:
    """The plan in the file says how many bits each channel's codes need."""
    for layer in made.layers:
        assert made.plan.bits[layer.name].shape == (layer.channels,)
    assert 2.0 < made.average_bits < 8


def test_steps_beat_few_levels_at_the_same_bytes(made: Result) -> None:
    """The paper's point: with variable-length codes, many levels and a step by sensitivity need fewer bytes."""
    levels = run(3.0, "int8")
    assert made.sizes.archive is not None
    assert made.sizes.archive < len(archive(levels.proto).content)
    assert made.agreement >= levels.agreement - 0.6


def test_bytes_of_the_archive_are_met() -> None:
    result = run(bytes=4200)
    assert result.sizes.archive is not None
    assert 0.93 * 4200 <= result.sizes.archive <= 4200


def test_huffman_takes_more() -> None:
    """Its words have whole bits, so the same codes take more bytes."""
    result = run(1.5, coder="huffman")
    assert result.sizes.archive is not None
    assert result.sizes.archive > len(archive(result.proto).content)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"method": "uniform"}, "--method uniform: expected --storage int8 or packed beside it, got archive"),
        ({"rounding": "nearest"}, "--storage archive: expected a --rounding that compensates, got nearest"),
        ({"keep": (("12", 8),)}, "--storage archive: expected no --keep beside it"),
        ({"coder": "gzip"}, "--coder: expected ans or huffman, got gzip"),
    ],
)
def test_settings_that_an_archive_cannot_honour_are_refused(other: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeConfig(**{"storage": "archive", **other})  # type: ignore[arg-type]


def test_the_command_writes_an_archive(tmp_path: Path, command: Command) -> None:
    target = tmp_path / "digits.cbqz"
    done = command(
        "quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--storage", "archive", "--bits", "2", "--samples", "100",
        "--output", target,
    )  # fmt: skip
    assert done.code == 0
    assert f"{target.stat().st_size:,}" in done.out
    assert restore(target)


@pytest.mark.parametrize("rows", [np.full((3, 1), 2.5), np.full((2, 4), -0.5), np.zeros((2, 3))])
def test_rows_of_equal_weights_have_a_step(rows: Array) -> None:
    """Their deviation is 0; a layer of one weight per channel ended in a division by a step of 0."""
    found = _spread(rows.astype(np.float32))
    np.testing.assert_allclose(found, np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny))
    varied = np.array([[1.0, 3.0]], np.float32)
    assert _spread(varied) == varied.std(axis=1)
