"""Kernels are held against the file, tensor by tensor, so that the first one that is wrong has a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq.errors import VerificationError
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Feeds, Optimization, Session
from onnx_cbq.verification import kernels
from onnx_cbq.verification.kernels import Deviation, check_kernels, deviations
from onnx_cbq.verification.saturation import saturates
from tests.exports import NETS
from tests.graphs import make_model, node
from tests.storage.emitted import emitted
from tests.unsafe import STEP, unsafe_file


def two_layers() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "r"),
        node("Conv", "r v", "c"),
        node("Relu", "c", "s"),
        node("Flatten", "s", "f"),
        node("Gemm", "f g"),
    ]
    constants = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "v": random.standard_normal((8, 4, 2, 2)).astype(np.float32),
        "g": random.standard_normal((72, 5)).astype(np.float32),
    }
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return emitted(two_layers(), 6).save(tmp_path)


X = np.random.default_rng(1).standard_normal((4, 3, 6, 6)).astype(np.float32)


class Shifted(Session):
    """The plain graph finds codes of the first layer so much lower than the fused one has them."""

    distance = 2

    def __init__(self, model: Model | Path | bytes, optimization: Optimization = "all") -> None:
        super().__init__(model, optimization)
        self._plain = optimization == "off"

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None, seconds: float | None = None) -> dict[str, Array]:
        values = super().run(feeds, outputs, seconds)
        if self._plain:
            name = [n for n, value in values.items() if value.dtype == np.uint8][1]
            values[name] = np.where(values[name] > 100, values[name] - self.distance, values[name]).astype(np.uint8)
        return values


def test_a_right_file_passes(file: Path) -> None:
    check_kernels(file, {"x": X})
    assert deviations(load(file), {"x": X}) == []


def test_the_first_layer_that_deviates_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "Session", Shifted)
    with pytest.raises(
        VerificationError, match=r"Conv Conv_a is off by up to 2 codes in [\d,]+ of its [\d,]+ num"
    ) as caught:
        check_kernels(file, {"x": X})
    assert "\n" not in str(caught.value)


def test_a_step_is_rounding(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways of computing a number next to the middle of two codes."""
    monkeypatch.setattr(kernels, "Session", Shifted)
    monkeypatch.setattr(Shifted, "distance", 1)
    assert deviations(load(file), {"x": X}) == []
    assert [found.node for found in deviations(load(file), {"x": X}, most=0)] == ["Conv Conv_a"]


@pytest.mark.parametrize(
    ("distance", "off", "numbers", "holds"),
    [
        (1, 1, 576, True),  # a gate's pooled maps of 16 samples: one number in a thousand is less than one
        (1, 1_150, 1_000_000, True),
        (1, 1_300, 1_000_000, False),
        (1, 30, 576, False),
        (2, 1, 1_000_000, False),
    ],
)
def test_how_many_codes_rounding_may_move(distance: int, off: int, numbers: int, holds: bool) -> None:
    """A net was refused for one code of a small tensor."""
    assert Deviation("Conv c", "x", distance, off, numbers).is_rounding == holds


def test_an_output_that_differs_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder(Session):
        def __init__(self, model: Model | Path | bytes, optimization: Optimization = "all") -> None:
            super().__init__(model, optimization)
            self._factor = 1.01 if optimization == "all" else 1.0

        def run(
            self, feeds: Feeds, outputs: Sequence[str] | None = None, seconds: float | None = None
        ) -> dict[str, Array]:
            values = super().run(feeds, outputs, seconds)
            return {n: v * np.float32(self._factor) if n == "y" else v for n, v in values.items()}

    monkeypatch.setattr(kernels, "Session", Louder)
    with pytest.raises(VerificationError, match=r"output 'y': .* differs from the plain one by 1\.0e-02"):
        check_kernels(file, {"x": X})


def test_kernels_that_saturate_are_found_where_there_are_such(tmp_path: Path) -> None:
    """By as many codes as the oracle says; elsewhere there is nothing to find."""
    path, x, (saturated, exact) = unsafe_file(tmp_path)
    found = deviations(load(path), {"x": x})
    if not saturates():
        assert found == []
        return
    assert [deviation.node for deviation in found] == ["Conv Conv_p"]
    expected = np.rint(exact / STEP).clip(0, 255) - np.rint(saturated / STEP).clip(0, 255)
    assert abs(found[0].distance - expected.max()) <= 1
    assert found[0].off / found[0].numbers == pytest.approx((expected > 1).mean(), abs=0.05)


@pytest.mark.parametrize("name", NETS)
def test_kernels_do_what_our_files_say(exported: object, name: str) -> None:
    """Every operator of these nets, quantized to 8 bits: pooling, addition, attention and so on."""
    case = emitted(exported(name, dynamo=False), 8)  # type: ignore[operator]
    assert deviations(case.model, case.feeds) == []
