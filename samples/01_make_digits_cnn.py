"""Train the sample model and export it: a small CNN for the bundled digits. Needs torch; takes half a minute.

python samples/01_make_digits_cnn.py
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
DATA = HERE.parent / "calibration"
EPOCHS = 30


def make_net() -> nn.Module:
    """Three convolutions with batch norm, pooling, one linear layer: about 14,000 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10)),
    )


def main() -> None:
    """Train on digits_train.npz, print the accuracy on digits_test.npz, write digits_cnn.onnx."""
    torch.manual_seed(0)
    train, test = (np.load(DATA / name) for name in ("digits_train.npz", "digits_test.npz"))
    x, y = torch.tensor(train["x"] / 16, dtype=torch.float32).permute(0, 3, 1, 2), torch.tensor(train["y"])
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * len(x.split(50)))
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[indices]), y[indices]).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    inputs = torch.tensor(test["x"] / 16, dtype=torch.float32).permute(0, 3, 1, 2)
    hits = (net(inputs).argmax(1).numpy() == test["y"]).mean()
    print(f"accuracy on the test digits: {hits:.2%}")
    torch.onnx.export(
        net,
        (x[:1],),
        HERE / "digits_cnn.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )


if __name__ == "__main__":
    main()
