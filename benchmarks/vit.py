"""Train a small vision transformer on CIFAR-10 and export it: a net of LayerNorm, GELU and attention to measure with.

    python benchmarks/vit.py IMAGES.zip --output FOLDER [--epochs 10]

Convolutions make 16 tokens of an image (early convolutions help transformers see better, arXiv 2106.14881), six blocks
of width 192 follow, and a mean over the tokens: 2.9 million weights. IMAGES.zip holds a folder of images per class.
Input `images` (n, 3, 32, 32), normalised by the mean and the standard deviation of ImageNet; output `logits` (n, 10).
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, WIDTH, HEADS, BLOCKS = 10, 192, 6, 6
STEM = (48, 96, WIDTH)
BATCH, RATE, DECAY, SMOOTHING = 128, 1.5e-3, 0.05, 0.1
# Pixels by which an image is shifted.
SHIFT = 4


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width], as x."""
        return self._mixed(x + self._attention(self.norm1(x)))

    def _mixed(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(count, tokens, WIDTH)
        return cast("Tensor", self.projection(mixed))


class VisionTransformer(nn.Module):
    """Images [n, 3, 32, 32] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        stem, channels = list[nn.Module](), 3
        for width in STEM:
            stem += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            stem.append(nn.MaxPool2d(2))
            channels = width
        self.stem = nn.Sequential(*stem)
        self.places = nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.places
        return cast("Tensor", self.head(self.norm(self.blocks(tokens)).mean(dim=1)))


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """All images [n, 3, 32, 32] in uint8, and their labels [n]."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png")))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    folders = [name.split("/")[-2] for name in names]
    order = sorted(set(folders))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor([order.index(f) for f in folders])


def batches(images: Tensor, labels: Tensor, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shifted and mirrored images in float32, in random order."""
    mean, deviation = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (MEAN, DEVIATION))
    for index in torch.randperm(len(images), generator=random).split(BATCH):
        padded = functional.pad(images[index], [SHIFT] * 4)
        across, down = (torch.randint(0, 2 * SHIFT + 1, (len(index),), generator=random).tolist() for _ in range(2))
        side = images.shape[-1]
        moved = [p[:, y : y + side, x : x + side] for p, x, y in zip(padded, across, down, strict=True)]
        mirrored = torch.rand(len(index), generator=random) < 0.5
        batch = torch.stack([m.flip(-1) if mirror else m for m, mirror in zip(moved, mirrored, strict=True)])
        yield (batch / 255 - mean) / deviation, labels[index]


def train(net: VisionTransformer, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """AdamW with one cycle of the rate."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.2)
    start = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for batch, wanted in batches(images, labels, random):
            logits = net(batch.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, wanted, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(wanted)
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}, {time.monotonic() - start:.0f} s", flush=True)


def export(net: VisionTransformer, folder: Path) -> None:
    """As both exporters of torch write it."""
    example: tuple[Any, ...] = (torch.zeros(2, 3, 32, 32),)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    net.eval()
    torch.onnx.export(
        net, example, folder / "vit_cifar10.onnx", dynamic_shapes=({0: torch.export.Dim("n")},),
        external_data=False, **names,
    )  # fmt: skip
    torch.onnx.export(
        net, example, folder / "vit_cifar10_torchscript.onnx", dynamo=False, opset_version=17,
        dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}}, **names,
    )  # fmt: skip


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    net = VisionTransformer().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    export(net, options.output)
    images, labels = read_images(options.images)
    train(net.train(), images, labels, options.epochs, options.seed)
    export(net, options.output)


if __name__ == "__main__":
    main()
