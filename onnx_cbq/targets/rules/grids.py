"""Grids of activations: types, zero points, scales, and which must be equal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from onnx_cbq.graph.integer_rules import MOVEMENT
from onnx_cbq.model import STANDARD
from onnx_cbq.targets.reading import DEQUANTIZE, QUANTIZE, Grid, QdqFile
from onnx_cbq.targets.rules.finding import Finding
from onnx_cbq.targets.rules.weights import is_power_of_two
from onnx_cbq.targets.target import Target

_SLACK = 1e-3


def activations(file: QdqFile, target: Target) -> Iterator[Finding]:
    """Type, zero point and scale of every activation."""
    for node in file.of_type(QUANTIZE):
        grid, name = file.grid(node), node.name or node.output[0]
        kind = "uint8" if grid.dtype is None else str(grid.dtype)
        if kind not in target.types:
            yield Finding("activation type", name, grid.tensor, " or ".join(sorted(target.types)), kind)
        if grid.scale is not None and grid.scale.size > 1:
            yield Finding("one scale", name, grid.tensor, "one scale", f"{grid.scale.size} scales")
        if target.activation.symmetric and grid.zero_point is not None and grid.zero_point.any():
            found = f"{int(grid.zero_point.reshape(-1)[0])}"
            yield Finding("zero point", name, grid.tensor, "zero point 0", found)
        yield from _scale(grid, name, target)


def written_zero_points(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """Without a zero point ONNX means uint8 for activations, and some runtimes int8; stored codes have a type."""
    for node in file.of_type(QUANTIZE, DEQUANTIZE):
        codes = file.model.constant(node.input[0]) if node.op_type == DEQUANTIZE else None
        stored = codes is not None and codes.dtype == np.int8
        if not stored and (len(node.input) < 3 or not node.input[2]):
            yield Finding("zero point written", node.name or node.output[0], node.input[0], "a zero point", "none")


def domains(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """QuantizeLinear and DequantizeLinear of the standard."""
    for node in file.of_type(QUANTIZE, DEQUANTIZE):
        if node.domain not in STANDARD:
            yield Finding("domain", node.name or node.output[0], node.input[0], "the domain ai.onnx", node.domain)


def equal_grids(file: QdqFile, target: Target) -> Iterator[Finding]:
    """What only moves numbers keeps their grid."""
    keeping = MOVEMENT.keys() | target.placement.keeping
    for node in file.nodes:
        if node.op_type not in keeping or node.domain not in STANDARD:
            continue
        pair = _around(file, node)
        if pair is not None and not pair[0].same_as(pair[1]):
            expected, found = f"the grid of its input, {_shown(pair[0])}", _shown(pair[1])
            yield Finding("equal grids", node.name or node.output[0], pair[1].tensor, expected, found)


def alike(file: QdqFile, target: Target) -> Iterator[Finding]:
    """Inputs and output of a Concat on one grid, where the target wants them so."""
    for node in file.nodes:
        if node.op_type not in target.placement.alike:
            continue
        sources = [file.dequantizer(name) for name in node.input]
        grids = [file.grid(source) for source in sources if source is not None]
        grids += [file.grid(reader) for reader in file.quantizers(node.output[0])]
        if len(grids) > 1 and not all(grid.same_as(grids[0]) for grid in grids):
            found = ", ".join(dict.fromkeys(_shown(grid) for grid in grids))
            yield Finding("one grid", node.name or node.output[0], node.output[0], "one grid for all", found)


def requantization(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """s_x s_w / s_y below 256 for every channel."""
    for product in file.products:
        node, _ = file.behind(product.node)
        outputs = file.quantizers(node.output[0])
        one, two = product.grids[:2]
        if one is None or two is None or not outputs or product.codes is None:
            continue
        three = file.grid(outputs[0])
        if one.scale is None or two.scale is None or three.scale is None:
            continue
        largest = float((one.scale.max() * two.scale / three.scale.min()).max())
        if not largest < 256:
            yield Finding("requantization", product.name, product.weight, "s_x s_w / s_y below 256", f"{largest:g}")


def _scale(grid: Grid, name: str, target: Target) -> Iterator[Finding]:
    if grid.scale is None or grid.scale.size != 1:
        return
    scale, rules = float(grid.scale.reshape(-1)[0]), target.activation
    if not (np.isfinite(scale) and scale > 0):
        yield Finding("scale", name, grid.tensor, "a scale above 0", f"{scale:g}")
        return
    if rules.power_of_two and not is_power_of_two(grid.scale):
        yield Finding("power of two", name, grid.tensor, "a scale that is a power of two", f"{scale:g}")
    steps = 65535 if grid.dtype is not None and grid.dtype.itemsize == 2 else 255
    if steps * scale < rules.least_range * (1 - _SLACK):
        expected = f"a range of at least {rules.least_range:g}"
        yield Finding("range", name, grid.tensor, expected, f"{steps * scale:g}")


def _around(file: QdqFile, node: NodeProto) -> tuple[Grid, Grid] | None:
    source, readers = file.dequantizer(node.input[0]), file.quantizers(node.output[0])
    return (file.grid(source), file.grid(readers[0])) if source is not None and readers else None


def _shown(grid: Grid) -> str:
    scale = "computed" if grid.scale is None else f"{float(grid.scale.reshape(-1)[0]):g}"
    zero = 0 if grid.zero_point is None else int(grid.zero_point.reshape(-1)[0])
    return f"scale {scale} zero point {zero}"
