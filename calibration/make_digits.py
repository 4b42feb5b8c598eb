"""Make the bundled files from scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8 x 8, values 0 to 16.

digits_train.npz (100 of each class) trains the sample model, digits.npz (50) calibrates, digits_test.npz is the rest.

    python calibration/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
PARTS = {"digits_train.npz": slice(0, 100), "digits.npz": slice(100, 150), "digits_test.npz": slice(150, None)}


def main() -> None:
    """Write the files beside this script."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    by_class = [order[digits.target[order] == m] for m in range(10)]
    names = np.array([str(m) for m in range(10)])
    for name, part in PARTS.items():
        indices = np.sort(np.concatenate([members[part] for members in by_class]))
        labels = digits.target[indices].astype(np.int64)
        np.savez_compressed(HERE / name, x=images[indices], y=labels, class_names=names)


if __name__ == "__main__":
    main()
