"""Make cifar10_calibration.npz (1,000 training images of each class) and cifar10_test.npz from a copy of CIFAR-10.

FOLDER is the unpacked "python version" of CIFAR-10 (data_batch_1 .. 5, test_batch), or a copy as images
with one sub-folder per class in FOLDER/train and FOLDER/test.

python calibration/make_cifar10.py FOLDER [OUT]
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = 1000


def unpickle(path: Path) -> dict[bytes, Any]:
    """One file of the python version. A pickle can run code: use files that you downloaded from a source you trust."""
    with path.open("rb") as file:
        content: dict[bytes, Any] = pickle.load(file, encoding="bytes")  # noqa: S301, the published format
    return content


def read_batches(paths: list[Path]) -> tuple[Images, Labels]:
    """Images [n, 32, 32, 3] and labels of files whose rows hold 1,024 red, green and blue values each."""
    batches = [unpickle(path) for path in paths]
    rows = np.concatenate([batch[b"data"] for batch in batches])
    labels = np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int64)
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def read_images(folder: Path) -> tuple[Images, Labels]:
    """Images and labels of a folder with one sub-folder per class."""
    files = [(file, label) for label, name in enumerate(CLASSES) for file in sorted((folder / name).iterdir())]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    return images, np.array([label for _, label in files], np.int64)


def main(folder: Path, target: Path) -> None:
    """Write both files into `target`."""
    if (folder / "train").is_dir():
        train, test = read_images(folder / "train"), read_images(folder / "test")
    else:
        train = read_batches([folder / f"data_batch_{i}" for i in range(1, 6)])
        test = read_batches([folder / "test_batch"])
    images, labels = train
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.sort(np.concatenate([order[labels[order] == m][:PER_CLASS] for m in range(len(CLASSES))]))
    for name, x, y in (("calibration", images[chosen], labels[chosen]), ("test", *test)):
        np.savez(target / f"cifar10_{name}.npz", x=np.ascontiguousarray(x), y=y, class_names=np.array(CLASSES))
        print(f"cifar10_{name}.npz: {len(y):,} images")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else Path(__file__).parent))
