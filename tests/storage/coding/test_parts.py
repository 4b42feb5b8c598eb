"""The parts of an archive by themselves: gaps of a file, tables of probabilities, sections, planes of numbers."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import onnx
import pytest
import zstandard
from onnx import TensorProto, numpy_helper
from scipy.stats import norm

from onnx_cbq.storage.coding import density
from onnx_cbq.storage.coding.container import compress, expand
from onnx_cbq.storage.coding.context import Geometry, stored_counts
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.numbers import read_numbers, write_numbers
from onnx_cbq.storage.coding.wire import Gap, assemble, dissect, examine
from tests.conftest import DIGITS_MODEL
from tests.storage.test_archive import small_model


@pytest.mark.parametrize("content", [DIGITS_MODEL.read_bytes(), small_model().SerializeToString()])
def test_a_frame_knows_its_gaps(content: bytes) -> None:
    frame, contents, anatomy = dissect(content)
    assert examine(frame, len(content)) == anatomy
    assert assemble(frame, anatomy.gaps, contents) == content
    stored = [numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer]
    kept = [a for a in stored if a.dtype in (np.float32, np.int32) or (a.dtype == np.int8 and a.ndim > 1)]
    assert [a.tobytes() for a in kept] == contents


@pytest.mark.parametrize("size", [0, 100, 10**6])
def test_a_frame_of_another_size_is_found(size: int) -> None:
    frame, _, _ = dissect(small_model().SerializeToString())
    with pytest.raises(Damaged):
        examine(frame, size)


def test_tables_are_the_same_everywhere() -> None:
    """Archives depend on every bit of these."""
    tables = [density.distribution(shape) for shape in range(len(density.SHAPES))]
    digest = hashlib.sha256(b"".join(t.tobytes() for t in (*tables, density.reciprocals(), density.logarithms())))
    assert digest.hexdigest() == "4c506d8cfc7582e68f16daf83c7a9332f34bba4a19d40ebe7bcd0ce390cdd321"


def test_tables_are_what_they_claim() -> None:
    z = np.arange(-density.REACH * density.STEPS, density.REACH * density.STEPS + 1) / density.STEPS
    np.testing.assert_allclose(density.distribution(3) / (2 * density.HALF), norm.cdf(z), atol=2e-4)
    for shape, (beta, k) in enumerate(density.SHAPES):
        expected = math.sqrt(math.gamma(3 / float(beta)) / math.gamma(1 / float(beta)))
        assert float(k) == pytest.approx(expected, abs=1e-4)
        assert (np.diff(density.distribution(shape)) >= 0).all()
    logarithms = density.logarithms()
    np.testing.assert_array_equal(logarithms[1:], np.floor(8 * np.log2(np.arange(1, len(logarithms)))))


def test_counts_fit_two_bytes_whatever_the_largest_is() -> None:
    """29 times (65535 / 29), in float, is above 65535: such an archive could not be written."""
    largest = np.arange(1, 70_000)
    for most in (1, 29, 58, 109, 65_535, 65_536, 10**9):
        stored = stored_counts(np.array([0, 1, most]))
        assert stored[0] == 0
        assert stored[1] >= 1
        assert stored[2] == 65_535
    assert all(stored_counts(np.array([most]))[0] == 65_535 for most in largest.tolist())
    assert not stored_counts(np.zeros(4, np.int64)).any()


def test_a_section_is_no_larger_than_announced() -> None:
    packed = compress(b"a" * 1000)
    assert expand(packed, 1000) == b"a" * 1000
    for size in (0, 1, 999, 1001):
        with pytest.raises(Damaged):
            expand(packed, size)
    with pytest.raises(Damaged):
        expand(packed + b"\0", 1000)


def test_a_section_that_claims_a_size_of_its_own_is_refused() -> None:
    """zstandard would allocate it, here 16 EiB."""
    claims = bytes([0xE0]) + b"\xff" * 7 + b"\x0f" + compress(b"a" * 1000)[2:]
    assert zstandard.get_frame_parameters(claims, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size > 1 << 58
    with pytest.raises(Damaged, match="claims a size of its own"):
        expand(claims, 1000)


def test_products_are_computed_again() -> None:
    generator = np.random.default_rng(0)
    factor, scalar = generator.random(500, np.float32), np.array(0.37, np.float32)
    values = [factor, scalar, factor * scalar, generator.random(500, np.float32)]
    gaps = [Gap(TensorProto.FLOAT, v.shape, 0, v.nbytes) for v in values]
    contents = [v.tobytes() for v in values]
    written = write_numbers(dict(enumerate(gaps)), contents)
    assert len(written) < 4100
    assert read_numbers(dict(enumerate(gaps)), written) == dict(enumerate(contents))


@pytest.mark.parametrize(("shape", "axis"), [((300, 4, 3, 3), 0), ((64, 20, 2, 2), 1), ((9, 300), 1), ((2, 400, 5), 0)])
def test_a_weight_by_position_comes_back(shape: tuple[int, ...], axis: int) -> None:
    geometry = Geometry(shape, axis)
    weight = np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8)
    planes = geometry.by_position(weight)
    assert planes.shape == (geometry.positions, geometry.channels, geometry.inputs)
    assert geometry.positions == math.prod(shape[2:])
    np.testing.assert_array_equal(geometry.whole(planes), weight)
    for k, near in enumerate(geometry.neighbours):
        assert len(near) == min(k, 8)
        assert all(j < k for j in near)
