"""Make torchvision's ImageNet nets as both of torch's exporters write them, for benchmarks/imagenet_nets.py.

python benchmarks/imagenet_models.py FOLDER [resnet50 ...]    # in an environment with torch, torchvision and onnxscript

FOLDER/NAME_EXPORTER.onnx are the models, FOLDER/NAME_calibration.npz and NAME_others.npz 100 real images each with the
float net's predictions as labels, and FOLDER/images.toml is the card of them all.

Trained weights cannot be had everywhere, so the nets are random, by the same recipe for each. A random net as it is
drawn has nothing to predict: nearly all images are of one class, and each batch norm and ReLU enlarges the difference
of two images, so that rounding to 8 bits would become half of what is left of an image behind 50 layers. Hence:

1. Weights as torchvision draws them. What it starts at (nearly) zero, so that it is not there at first, is drawn as
   well: the last layer of ViT, and ConvNeXt's scales of blocks, which become 1. The bias of batch norms becomes 2, in
   units of their deviation: most of it passes the ReLU behind, as in a net that has learned to keep what it knows.
2. Statistics of batch norm are those of the calibration images.
3. Classes are what the net itself tells apart best: the two ends of each of the four directions in which what the last
   layer reads varies most over the calibration images. The other classes' scores stay random, and below.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import data_file
from PIL import Image
from zoo_models import import_torchvision

COUNT = 100
NORM_BIAS = 2.0
DIRECTIONS = 4
# Deviation of the scores along the first direction and of the other classes, and how far the latter's mean is below.
SCORE, OTHERS, OTHERS_BELOW = 5.0, 0.3, 2.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CARD = """# Images as torchvision's presets prepare them, cut to size already.
source = "{name}_calibration.npz"
layout = "NHWC"
scale = 0.00392156862745098
mean = {mean}
std = {std}
"""


@dataclass(frozen=True)
class Net:
    """A net of torchvision, and the sizes of its images: the shorter side, and the square cut from the centre."""

    name: str
    resize: int = 256
    crop: int = 224


NETS = (
    Net("resnet18"),
    Net("resnet50"),
    Net("squeezenet1_1"),
    Net("mobilenet_v2"),
    Net("mobilenet_v3_large"),
    Net("efficientnet_b0"),
    Net("densenet121"),
    Net("shufflenet_v2_x1_0"),
    Net("regnet_y_400mf"),
    Net("convnext_tiny"),
    Net("vit_b_16"),
    Net("swin_t"),
    Net("inception_v3", 342, 299),
)
EXPORTERS: dict[str, dict[str, Any]] = {
    "torchscript": {"dynamo": False, "dynamic_axes": {"x": {0: "n"}, "scores": {0: "n"}}},
    "dynamo": {"dynamo": True, "dynamic_shapes": ({0: "n"},), "external_data": False, "verbose": False},
}


def images(net: Net, start: int) -> Any:
    """Every fifth image from `start` on, as stored: uint8 [100, crop, crop, 3]."""
    found = []
    with zipfile.ZipFile(data_file("imagenet_1000.zip")) as archive:
        names = sorted(archive.namelist())[start::5][:COUNT]
        for name in names:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            share = net.resize / min(image.size)
            image = image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.BILINEAR)
            left, top = (image.width - net.crop) // 2, (image.height - net.crop) // 2
            found.append(np.asarray(image.crop((left, top, left + net.crop, top + net.crop))))
    return np.stack(found)


def prepared(pixels: Any) -> Any:
    """What the net reads: float32 [samples, 3, crop, crop]."""
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2).copy()


def random_net(net: Net, x: Any) -> Any:
    """The net of the recipe above, for images x as a torch tensor."""
    torch, models = import_torchvision()
    torch.manual_seed(0)
    module = getattr(models, net.name)(weights=None).eval()
    draw_what_starts_at_zero(torch, module)
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    if norms:
        run(torch, module, x)
    module.eval()
    choose_classes(torch, module, x)
    return module


def draw_what_starts_at_zero(torch: Any, module: Any) -> None:
    """Step 1."""
    last = last_layer(torch, module)
    with torch.no_grad():
        if not last.weight.any():
            last.weight.normal_(0.0, last.weight[0].numel() ** -0.5)
        for name, parameter in module.named_parameters():
            if name.endswith("layer_scale"):
                parameter.fill_(1.0)
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.bias.fill_(NORM_BIAS)


def choose_classes(torch: Any, module: Any, x: Any) -> None:
    """Step 3."""
    last = last_layer(torch, module)
    seen: list[Any] = []
    hook = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    run(torch, module, x)
    hook.remove()
    read = torch.cat(seen)  # [samples, n] or, of a convolution, [samples, n, height, width]
    read = read.reshape(*read.shape[:2], -1).mean(dim=2)
    mean = read.mean(dim=0)
    directions = torch.linalg.svd(read - mean, full_matrices=False)[2][:DIRECTIONS]  # [4, n]
    spread = ((read - mean) @ directions[0]).std()
    with torch.no_grad():
        weight = last.weight.reshape(len(last.weight), -1)  # a view: [classes, n]
        weight *= OTHERS / ((read - mean) @ weight.T).std(dim=0)[:, None]
        weight[: 2 * DIRECTIONS] = torch.cat([directions, -directions]) * (SCORE / spread)
        last.bias.copy_(-(weight @ mean) - OTHERS_BELOW)
        last.bias[: 2 * DIRECTIONS] += OTHERS_BELOW


def last_layer(torch: Any, module: Any) -> Any:
    """The layer that makes the scores."""
    return [part for part in module.modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)][-1]


def run(torch: Any, module: Any, x: Any) -> Any:
    """The scores of images x, in batches."""
    with torch.no_grad():
        return torch.cat([module(part) for part in x.split(20)])


def make(net: Net, folder: Path) -> None:
    """Models and samples of one net; what is there already stays."""
    torch, _ = import_torchvision()
    targets = {exporter: folder / f"{net.name}_{exporter}.onnx" for exporter in EXPORTERS}
    if all(target.exists() for target in targets.values()):
        return
    calibration, others = images(net, 0), images(net, 1)
    x = torch.from_numpy(prepared(calibration))
    module = random_net(net, x)
    for part, pixels in (("calibration", calibration), ("others", others)):
        labels = run(torch, module, torch.from_numpy(prepared(pixels))).argmax(dim=1).numpy()
        print(f"{net.name}: {len(set(labels.tolist()))} classes are predicted for {len(labels)} images, {part}")
        np.savez(folder / f"{net.name}_{part}.npz", x=pixels, y=labels)
    for exporter, settings in EXPORTERS.items():
        started = time.monotonic()
        names = {"input_names": ["x"], "output_names": ["scores"]}
        torch.onnx.export(module, (x[:2],), targets[exporter], **names, **settings)
        print(f"{net.name} by {exporter}: {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Make the nets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="nets of torchvision; all by default")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {net.name for net in NETS}
    if unknown:
        sys.exit(f"unknown nets: {', '.join(sorted(unknown))}; known: {', '.join(net.name for net in NETS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "images.toml").write_text(CARD.format(name=NETS[0].name, mean=list(MEAN), std=list(STD)))
    for net in NETS:
        if not arguments.names or net.name in arguments.names:
            make(net, arguments.folder)


if __name__ == "__main__":
    main()
