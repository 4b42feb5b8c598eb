"""32-bit floats and integers, and int8 that are no codes: bytes of equal rank together, each plane by zstandard.

The scale of a bias is that of the weight times that of the input, rounded to float32: such tensors are not stored but
computed again.

    varint  how many tensors are products; for each, three varints: the gap, less the one before; the gap less that of
            its factor; the gap of the scalar
    planes  first byte of every float, second byte, ...; likewise of the integers; all other bytes. For each that has
            any bytes: a varint, 0 for stored as it is, else the size of the zstandard frame that follows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnx_cbq.model import Array
from onnx_cbq.storage.coding.container import Cursor, compress, expand, write_varints
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.wire import Gap

_TYPES = (TensorProto.FLOAT, TensorProto.INT32, None)  # None: all others


@dataclass(frozen=True)
class Product:
    """A float tensor that is another one times a scalar, by the indices of their gaps."""

    factor: int
    scalar: int


def write_numbers(gaps: Mapping[int, Gap], contents: Sequence[bytes]) -> bytes:
    """The contents of some gaps, by their index among all."""
    products = _find_products(gaps, contents)
    written, before = [write_varints([len(products)])], 0
    for target, product in products.items():
        written.append(write_varints([target - before, target - product.factor, product.scalar]))
        before = target
    for plane_type in _TYPES:
        stored = b"".join(contents[i] for i in _of_type(gaps, plane_type) if i not in products)
        written.extend(_write_plane(plane) for plane in _planes(stored, plane_type))
    return b"".join(written)


def read_numbers(gaps: Mapping[int, Gap], content: bytes) -> dict[int, bytes]:
    """The inverse of `write_numbers`: contents by the index of the gap.

    Raises:
        Damaged: the content does not fit the gaps.
    """
    cursor = Cursor(content)
    products = _read_products(gaps, cursor)
    contents: dict[int, bytes] = {}
    for plane_type in _TYPES:
        chosen = [i for i in _of_type(gaps, plane_type) if i not in products]
        width = 4 if plane_type else 1
        count = sum(gaps[i].length for i in chosen) // width
        planes = [_read_plane(cursor, count) for _ in range(width) if count]
        joined = np.stack(planes, axis=-1).tobytes() if planes else b""
        start = 0
        for i in chosen:
            contents[i] = joined[start : start + gaps[i].length]
            start += gaps[i].length
    cursor.end()
    for target, product in products.items():
        contents[target] = _multiply(contents[product.factor], contents[product.scalar])
    return contents


def _of_type(gaps: Mapping[int, Gap], data_type: int | None) -> list[int]:
    return [i for i, gap in gaps.items() if (gap.data_type if gap.data_type in _TYPES else None) == data_type]


def _planes(stored: bytes, data_type: int | None) -> list[Array]:
    if not stored:
        return []
    width = 4 if data_type else 1
    return list(np.frombuffer(stored, np.uint8).reshape(-1, width).T)


def _write_plane(plane: Array) -> bytes:
    plain = plane.tobytes()
    packed = compress(plain)
    if len(packed) < len(plain):
        return write_varints([len(packed)]) + packed
    return write_varints([0]) + plain


def _read_plane(cursor: Cursor, count: int) -> Array:
    size = cursor.varint()
    plain = expand(cursor.take(size), count) if size else cursor.take(count)
    return np.frombuffer(plain, np.uint8)


def _multiply(factor: bytes, scalar: bytes) -> bytes:
    with np.errstate(all="ignore"):
        product = np.frombuffer(factor, "<f4") * np.frombuffer(scalar, "<f4")
    return bytes(product.astype("<f4").data)


def _find_products(gaps: Mapping[int, Gap], contents: Sequence[bytes]) -> dict[int, Product]:
    floats = {i: np.frombuffer(contents[i], "<f4") for i in _of_type(gaps, TensorProto.FLOAT)}
    scalars = {i: float(value[0]) for i, value in floats.items() if value.size == 1}
    names, values = np.array(list(scalars)), np.array(list(scalars.values()))
    products: dict[int, Product] = {}
    for target, value in floats.items():
        factors = [i for i, f in floats.items() if i < target and f.size == value.size > 1 and i not in products]
        for factor in factors:
            with np.errstate(all="ignore"):
                # Only scalars about as large as the ratio are worth a multiplication.
                near = names[np.abs(values * floats[factor][0] - value[0]) <= 1e-5 * abs(float(value[0]))]
            found = [s for s in near.tolist() if _multiply(contents[factor], contents[s]) == contents[target]]
            if found and np.isfinite(value).all():
                products[target] = Product(factor, found[0])
                break
    return products


def _read_products(gaps: Mapping[int, Gap], cursor: Cursor) -> dict[int, Product]:
    floats = set(_of_type(gaps, TensorProto.FLOAT))
    products: dict[int, Product] = {}
    before = 0
    for _ in range(cursor.varint()):
        target = before + cursor.varint()
        product = Product(target - cursor.varint(), cursor.varint())
        involved = (target, product.factor, product.scalar)
        if not floats.issuperset(involved) or target in products:
            raise Damaged("a product of tensors that are no floats")
        lengths = [gaps[i].length for i in involved]
        if not (lengths[0] == lengths[1] > lengths[2] == 4) or product.factor in products:
            raise Damaged("a product of tensors that do not fit")
        products[target] = product
        before = target
    if any(product.factor in products for product in products.values()):
        raise Damaged("a product of a product")
    return products
