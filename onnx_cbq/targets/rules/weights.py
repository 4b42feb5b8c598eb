"""Weights: what kernels add in 16 bits, types, scales and axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnx_cbq.model import Array
from onnx_cbq.records.lanes import lanes
from onnx_cbq.targets.reading import Product, QdqFile
from onnx_cbq.targets.rules.finding import Finding
from onnx_cbq.targets.target import Target

_BYTES = (np.uint8, np.int8)


def pairs(file: QdqFile, target: Target) -> Iterator[Finding]:
    """Two codes that a kernel adds in 16 bits fit beside the largest activation code (see `records.lanes`)."""
    for product in file.products:
        found = largest_sums(file, product, target)
        if found is None:
            continue
        sums, limit = found
        over = int((sums > limit).sum())
        if over:
            expected = f"codes that meet in 16 bits to add up to {limit} at most"
            worst = f"{int(sums.max())}, more than that in {over} of {len(sums)} channels"
            yield Finding("pairs", product.name, product.weight, expected, worst)


def largest_sums(file: QdqFile, product: Product, target: Target) -> tuple[Array, int] | None:
    """The largest sum of two codes that meet, by channel, and the limit; None where nothing can overflow."""
    codes = product.codes
    if codes is None or codes.dtype != np.int8 or product.activation is None or product.operator not in target.products:
        return None
    depthwise = product.operator == "Conv" and codes.ndim > 1 and codes.shape[1] == 1 and product.groups == len(codes)
    # Codes on the left, and int8 activations as the operators on codes have them, are added in 32 bits. Those between
    # QuantizeLinear and DequantizeLinear become uint8 when a session is opened on x86.
    exact = product.index == 0 or (product.on_codes and product.activation_type == np.int8)
    if product.activation_type not in _BYTES or depthwise or exact:
        return None
    moved = product.by_group
    top, matrices = file.largest_code(product.activation), product.operator == "MatMul"
    known = lanes(moved.shape[1:], top, positions_first=matrices)
    if known is None:
        return None
    if "ConvTranspose" not in target.products:  # onnxruntime, which has one order
        known = replace(known, partners=known.partners[:1])
    return known.sums(moved.reshape(len(moved), -1)), known.limit


def lowest_code(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """Two codes of -128 may meet on ARM without the dot product, and wrap around."""
    for product in file.products:
        if product.codes is None or product.codes.dtype != np.int8 or product.activation is None:
            continue
        rows = np.moveaxis(product.codes, product.channel_axis, 0).reshape(
            product.codes.shape[product.channel_axis], -1
        )
        worst = int((rows == -128).sum(axis=1).max(initial=0))
        if worst > 1:
            found = f"-128 {worst} times in a channel"
            yield Finding("lowest code", product.name, product.weight, "codes from -127 up", found)


def scales(file: QdqFile, target: Target) -> Iterator[Finding]:
    """One scale or one for each output channel, above 0, and powers of two where the target wants them."""
    for product in file.products:
        grid, codes = product.grids[1], product.codes
        if grid is None or codes is None or grid.scale is None:
            continue
        axis, count = product.channel_axis, grid.scale.size
        if count > 1:
            if product.operator in target.per_tensor:
                yield Finding("per tensor", product.name, product.weight, "one scale", f"{count} scales")
            written = 1 if grid.axis is None else grid.axis % codes.ndim
            if written != axis or count != codes.shape[axis]:
                expected, found = f"a scale per channel on axis {axis}", f"{count} scales on axis {written}"
                yield Finding("axis", product.name, product.weight, expected, found)
        lowest = float(grid.scale.min())
        if not (np.isfinite(grid.scale) & (grid.scale > 0)).all():
            yield Finding("scale", product.name, product.weight, "scales above 0", f"{lowest:g}")
        if target.power_of_two and not is_power_of_two(grid.scale):
            yield Finding("power of two", product.name, product.weight, "scales that are powers of two", f"{lowest:g}")


def types(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """int8 with zero point 0 is what every target multiplies; uint8 beside uint8 is another way that some have."""
    for product in file.products:
        grid, codes = product.grids[1], product.codes
        if codes is None or product.activation is None or grid is None:
            continue
        if codes.dtype != np.int8:
            yield Finding("weight type", product.name, product.weight, "int8", str(codes.dtype))
        elif grid.zero_point is not None and grid.zero_point.any():
            found = f"{int(grid.zero_point.reshape(-1)[np.flatnonzero(grid.zero_point)[0]])}"
            yield Finding("weight zero point", product.name, product.weight, "zero point 0", found)


def is_power_of_two(values: Array) -> bool:
    """Whether all are, exactly."""
    return bool((np.frexp(values)[0] == 0.5).all())
