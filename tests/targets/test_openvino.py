"""Files run by OpenVINO: on its integer kernels, with the answers that onnxruntime gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, quantize
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
UNIFORM = QuantizeConfig(bits=8, method="uniform", rounding="nearest", equalize=False, samples=200)


# As onnxruntime computes: without bfloat16, and without a grid of its own for what meets 8-bit weights.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def compiled(path: Path) -> Any:
    return openvino.Core().compile_model(str(path), "CPU", SETTINGS)


def executed(model: Any) -> list[tuple[str, str]]:
    """The kind of each operator that OpenVINO made of the model, and the kernel that computes it."""
    infos = [operator.get_rt_info() for operator in model.get_runtime_model().get_ordered_ops()]
    return [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos]


def product_types(model: Any) -> Counter[str]:
    """What the products with a weight are computed in: `f32`, `I8`."""
    return Counter(kernel.rpartition("_")[2] for kind, kernel in executed(model) if kind in PRODUCTS)


def run(model: Any, feeds: dict[str, Array]) -> Array:
    return np.array(model(feeds)[0])


@pytest.fixture(scope="module")
def digits() -> tuple[dict[str, Array], Array]:
    samples = prepare(DIGITS_MODEL, DIGITS_CARD).samples
    return dict(samples.read(np.arange(len(samples.labels)))), samples.labels


@pytest.mark.parametrize(
    "config",
    [
        UNIFORM,
        QuantizeConfig(bits=8, method="uniform", target="openvino", samples=200),
        QuantizeConfig(bits=3, storage="packed", samples=200),
        QuantizeConfig(bits=4, codebook="kmeans", storage="packed", samples=200),
    ],
    ids=["cpu", "openvino", "packed", "shared"],
)
def test_every_product_is_of_integers(
    config: QuantizeConfig, digits: tuple[dict[str, Array], Array], tmp_path: Path
) -> None:
    """Accuracy within 0.2 points: of 500 samples, one."""
    path = tmp_path / "quantized.onnx"
    quantize(DIGITS_MODEL, DIGITS_CARD, config).save(path)
    feeds, labels = digits
    model = compiled(path)
    assert product_types(model) == {"I8": 4}
    predictions = [logits.argmax(1) for logits in (run(model, feeds), Session(path).run(feeds)["logits"])]
    right = [int((found == labels).sum()) for found in predictions]
    assert abs(right[0] - right[1]) <= 1
    assert (predictions[0] != predictions[1]).sum() <= 2


def test_weights_only_are_floats_once_loaded(digits: tuple[dict[str, Array], Array], tmp_path: Path) -> None:
    """What unpacks them is folded; outputs are those of onnxruntime to float rounding."""
    path = tmp_path / "packed.onnx"
    config = QuantizeConfig(bits=4, activation_bits=0, storage="packed", rounding="nearest", samples=200)
    quantize(DIGITS_MODEL, DIGITS_CARD, config).save(path)
    model = compiled(path)
    kinds = Counter(kind for kind, _ in executed(model))
    assert product_types(model) == {"f32": 4}
    assert not kinds.keys() & {"Multiply", "Eltwise", "Convert", "Gather", "FakeQuantize"}, kinds
    expected = Session(path, "off").run(digits[0])["logits"]
    np.testing.assert_allclose(run(model, digits[0]), expected, atol=1e-5 * np.abs(expected).max())
