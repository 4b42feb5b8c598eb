"""ResNet-20 from its ONNX nodes, in torch: an independent forward and backward pass."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from onnx_cbq.model import Array


class OnnxResNet:
    """Runs a graph of Conv, Relu, Add, Slice, Pad, AveragePool, Reshape and Gemm."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in proto.graph.initializer}

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the outputs of the layers."""
        values = {**self.constants, self.graph.input[0].name: x}
        layers = []
        for node in self.graph.node:
            inputs = [values[name] for name in node.input if name]
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            output = self.apply(node.op_type, inputs, attrs)
            if node.op_type in ("Conv", "Gemm"):
                layers.append(output)
            values[node.output[0]] = output
        return values[self.graph.output[0].name], layers

    def apply(self, operator: str, inputs: list[Tensor], attrs: dict[str, object]) -> Tensor:  # noqa: PLR0911
        x, *rest = inputs
        match operator:
            case "Conv":
                strides, pads = attrs["strides"], attrs["pads"]
                return functional.conv2d(x, rest[0], rest[1], stride=tuple(strides), padding=tuple(pads[:2]))  # type: ignore[arg-type,index]
            case "Relu":
                return functional.relu(x)
            case "Add":
                return x + rest[0]
            case "Slice":
                starts, ends, axes, steps = (r.tolist() for r in rest)
                for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
                    x = x.index_select(axis, torch.arange(*slice(start, end, step).indices(x.shape[axis])))
                return x
            case "Pad":
                pads = rest[0].tolist()
                half = len(pads) // 2
                widths = [w for axis in reversed(range(half)) for w in (pads[axis], pads[axis + half])]
                return functional.pad(x, widths)
            case "AveragePool":
                return functional.avg_pool2d(x, tuple(attrs["kernel_shape"]))  # type: ignore[arg-type]
            case "Reshape":
                return x.reshape(len(x), -1)
            case "Gemm":
                return functional.linear(x, rest[0], rest[1])
        raise NotImplementedError(operator)


def gradients(proto: onnx.ModelProto, x: Array, label: int) -> list[Array]:
    """dPhi/dz of every layer, Phi the sum over the samples of the logit `label`."""
    logits, layers = OnnxResNet(proto)(torch.tensor(x, requires_grad=True))
    return [np.asarray(g) for g in torch.autograd.grad(logits[:, label].sum(), layers)]
