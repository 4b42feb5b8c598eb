"""Which products of a file onnxruntime runs on integers, which other nodes it runs in float between them, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_cbq.targets import CPU
from onnx_cbq.targets.lint import Violation, lint
from onnx_cbq.targets.reading import DEQUANTIZE, QUANTIZE, Product, QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.verification.matching import match_sites
from onnx_cbq.verification.pairing import sites


@dataclass(frozen=True)
class Fallback:
    """A node that is no product of a weight and that runs in float on numbers that were codes; `reason` may be ""."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class KernelUse:
    """What onnxruntime makes of a file.

    Attributes:
        integer: of each product of the file whether it is run on integers.
        reasons: why it is not, "" where it is.
        sums: the largest sum of two codes that meet in 16 bits, and the limit, of products whose pairs may overflow
            where a processor has no VNNI.
        fallbacks: other nodes that run in float.
        refusal: why onnxruntime does not open the file, "" where it does.
    """

    integer: tuple[bool, ...]
    reasons: tuple[str, ...]
    sums: tuple[tuple[int, int] | None, ...]
    fallbacks: tuple[Fallback, ...]
    refusal: str = ""


def kernel_use(run: Run) -> KernelUse:
    """Hold the graph that onnxruntime runs against the file. Cost: a few passes over the weights."""
    said = run.said.products
    fused: Mapping[int, Product] = {}
    if run.fused is not None:
        fused = {i: run.fused.products[j] for i, j in match_sites(sites(run.said), sites(run.fused))}
    integer = tuple(i in fused and fused[i].on_codes for i in range(len(said)))
    violations = lint(run.said, CPU)
    sums = run.sums(CPU)
    # What this runtime does not run on integers saturates nowhere.
    unsafe = [
        sums.get(product.name) if on or run.fused is None else None for product, on in zip(said, integer, strict=True)
    ]
    return KernelUse(
        integer,
        tuple("" if on else _reason(product, violations) for product, on in zip(said, integer, strict=True)),
        tuple(found if found is not None and found[0] > found[1] else None for found in unsafe),
        tuple(_fallbacks(run.fused, violations)) if run.fused is not None else (),
        run.refusal,
    )


def _reason(product: Product, violations: Sequence[Violation]) -> str:
    """Why a product is not run on integers."""
    if product.codes is None:
        return "its weight is float"
    if product.activation_type is None:
        return "what it reads is float"
    found = next((v.finding for v in violations if v.finding.node == product.name and v.finding.fact != "pairs"), None)
    if found is None:
        kinds = f"{product.activation_type} x {product.codes.dtype}"
        return f"onnxruntime has no integer kernel for this {product.operator} of {kinds}"
    return f"{found.tensor}: expected {found.expected}, found {found.found}"


def _fallbacks(fused: QdqFile, violations: Sequence[Violation]) -> list[Fallback]:
    products = {id(product.node) for product in fused.products}
    found = []
    for node in fused.nodes:
        if id(node) in products or node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        read = [fused.dequantizer(name) for name in node.input if name]
        if any(one is not None and not fused.model.is_constant(one.input[0]) for one in read):
            name = node.name or node.output[0]
            reasons = [v.finding for v in violations if v.finding.node == name]
            why = f"{reasons[0].tensor}: expected {reasons[0].expected}, found {reasons[0].found}" if reasons else ""
            found.append(Fallback(name, node.op_type, why))
    return found
