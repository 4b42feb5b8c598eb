"""A file of a given size: the most bits that fit, or an error that says what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnx_cbq import ConfigError, QuantizeConfig, RateDistortionConfig, RoundingConfig, VerificationError, quantize
from onnx_cbq.jobs.result import Result
from onnx_cbq.methods.rate import PASSES
from onnx_cbq.stages.written import file_size
from tests.conftest import DIGITS_CARD, DIGITS_MODEL


def run(size: int | None, bits: float = 4.0) -> Result:
    config = QuantizeConfig(
        bits=bits,
        bytes=size,
        storage="packed",
        samples=60,
        search=RateDistortionConfig(exchanges=2),
        compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
    )
    return quantize(DIGITS_MODEL, DIGITS_CARD, config)


@pytest.mark.parametrize("size", [9500, 12000, 14000])
def test_the_file_is_just_small_enough(size: int, tmp_path: Path) -> None:
    result = run(size)
    assert result.save(tmp_path / "model.onnx") == result.sizes.file <= size
    assert result.sizes.file >= 0.97 * size
    assert any(f"--bytes {size:,}" in note for note in result.notes)


def test_more_room_than_all_bits_take_gives_all_bits() -> None:
    """All that help: where pairs of 8-bit codes are held within bounds, a channel may be as near to float with 7."""
    assert 7.95 < run(10_000_000).average_bits <= 8


def test_what_does_not_fit_is_said_with_what_the_rest_takes() -> None:
    with pytest.raises(
        VerificationError, match=r"--bytes 4,000: the file takes \d,\d+ bytes beside the bits"
    ) as caught:
        run(4000)
    assert caught.value.exit_code == 3


def test_sizes_are_told_apart() -> None:
    """The bits alone, the file, and the file after a general compressor: three answers to 'how large is it'."""
    result = run(None, 3.0)
    weights = result.layers.size
    assert result.sizes.ideal == pytest.approx(result.average_bits * weights / 8, abs=1)
    assert result.sizes.ideal < result.sizes.zstd < result.sizes.file
    # 10 bytes per channel and 25 kB is what a file may take beyond the bits.
    channels = sum(layer.channels for layer in result.layers)
    assert result.sizes.file <= result.sizes.ideal + 10 * channels + 25_000


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"storage": "int8"}, "--bytes: expected --storage packed or archive beside it, got --storage int8"),
        ({"max_drop": 1.0}, "--bytes: expected no "),
        ({"method": "uniform"}, "--method uniform and --storage packed: expected --bits beside it, got --bytes"),
    ],
)
def test_settings_that_say_two_things_are_refused(other: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeConfig(**{"bytes": 1000, "storage": "packed", **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("codebook", ["uniform", "kmeans"])
def test_an_archive_is_filled_by_what_the_whole_of_it_takes(
    codebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt rounds all weights, which takes as long as the whole run for a given number of bits."""
    attempts = []
    kept = file_size

    def counted(*arguments: Any) -> int:
        attempts.append(kept(*arguments))
        return attempts[-1]

    monkeypatch.setattr("onnx_cbq.goals.bytes.file_size", counted)
    config = QuantizeConfig(bytes=2500, storage="archive", codebook=codebook, activation_bits=0, samples=60)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    size = result.save(tmp_path / "model.cbq")
    assert size == result.sizes.archive
    # Codebooks come in leaps.
    assert 0.94 * 2500 <= size <= 2500
    assert len(attempts) <= PASSES


def test_an_archive_that_cannot_be_so_small_is_refused() -> None:
    config = QuantizeConfig(bytes=400, storage="archive", activation_bits=0, samples=60)
    with pytest.raises(VerificationError, match=r"--bytes 400: the file takes \d+ bytes beside the bits"):
        quantize(DIGITS_MODEL, DIGITS_CARD, config)
