"""Models as users export them: from torch with both of its exporters, and from scikit-learn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

CLASSES = 5


class DepthwiseNet(nn.Module):
    """Inverted residuals with depthwise convolutions, squeeze-and-excite, ReLU6, hard-swish and SiLU."""

    example_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y * gate)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class SmallViT(nn.Module):
    """Patches, a class token, position embeddings, two pre-norm attention blocks with GELU."""

    example_shape = (3, 16, 16)

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.3)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Any:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Any:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5, dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class SignalNet(nn.Module):
    """One-dimensional convolutions, a transposed one, group and instance norm, and a softmax at the end."""

    example_shape = (2, 40)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(2, 8, 5, stride=2, padding=2),
            nn.GroupNorm(2, 8),
            nn.LeakyReLU(0.1),
            nn.Conv1d(8, 8, 3, padding=2, dilation=2),
            nn.InstanceNorm1d(8, affine=True),
            nn.ELU(),
            nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1),
            nn.PReLU(6),
            nn.MaxPool1d(3, 2, 1),
        )
        self.head = nn.Linear(6 * 20, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return torch.softmax(self.head(self.features(x).flatten(1)), dim=1)


class ResidualNet(nn.Module):
    """Residual blocks with batch norm behind every convolution."""

    example_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 8, 1)
        self.block1 = nn.Sequential(_conv_norm(8, 8, 1), nn.ReLU(), _conv_norm(8, 8, 1))
        self.block2 = nn.Sequential(_conv_norm(8, 16, 2), nn.ReLU(), _conv_norm(16, 16, 1))
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block1(x))
        x = torch.relu(self.shortcut(x) + self.block2(x))
        return self.head(nn.functional.avg_pool2d(x, 8).view(x.size(0), -1))


def _conv_norm(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


NETS: dict[str, Callable[[], nn.Module]] = {
    "depthwise": DepthwiseNet,
    "vit": SmallViT,
    "signal": SignalNet,
    "residual": ResidualNet,
}


def make_net(name: str) -> nn.Module:
    """A net with fixed random weights and batch norm statistics that are not trivial."""
    torch.manual_seed(0)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None  # noqa: PT018
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def export(net: nn.Module, *, dynamo: bool, dynamic_batch: bool = True, batch: int = 2) -> onnx.ModelProto:
    """The net as ONNX, input `input`, output `logits`."""
    shape: tuple[int, ...] = net.example_shape  # type: ignore[assignment]
    example = torch.randn(batch, *shape)
    buffer: Any = io.BytesIO()  # the old exporter takes a stream, its annotation only knows paths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("N")},) if dynamic_batch else None
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
        axes = {"input": {0: "N"}, "logits": {0: "N"}} if dynamic_batch else None
        torch.onnx.export(
            net, (example,), buffer, dynamo=False, input_names=["input"], output_names=["logits"], dynamic_axes=axes
        )
    return onnx.load_from_string(buffer.getvalue())


def sklearn_classifier(options: dict[str, object] | None = None) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """scikit-learn's MLPClassifier through skl2onnx, with the samples that it was fitted to."""
    random = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (random.standard_normal((3, 12))[y] + random.standard_normal((300, 12)) * 0.7).astype(np.float32)
    fitted = MLPClassifier((16,), max_iter=2000, random_state=0).fit(x, y)
    return to_onnx(fitted, x[:1], options=options or {"zipmap": False}, target_opset=18), x, y
