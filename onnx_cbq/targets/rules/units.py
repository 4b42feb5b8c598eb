"""Units: DequantizeLinear -> operator -> QuantizeLinear, as runtimes look for them, and the biases in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx_cbq.graph.integer_rules import ARITHMETIC, MOVEMENT
from onnx_cbq.targets.reading import DEQUANTIZE, QUANTIZE, Grid, Product, QdqFile
from onnx_cbq.targets.rules.finding import Finding
from onnx_cbq.targets.rules.weights import is_power_of_two
from onnx_cbq.targets.target import Target

# A bias whose scale is off by more moves an output of a thousand steps.
_BIAS_TOLERANCE = 1e-4
_LOWEST = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}


def operands(file: QdqFile, target: Target) -> Iterator[Finding]:
    """Activation and weight are integers, or neither, and of one type where the target wants that."""
    for product in file.products:
        if product.operator not in target.products:
            continue
        activation, weight = product.activation is not None or product.grids[0] is not None, product.codes is not None
        if activation and not weight and (target.placement.style != "kernels" or _between_codes(file, product)):
            yield Finding("float weight", product.name, product.weight, "an int8 weight", "float")
        if weight and not activation:
            source = product.node.input[0]
            yield Finding("float activation", product.name, source, "a quantized activation", "float")
        if product.codes is not None and product.activation_type not in (None, product.codes.dtype):
            found = f"{product.activation_type} and {product.codes.dtype}"
            yield Finding("same type", product.name, product.weight, "one type for activation and weight", found)


def _between_codes(file: QdqFile, product: Product) -> bool:
    """Whether only QuantizeLinear reads a product: then onnxruntime quantizes its weight, but for MatMul."""
    readers = file.model.consumers.get(file.behind(product.node)[0].output[0], [])
    return product.operator != "MatMul" and [reader.op_type for reader in readers] == [QUANTIZE]


def outputs(file: QdqFile, target: Target) -> Iterator[Finding]:
    """What is computed from integers is quantized again, by nothing but QuantizeLinear."""
    everywhere = target.placement.style == "everywhere"
    for product in file.products:
        if product.grids[0] is None or product.codes is None or product.operator not in target.products:
            continue
        # A matrix product may give floats, the product of a convolution may not.
        if everywhere or product.operator == "Conv":
            yield from _output(file, product.name, file.behind(product.node)[0].output[0], everywhere=everywhere)
    for node in file.nodes if everywhere else ():
        if node.op_type in ARITHMETIC.keys() | MOVEMENT.keys() and any(file.dequantizer(name) for name in node.input):
            last = file.behind(node)[0].output[0]
            yield from _output(file, node.name or node.output[0], last, everywhere=everywhere)


def _output(file: QdqFile, name: str, tensor: str, *, everywhere: bool) -> Iterator[Finding]:
    readers = file.model.consumers.get(tensor, [])
    others = [reader.op_type for reader in readers if reader.op_type != QUANTIZE]
    if tensor in file.model.outputs and (everywhere or readers):
        others.append("the user")
    if others or (everywhere and not readers):
        expected = "only QuantizeLinear to read it"
        yield Finding("output", name, tensor, expected, f"{' and '.join(dict.fromkeys(others)) or 'no reader'}")


def saturations(file: QdqFile, target: Target) -> Iterator[Finding]:
    """A Relu or Clip between an operator and its QuantizeLinear is one that the grid's lowest code stands for."""
    wanted = target.products | ARITHMETIC.keys()
    for node in file.nodes:
        last, cut = file.behind(node)
        if node.op_type not in wanted or cut is None or not any(file.dequantizer(name) for name in node.input):
            continue
        for reader in file.quantizers(last.output[0]):
            grid = file.grid(reader)
            if grid.zero_point is None or str(grid.dtype) not in _LOWEST:
                continue
            lowest = _LOWEST[str(grid.dtype)]
            if int(grid.zero_point.reshape(-1)[0]) != lowest:
                found = f"{int(grid.zero_point.reshape(-1)[0])}"
                yield Finding("relu", cut.name or cut.output[0], grid.tensor, f"zero point {lowest}", found)


def biases(file: QdqFile, target: Target) -> Iterator[Finding]:
    """The bias of a product of integers, as the target has it."""
    for product in file.products:
        one, two, three = product.grids
        if one is None or product.codes is None or len(product.node.input) < 3 or not product.node.input[2]:
            continue
        if three is None:
            if target.file.bias == "int8":
                yield Finding("bias", product.name, product.node.input[2], "int8", "float")
        elif target.file.bias == "float":
            yield Finding("bias", product.name, three.tensor, "float", _type(file, three))
        else:
            yield from _integer_bias(file, target, product, (one, two, three))


def _integer_bias(
    file: QdqFile, target: Target, product: Product, grids: tuple[Grid, Grid | None, Grid]
) -> Iterator[Finding]:
    one, two, three = grids
    kind = _type(file, three)
    if kind != target.file.bias:
        yield Finding("bias", product.name, three.tensor, target.file.bias, kind)
    if three.scale is None or one.scale is None or two is None or two.scale is None:
        return
    if target.file.bias == "int8":
        if not is_power_of_two(three.scale):
            yield Finding("power of two", product.name, three.tensor, "a power of two", f"{float(three.scale.max()):g}")
        return
    expected = one.scale.reshape(-1)[0].astype(np.float64) * two.scale.reshape(-1)
    expected = np.where(expected > 0, expected, 1.0)
    # A product too small for float32's full precision is rounded to what it can hold.
    rounding = np.spacing(expected.astype(np.float32)).astype(np.float64)
    apart = (
        np.abs(three.scale.reshape(-1) - expected) - rounding if three.scale.size in (1, expected.size) else expected
    )
    off = apart / expected
    moved = three.zero_point is not None and three.zero_point.any()
    if off.max() > _BIAS_TOLERANCE or moved:
        found = "a zero point" if moved else f"off by {off.max():.1%}"
        yield Finding("bias scale", product.name, three.tensor, "the scale s_x s_w and zero point 0", found)


def on_integers(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """No operator works on codes itself."""
    codes = {node.output[0] for node in file.of_type(QUANTIZE)} | {node.input[0] for node in file.of_type(DEQUANTIZE)}
    for node in file.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        touched = [name for name in (*node.input, *node.output) if name in codes and not file.model.is_constant(name)]
        if touched or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
            found = f"{node.op_type} on codes"
            tensor = touched[0] if touched else node.output[0]
            yield Finding("on integers", node.name or node.output[0], tensor, "operators on floats", found)


def residuals(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """Of an Add of two branches only one is quantized, so that the layer of the other is fused with it."""
    made = {product.node.output[0]: product for product in file.products if product.grids[0] is not None}
    for node in file.of_type("Add"):
        sources = [file.dequantizer(name) for name in node.input]
        if len(sources) != 2 or None in sources:
            continue
        for source in sources:
            producer = file.model.producers.get(source.input[0]) if source is not None else None
            if producer is not None and producer.op_type == QUANTIZE and producer.input[0] in made:
                expected = "a branch that comes from a layer to stay float"
                yield Finding("residual", node.name or node.output[0], producer.input[0], expected, "both quantized")
                break


def _type(file: QdqFile, grid: Grid) -> str:
    value = file.model.constant(grid.tensor)
    return "computed" if value is None else str(value.dtype)
