"""Scales that are ruled out are not the best, by trying all of them; that is what makes the search fast and exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnx_cbq.model import Array
from onnx_cbq.quantize import grid
from onnx_cbq.quantize.grid import quantize_rows, round_to_grid
from onnx_cbq.quantize.promising import LEAST_WEIGHTS, promising
from onnx_cbq.records import FREE, WeightRules

ROWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy-tails": lambda random, shape: random.standard_t(2, shape),
    "on-a-grid": lambda random, shape: random.integers(-7, 8, shape) * np.float32(0.013),
    "sparse": lambda random, shape: random.standard_normal(shape) * (random.random(shape) < 0.02),
    "vanishing": lambda random, shape: 1e-22 * random.standard_normal(shape),
    "overflowing": lambda random, shape: 1e22 * random.standard_normal(shape),
    "one-sided": lambda random, shape: random.random(shape),
    "constant": lambda _, shape: np.full(shape, 0.37),
    "some-zeros": lambda random, shape: random.standard_normal(shape) * (np.arange(shape[0]) % 2)[:, None],
}
GRIDS = [(bits, mid_rise) for bits in range(1, 9) for mid_rise in (False, True) if bits != (8 if mid_rise else 1)]


def rows_of(kind: str, shape: tuple[int, int] = (9, 700)) -> Array:
    return ROWS[kind](np.random.default_rng(7), shape).astype(np.float32)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("rules", [FREE, WeightRules(power_of_two=True)], ids=["free", "powers"])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_codes_and_scales_are_those_of_trying_every_scale(
    kind: str, rules: WeightRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, or files would differ from those that were made before."""
    rows = rows_of(kind, (21, 9000 if kind == "normal" else 700))
    widths = [np.full(len(rows), bits) for bits in range(9)] + [np.arange(len(rows)) % 9]
    found = [quantize_rows(rows, bits, rules) for bits in widths]
    monkeypatch.setattr(grid, "promising", lambda _rows, scales, _bits, **_: np.ones(scales.shape, bool))
    for bits, one in zip(widths, found, strict=True):
        every = quantize_rows(rows, bits, rules)
        for name in ("codes", "scale", "bits"):
            np.testing.assert_array_equal(getattr(one, name), getattr(every, name))


@pytest.mark.parametrize(("bits", "mid_rise"), GRIDS)
def test_the_best_scale_is_promising_and_few_others_are(bits: int, mid_rise: bool) -> None:
    """The best one by float64; if all were promising, nothing would be saved."""
    rows = rows_of("normal")
    reach = np.abs(rows).max(axis=1) / (2**bits - 1 if mid_rise else 2 ** (bits - 1) - 1)
    scales = (reach * np.linspace(0.15, 1, 35)[:, None]).astype(np.float32)
    found = promising(rows, scales, bits, mid_rise=mid_rise)
    errors = np.stack(
        [
            np.square(round_to_grid(rows, scale, bits, mid_rise=mid_rise) * scale[:, None].astype(float) - rows).sum(1)
            for scale in scales
        ]
    )
    assert found[errors.argmin(axis=0), np.arange(len(rows))].all()
    assert found.sum(axis=0).max() <= 4
    assert (errors[found] <= 1.01 * np.broadcast_to(errors.min(axis=0), errors.shape)[found]).all()


def test_scales_of_short_rows_are_all_tried() -> None:
    rows = rows_of("normal", (3, LEAST_WEIGHTS - 1))
    assert promising(rows, np.ones((5, 3), np.float32), 4, mid_rise=False).all()
