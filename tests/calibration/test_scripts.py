"""The scripts that make the ready cards' data files, on small files in the published formats."""

from __future__ import annotations

import gzip
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.model import Array
from tests.conftest import ROOT

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def run(script: str, folder: Path, target: Path) -> None:
    path = ROOT / "calibration" / script
    subprocess.run([sys.executable, path, folder, target], check=True, capture_output=True)  # noqa: S603


def pictures(count: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def test_cifar10_from_the_python_version(tmp_path: Path) -> None:
    x, y = pictures(20, (32, 32, 3)), np.arange(20) % 10
    rows = x.transpose(0, 3, 1, 2).reshape(20, -1)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": rows, b"labels": y.tolist()}))
    run("make_cifar10.py", tmp_path, tmp_path)
    test = CalibrationSet.from_card(ROOT / "calibration" / "cifar10.toml", tmp_path / "cifar10_test.npz")
    np.testing.assert_array_equal(test.source.read("x", range(20)), x)
    np.testing.assert_array_equal(test.labels, y)
    assert test.class_names == CIFAR_CLASSES
    with np.load(tmp_path / "cifar10_calibration.npz") as made:
        assert np.bincount(made["y"]).tolist() == [10] * 10


def test_cifar10_from_images(tmp_path: Path) -> None:
    x = pictures(10, (32, 32, 3))
    for part in ("train", "test"):
        for name, image in zip(CIFAR_CLASSES, x, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / part / name / "0001.png")
    run("make_cifar10.py", tmp_path, tmp_path)
    with np.load(tmp_path / "cifar10_test.npz") as made:
        np.testing.assert_array_equal(made["x"], x)
        assert made["y"].tolist() == list(range(10))


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_from_idx_files(tmp_path: Path, packed: bool) -> None:
    x, y = pictures(20, (28, 28)), (np.arange(20) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", x), ("labels-idx1", y)):
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
            content = header + values.tobytes()
            name = f"{part}-{kind}-ubyte"
            if packed:
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / name).write_bytes(content)
    run("make_mnist.py", tmp_path, tmp_path)
    test = CalibrationSet.from_card(ROOT / "calibration" / "mnist.toml", tmp_path / "mnist_test.npz")
    np.testing.assert_array_equal(test.source.read("x", range(20))[..., 0], x)
    np.testing.assert_array_equal(test.labels, y)
