"""Small labelled files, packed in every way that a card takes: whose samples are told apart by a number in them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.opening import open_source
from onnx_cbq.calibration.places import located
from onnx_cbq.calibration.sources import Source


def image(value: int, size: int = 4) -> bytes:
    """A PNG of one grey."""
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


# Class folders, out of order.
PETS = {"dog/1.png": image(3), "cat/b.png": image(2), "cat/a.png": image(1)}


def pack(path: Path, files: Mapping[str, bytes], mode: Literal["w", "a"] = "w") -> Path:
    """An archive as the ending of its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if path.suffix != ".tar":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def opened(path: Path | str, *, skip_unreadable: bool = False, **settings: Any) -> Source:
    """The source that a card names."""
    return open_source(Card(located(path), **settings), skip_unreadable=skip_unreadable)


def values(source: Source) -> list[int]:
    """The number in each sample."""
    samples = source.read("x", range(len(source.labels)))
    return [int(sample.ravel()[0]) for sample in samples]
