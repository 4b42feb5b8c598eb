"""Conv and ConvTranspose.

torch pads alike on both sides. Where ONNX does not (uneven pads, `auto_pad`, `output_shape`), positions are put beside
the input, or cut off the output, by a node of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from onnx_cbq.graph.windows import find_windows
from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run
from onnx_cbq.torch_graph.window import check_same_pads, even_pads, output_sizes, pad_positions, per_axis

# By the rank of the data, [N, C, *positions].
CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d}


def conv(node: OnnxNode) -> Run:
    """y = W * x + b: [N, C, *inputs] and [O, C/g, *kernel] -> [N, O, *outputs]."""
    check_same_pads(node)
    groups, even = int(node.attrs.get("group", 1)), even_pads(node.attrs)
    strides, dilations = node.attrs.get("strides"), node.attrs.get("dilations")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.dim() - 2
        pads = even
        if pads is None:
            inputs, kernel = x.shape[2:], weight.shape[2:]
            found = find_windows(node.operator, node.attrs, kernel, inputs, output_sizes(node, kernel, inputs))
            x, pads = pad_positions(x, found.before, [max(pad, 0) for pad in found.after]), (0,)
        convolve = CONVOLUTIONS[x.dim()]
        return convolve(
            x, weight, bias, per_axis(strides, rank), per_axis(pads, rank), per_axis(dilations, rank), groups
        )

    return run


def conv_transpose(node: OnnxNode) -> Run:
    """The transpose of a convolution: [N, C, *inputs] and [C, O/g, *kernel] -> [N, O, *outputs]."""
    groups, even = int(node.attrs.get("group", 1)), even_pads(node.attrs)
    strides, dilations, extra = (node.attrs.get(name) for name in ("strides", "dilations", "output_padding"))
    if "output_shape" in node.attrs:
        even = None

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.dim() - 2
        spread, apart = per_axis(strides, rank), per_axis(dilations, rank)
        transposed = _TRANSPOSED[x.dim()]
        if even is not None:
            more = per_axis(extra, rank, 0)
            return transposed(x, weight, bias, spread, per_axis(even, rank), more, groups, apart)
        full = transposed(x, weight, None, spread, 0, 0, groups, apart)
        sizes = _transposed_sizes(node, full.shape[2:], x.shape[2:])
        before = find_windows(node.operator, node.attrs, weight.shape[2:], sizes, x.shape[2:]).before
        after = [size + pad - wide for size, wide, pad in zip(sizes, full.shape[2:], before, strict=True)]
        y = pad_positions(full, [-pad for pad in before], after)
        # Added last, so that positions put behind by output_padding get it too.
        return y if bias is None else y + bias.reshape(-1, *(1,) * rank)

    return run


def _transposed_sizes(node: OnnxNode, full: Sequence[int], inputs: Sequence[int]) -> list[int]:
    """How many positions a ConvTranspose gives, of the `full` reach of its windows."""
    rank = len(full)
    if "output_shape" in node.attrs:
        return [int(size) for size in node.attrs["output_shape"]][-rank:]
    if str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME"):
        strides = per_axis(node.attrs.get("strides"), rank)
        return [min(size * stride, reach) for size, stride, reach in zip(inputs, strides, full, strict=True)]
    pads, extra = node.attrs.get("pads", [0] * 2 * rank), per_axis(node.attrs.get("output_padding"), rank, 0)
    return [size + extra[i] - pads[i] - pads[i + rank] for i, size in enumerate(full)]


OPERATORS: dict[str, Compile] = {"Conv": conv, "ConvTranspose": conv_transpose}
