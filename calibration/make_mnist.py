"""Make mnist_calibration.npz (1,000 training images of each digit) and mnist_test.npz from the four MNIST files.

FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte,
as they are or with .gz.

python calibration/make_mnist.py FOLDER [OUT]
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint8]
PER_CLASS = 1000


def read_idx(path: Path) -> Numbers:
    """An array in IDX format: two zero bytes, type 8 (uint8), the rank, the sizes as big-endian int32, the values."""
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    if content[:3] != b"\0\0\x08":
        sys.exit(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def main(folder: Path, target: Path) -> None:
    """Write both files into `target`."""
    for name, part in (("calibration", "train"), ("test", "t10k")):
        images = read_idx(folder / f"{part}-images-idx3-ubyte")[..., None]
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte").astype(np.int64)
        if name == "calibration":
            order = np.random.default_rng(0).permutation(len(labels))
            chosen = np.sort(np.concatenate([order[labels[order] == m][:PER_CLASS] for m in range(10)]))
            images, labels = images[chosen], labels[chosen]
        names = np.array([str(m) for m in range(10)])
        np.savez_compressed(target / f"mnist_{name}.npz", x=images, y=labels, class_names=names)
        print(f"mnist_{name}.npz: {len(labels):,} images")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else Path(__file__).parent))
