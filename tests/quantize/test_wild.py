"""Which samples are wild: those that alone outweigh all others, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.quantize.wild import wild

RANDOM = np.random.default_rng(0)


def usual(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Energies as real nets have them: within a factor of ten or so."""
    return np.exp(RANDOM.normal(0, 0.7, count))


@pytest.mark.parametrize("count", [1, 9, 10, 40, 400, 5000])
def test_usual_samples_are_left_alone(count: int) -> None:
    """Else results would depend on a rule that is for accidents."""
    for _ in range(50):
        assert not wild(usual(count)).size
    assert not wild(np.ones(count)).size
    assert not wild(np.zeros(count)).size


@pytest.mark.parametrize(
    ("count", "positions"),
    [
        (10, [3]),
        (40, [0]),
        (40, [5, 39]),
        (400, [7]),
        (400, [1, 2, 3, 4, 5]),
        (400, list(range(20))),
        (1000, list(range(3, 1000, 20))),
        (5000, [17]),
    ],
)
@pytest.mark.parametrize("factor", [1e8, 1e16, 1e60])
def test_wild_samples_are_found_the_wildest_first(count: int, positions: list[int], factor: float) -> None:
    energies = usual(count)
    energies[positions] = factor * np.arange(len(positions), 0, -1)
    assert wild(energies).tolist() == positions


def test_a_sample_that_does_not_outweigh_the_others_is_kept() -> None:
    """By a least-squares fit it counts little beside a thousand others."""
    energies = np.ones(1000)
    energies[5] = 900
    assert not wild(energies).size
    energies[5] = 1100
    assert wild(energies).tolist() == [5]


def test_a_tenth_of_the_samples_is_no_accident() -> None:
    """Then data of two kinds are mixed, and both kinds count."""
    energies = usual(400)
    energies[::10] = 1e12
    assert not wild(energies).size


def test_a_tensor_that_one_sample_uses_is_no_accident() -> None:
    energies = np.zeros(100)
    energies[5] = 7.0
    assert not wild(energies).size


def test_a_few_samples_tell_nothing() -> None:
    assert not wild(np.array([1.0, 1.0, 1e9])).size


@pytest.mark.parametrize("count", [20, 400])
def test_samples_that_use_what_others_hardly_do_are_not_wild(count: int) -> None:
    """A Relu of two channels is zero for most samples; the three that it fires for decided nothing wrongly."""
    energies = np.zeros(count)
    energies[[3, 7, 11, 13]] = [40.0, 20.0, 8.0, 0.1]
    assert wild(energies).size == 0
