"""Adam, against torch's."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_cbq.learned.adam import Adam


def test_steps_are_those_of_torch() -> None:
    """Guards against a bias correction that is left out or applied twice, and against changed arguments."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    value = random.standard_normal((3, 4)).astype(np.float32)
    start = value.copy()
    parameter = torch.nn.Parameter(torch.tensor(value))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    known = Adam.of(value)
    for _ in range(20):
        gradient = random.standard_normal(value.shape).astype(np.float32)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        before = value.copy()
        moved, known = known.step(value, gradient, 0.01)
        np.testing.assert_array_equal(value, before)
        value = moved
    assert np.abs(value - start).max() > 0.01
    # float32, twenty steps of 0.01: a last digit each.
    np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=0, atol=20 * 6e-8 * 2)
