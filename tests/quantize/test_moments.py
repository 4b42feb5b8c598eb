"""Streaming moments against numpy in float64, all rows at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_cbq.model import Array
from onnx_cbq.quantize import moments
from onnx_cbq.quantize.moments import Moments, combine, mean_shift, part_slices, white
from onnx_cbq.records import Layer, Use
from tests.sums import Sums

GROUPS, ROWS, SIZE = 2, 60, 7
# Products of float32 values are summed in float32 within a batch.
TOLERANCE = 1e-5


def rows_of(seed: int, size: int = SIZE, rows: int = ROWS) -> Array:
    """Correlated rows with a mean that is not 0."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((GROUPS, rows, size)) @ random.standard_normal((GROUPS, size, size))
    return (mixed + random.uniform(-3, 3, (GROUPS, 1, size))).astype(np.float32)


def streamed(aimed: Array, seen: Array, weights: Array, *, centred: bool, batches: int = 4) -> Moments:
    sums = Sums(centred=centred)
    for part in np.array_split(np.arange(aimed.shape[1]), batches):
        x = aimed[:, part]
        sums.add(x, x if seen is aimed else seen[:, part], weights[part])
    return sums.moments()


def expected(aimed: Array, seen: Array, weights: Array, *, centred: bool) -> tuple[Array, Array, Array, Array]:
    """Weighted means of x, of x~, of x~ x~^T and of x x~^T, by the definition."""
    shares = (weights / weights.sum()).astype(np.float64)
    x, y = aimed.astype(np.float64), seen.astype(np.float64)
    means = [np.einsum("r,grn->gn", shares, values) for values in (x, y)]
    if centred:
        x, y = x - means[0][:, None], y - means[1][:, None]
    second, cross = (np.einsum("r,gra,grb->gab", shares, left, y) for left in (y, x))
    return means[0], means[1], second, cross


