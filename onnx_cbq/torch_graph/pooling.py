"""The pooling operators.

torch's pooling is used where it means the same: pads alike on both sides and no more than half a window, no ceil_mode.
Otherwise positions are put around the input first. A sum over windows is a convolution with ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnx_cbq.graph.windows import find_windows
from onnx_cbq.records import Windows
from onnx_cbq.torch_graph.convolution import CONVOLUTIONS
from onnx_cbq.torch_graph.node import Compile, OnnxNode, Run, plain
from onnx_cbq.torch_graph.window import check_same_pads, even_pads, output_sizes, pad_positions, per_axis

_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_AVERAGE_POOLS = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}


def max_pool(node: OnnxNode) -> Run:
    """The largest of each window."""
    node.only_first_output()
    kernel, pads = _kernel(node), _pads_for_torch(node)
    strides, dilations = (per_axis(node.attrs.get(name), len(kernel)) for name in ("strides", "dilations"))

    def run(x: Tensor) -> Tensor:
        if pads is None:
            windows = _windows(node, x.shape[2:])
            x = pad_positions(x, windows.before, _reach_over(windows), -math.inf)
        return _MAX_POOLS[x.dim()](x, kernel, strides, pads or 0, dilations)

    return run


def average_pool(node: OnnxNode) -> Run:
    """The mean of each window over the positions that exist; with `count_include_pad` over the padded ones too."""
    kernel, pads = _kernel(node), _pads_for_torch(node)
    strides, dilations = (per_axis(node.attrs.get(name), len(kernel)) for name in ("strides", "dilations"))
    include_pad = bool(node.attrs.get("count_include_pad", 0))
    if pads is not None and set(dilations) == {1}:
        return lambda x: _AVERAGE_POOLS[x.dim()](x, kernel, strides, pads, count_include_pad=include_pad)

    def run(x: Tensor) -> Tensor:
        windows = _windows(node, x.shape[2:])
        return _window_sums(x, windows) / _window_counts(node, windows, x, include_pad=include_pad)

    return run


def lp_pool(node: OnnxNode) -> Run:
    """y = (sum |x|^p)^(1/p) over each window; the gradient is 0 where all of it is 0."""
    check_same_pads(node)
    p = int(node.attrs.get("p", 2))

    def run(x: Tensor) -> Tensor:
        sums = _window_sums(x.abs() ** p, _windows(node, x.shape[2:]))
        positive = sums > 0
        return torch.where(positive, torch.where(positive, sums, 1.0) ** (1 / p), 0.0)

    return run


def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel, axes kept."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """The largest of each channel, axes kept; the gradient goes to the first."""
    largest = x.flatten(2).max(2).values
    return largest.reshape(*largest.shape, *(1,) * (x.dim() - 2))


def _kernel(node: OnnxNode) -> list[int]:
    return [int(size) for size in node.attrs["kernel_shape"]]


def _pads_for_torch(node: OnnxNode) -> list[int] | None:
    """Pads that torch's pooling takes, or None."""
    check_same_pads(node)
    even, kernel = even_pads(node.attrs), _kernel(node)
    if even is None or node.attrs.get("ceil_mode", 0):
        return None
    pads = per_axis(even, len(kernel))
    return pads if all(2 * pad <= size for pad, size in zip(pads, kernel, strict=True)) else None


def _windows(node: OnnxNode, inputs: Sequence[int]) -> Windows:
    kernel = _kernel(node)
    return find_windows(node.operator, node.attrs, kernel, inputs, output_sizes(node, kernel, inputs))


def _reach_over(windows: Windows) -> list[int]:
    """Positions that the last window needs behind the input."""
    return [max(pad, 0) for pad in windows.after]


def _window_sums(x: Tensor, windows: Windows) -> Tensor:
    """[N, C, *inputs] -> [N, C, *outputs]."""
    channels = x.shape[1]
    ones = x.new_ones(channels, 1, *windows.kernel)
    padded = pad_positions(x, windows.before, _reach_over(windows))
    return CONVOLUTIONS[x.dim()](padded, ones, None, list(windows.strides), 0, list(windows.dilations), channels)


def _window_counts(node: OnnxNode, windows: Windows, x: Tensor, *, include_pad: bool) -> Tensor:
    """How many positions each window averages, [1, 1, *outputs]: what it reaches behind the pads never counts."""
    rank = len(windows.inputs)
    same = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    behind = _reach_over(windows) if same else node.attrs.get("pads", [0] * 2 * rank)[rank:]
    exists = pad_positions(x.new_ones(1, 1, *windows.inputs), windows.before, behind, float(include_pad))
    reach = [over - declared for over, declared in zip(_reach_over(windows), behind, strict=True)]
    padded = pad_positions(exists, [0] * rank, reach)
    ones = x.new_ones(1, 1, *windows.kernel)
    return CONVOLUTIONS[x.dim()](padded, ones, None, list(windows.strides), 0, list(windows.dilations))


OPERATORS: dict[str, Compile] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": plain(global_average_pool),
    "GlobalMaxPool": plain(global_max_pool),
}
