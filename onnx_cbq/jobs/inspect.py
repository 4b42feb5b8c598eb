"""What a file consists of, and whether it is fit for a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnx_cbq.errors import ModelError
from onnx_cbq.evidence.workload import ModelSource
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.load import load
from onnx_cbq.graph.normalise import normalise
from onnx_cbq.graph.shapes import Example
from onnx_cbq.jobs.result import CheckResult
from onnx_cbq.model import Model
from onnx_cbq.model.skim import skim
from onnx_cbq.records import Layers
from onnx_cbq.storage.metadata import StoredPlan, read_metadata
from onnx_cbq.targets import CPU, find_target
from onnx_cbq.targets.lint import lint
from onnx_cbq.targets.reading import Product, QdqFile
from onnx_cbq.targets.running import Run


def check(model: ModelSource, target: str = "cpu") -> CheckResult:
    """Hold a quantized file, whoever made it, against a target.

    Raises:
        OnnxCbqError: the target is unknown, the file cannot be read, or nothing in it is quantized.
    """
    wanted, loaded = find_target(target), load(model)
    label = "the model" if isinstance(model, ModelProto) else str(model)
    file = QdqFile(loaded)
    run = Run(file, model.SerializeToString() if isinstance(model, ModelProto) else Path(model))
    if not file.is_quantized and read_metadata(loaded) is None:
        raise ModelError(
            f"{label}: nothing in it is quantized; expected QuantizeLinear and DequantizeLinear, or integer products"
        )
    with run.blamed():
        violations, products = lint(file, wanted, run), run.products
        integers = sum(product.codes is not None and product.activation_type is not None for product in products)
        fused = run.fused.integer_products if run.fused is not None else 0
        safe = not (run.unsafe(CPU) or any(violation.finding.fact == "pairs" for violation in violations))
    return CheckResult(wanted, violations, len(products), integers, fused, safe)


@dataclass(frozen=True)
class Inspection:
    """The layers of a float model, the plan that a file carries if onnx-cbq made it, or the products of another's.

    Attributes:
        layers: of a model whose activations are float, whatever its weights are stored as.
        products: of a quantized file that carries no plan.
        unsafe: layers of a quantized model whose codes may saturate in 16 bits; the largest sum of a pair for each.
    """

    layers: Layers
    plan: StoredPlan | None
    unsafe: Mapping[str, int]
    products: tuple[Product, ...] = ()


def inspect(model: ModelSource) -> Inspection:
    """What the model consists of. Weights are read only where the file is quantized, or small.

    Raises:
        OnnxCbqError: the model cannot be read, or has no layer that can be quantized.
    """
    source = load(model, values=False)
    plan = read_metadata(source)
    file = QdqFile(source)
    if plan is not None or file.is_quantized:
        run = Run(file, model.SerializeToString() if isinstance(model, ModelProto) else Path(model))
        with run.blamed():
            unsafe, products = run.unsafe(CPU), run.products
        on_integers = plan is not None or any(product.activation_type is not None for product in products)
        return Inspection(Layers(()) if on_integers else _layers(source), plan, unsafe, products)
    return Inspection(_layers(source), None, {})


def _layers(source: Model) -> Layers:
    source = skim(source)
    example = Example.made_up(source)
    normalised = normalise(source, example).model
    return find_layers(normalised, example.shapes(normalised))