def close(values: Array, wanted: Array) -> None:
    np.testing.assert_allclose(values, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("widest", [4608, 3], ids=["one-part", "parts"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("batches", [4, 30], ids=["more-rows-than-weights", "rows-that-wait"])
def test_streaming_gives_what_all_rows_at_once_do(
    monkeypatch: pytest.MonkeyPatch, centred: bool, weighted: bool, widest: int, batches: int, same: bool
) -> None:
    monkeypatch.setattr(moments, "WIDEST", widest)
    aimed = rows_of(0)
    seen = aimed if same else rows_of(1)
    weights = np.random.default_rng(2).uniform(0, 3, ROWS).astype(np.float32) if weighted else np.ones(ROWS, np.float32)
    found = streamed(aimed, seen, weights, centred=centred, batches=batches)
    mean_x, mean_y, second, cross = expected(aimed, seen, weights, centred=centred)
    slices = part_slices(SIZE)
    assert len(slices) == len(found.second) == len(found.cross) == (1 if widest > SIZE else 3)
    for s, h, c in zip(slices, found.second, found.cross, strict=True):
        close(h, second[:, s, s])
        close(c, cross[:, s, s])
        assert h.dtype == np.float64
    close(found.means[0][0], mean_x)
    close(found.means[0][1], mean_y)
    assert found.rows == ROWS
    if same:
        assert found.cross is found.second


@pytest.mark.parametrize("same", [True, False])
def test_the_last_rows_are_kept_by_themselves_too(monkeypatch: pytest.MonkeyPatch, *, same: bool) -> None:
    """Held back: their own moments, within the first part; all rows still count as they would."""
    monkeypatch.setattr(moments, "WIDEST", 4)
    aimed = rows_of(0)
    seen = aimed if same else rows_of(1)
    weights = np.ones(ROWS, np.float32)
    sums = Sums(centred=True)
    for part, held in ((slice(0, 40), 10), (slice(40, ROWS), 0)):
        x = aimed[:, part]
        sums.add(x, x if same else seen[:, part], weights[part], held)
    found, plain = sums.moments(), streamed(aimed, seen, weights, centred=True)
    for kind in ("second", "cross"):
        for got, wanted in zip(getattr(found, kind), getattr(plain, kind), strict=True):
            close(got, wanted)
    _, _, second, cross = expected(aimed[:, 30:40], seen[:, 30:40], weights[30:40], centred=True)
    assert found.held is not None
    first = part_slices(SIZE)[0]
    close(found.held.second, second[:, first, first])
    close(found.held.cross, cross[:, first, first])
    assert found.held.share == pytest.approx(10 / ROWS)


@pytest.mark.parametrize(("widest", "held_back"), [(4, 10), (4608, 0)], ids=["several-parts", "nothing-held-back"])
def test_no_branch_is_repaired_twice_or_by_chance(monkeypatch: pytest.MonkeyPatch, widest: int, held_back: int) -> None:
    """Each part would repair all of it: the sum of four parts was 3.5 times as far off as without any repair."""
    monkeypatch.setattr(moments, "WIDEST", widest)
    x, seen, missing = rows_of(0), rows_of(1), rows_of(2, 3)
    sums = Sums(centred=True)
    sums.add(x, seen, np.ones(ROWS, np.float32), held_back, missing)
    sums.add_means([each.mean(axis=1) for each in (x, seen, missing)], 1.0)
    found = sums.moments()
    assert (found.missing, found.missing_mean) == ((), None)
    assert found.held is None or found.held.missing is None


@pytest.mark.parametrize("same", [True, False])
def test_what_another_branch_lacks_is_counted_with_the_rows(*, same: bool) -> None:
    """M = E m x~^T around the means, of all rows and of those held back, and the mean of m."""
    x = rows_of(0)
    seen = x if same else rows_of(1)
    missing = rows_of(2, 3)
    weights = np.random.default_rng(2).uniform(0, 3, ROWS).astype(np.float32)
    sums = Sums(centred=True)
    for part, held in ((slice(0, 10), 0), (slice(10, 40), 10), (slice(40, ROWS), 0)):
        given = x[:, part]
        sums.add(given, given if same else seen[:, part], weights[part], held, missing[:, part])
        of_rows = [np.average(each[:, part], axis=1, weights=weights[part]) for each in (x, seen, missing)]
        sums.add_means(of_rows, float(weights[part].sum()))
    found = sums.moments()

    def moment(rows: slice) -> Array:
        m, y, w = (each[:, rows].astype(np.float64) for each in (missing, seen, weights[None]))
        m, y = (each - np.average(each, axis=1, weights=w[0])[:, None] for each in (m, y))
        return np.asarray(np.einsum("r,grc,grn->gcn", w[0] / w.sum(), m, y))

    (got,) = found.missing
    close(got, moment(slice(None)))
    assert found.held is not None
    assert found.held.missing is not None
    close(found.held.missing, moment(slice(30, 40)))
    assert found.missing_mean is not None
    close(found.missing_mean, np.average(missing, axis=1, weights=weights).reshape(-1))
    assert (found.cross is found.second) == same
    w, q = np.random.default_rng(3).standard_normal((2, GROUPS * 3, SIZE)).astype(np.float32)
    without = mean_shift(replace(found, missing_mean=None), w, q)[0]
    close(mean_shift(found, w, q)[0], without + found.missing_mean)


def test_rows_of_weight_0_do_not_count() -> None:
    """Samples that only fill up a fixed batch."""
    aimed, seen = rows_of(0), rows_of(1)
    weights = np.ones(ROWS, np.float32)
    weights[40:] = 0
    found = streamed(aimed, seen, weights, centred=True)
    fewer = streamed(aimed[:, :40], seen[:, :40], weights[:40], centred=True)
    for one, other in ((found.second, fewer.second), (found.cross, fewer.cross), (found.means[0], fewer.means[0])):
        for a, b in zip(one, other, strict=True):
            close(a, b)


def test_arguments_are_not_written_to() -> None:
    aimed, seen = rows_of(0), rows_of(1)
    before = aimed.copy(), seen.copy()
    sums = Sums(centred=True)
    sums.add(aimed, seen, np.ones(ROWS, np.float32))
    first = sums.moments()
    kept = first.second[0].copy()
    sums.add(aimed, seen, np.full(ROWS, 3, np.float32))
    np.testing.assert_array_equal(aimed, before[0])
    np.testing.assert_array_equal(seen, before[1])
    np.testing.assert_array_equal(first.second[0], kept)


@settings(max_examples=100)
@given(st.integers(1, 40_000))
def test_parts_cover_all_weights_evenly(width: int) -> None:
    slices = part_slices(width)
    assert [i for s in slices for i in (s.start, s.stop)][1:-1:2] == [s.start for s in slices[1:]]
    sizes = [s.stop - s.start for s in slices]
    assert (slices[0].start, slices[-1].stop) == (0, width)
    assert max(sizes) <= moments.WIDEST
    assert max(sizes) - min(sizes) <= 1
    assert len(slices) == -(-width // moments.WIDEST)


def test_the_moments_of_several_uses_count_every_row_alike() -> None:
    """Uncentred moments of two uses together are those of all their rows; the means stay apart."""
    first, second = rows_of(0, rows=20), rows_of(1, rows=40)
    ones = np.ones(60, np.float32)
    parts = [streamed(x, x + 1, ones[: x.shape[1]], centred=False) for x in (first, second)]
    together = np.concatenate([first, second], axis=1)
    found, whole = combine(parts), streamed(together, together + 1, ones, centred=False)
    close(found.second[0], whole.second[0])
    close(found.cross[0], whole.cross[0])
    assert found.rows == 60
    assert len(found.means) == 2
    close(found.means[1][0], second.mean(axis=1))
    assert combine(parts[:1]) is parts[0]


def test_the_shift_is_the_mean_of_what_rounding_changes() -> None:
    """Per output channel: mean of w x - q x~ over the rows, each group its own channels."""
    x, y = rows_of(0), rows_of(1)
    random = np.random.default_rng(3)
    w, q = random.standard_normal((2, GROUPS * 4, SIZE)).astype(np.float32)
    found = mean_shift(streamed(x, y, np.ones(ROWS, np.float32), centred=True), w, q)
    outputs = [
        np.einsum("gcn,grn->gcr", rows.reshape(GROUPS, 4, SIZE).astype(np.float64), values.astype(np.float64))
        for rows, values in ((w, x), (q, y))
    ]
    (shift,) = found
    close(shift, (outputs[0] - outputs[1]).mean(axis=2).reshape(-1))


def test_without_rows_inputs_count_as_uncorrelated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "WIDEST", 8)
    layer = Layer("a", "MatMul", "a", (3, 6, 4), 2, 1, (Use("z", "x", 1, None, 2, 0, (2, 3, 4)),), 2)
    found = white(layer, 0.25)
    assert found.cross is found.second
    assert [h.shape for h in found.second] == [(1, 6, 6)] * 3
    for h in found.second:
        np.testing.assert_array_equal(h[0], 0.25 * np.eye(6))
    assert mean_shift(found, np.ones((4, 18)), np.zeros((4, 18))) == []
