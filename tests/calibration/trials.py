"""What a card, an `.npz` or an image does to us: read whole, and the model run on what came out of it."""

from __future__ import annotations

import os
import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.errors import OnnxCbqError
from onnx_cbq.jobs.evaluate import evaluate
from onnx_cbq.verification import comparison
from tests.conftest import ROOT

LONGEST = 10.0  # seconds
MOST_MEMORY = 2 << 30
_MODEL = ROOT / "samples" / "digits_cnn.onnx"


@dataclass(frozen=True)
class Verdict:
    """How a trial ended.

    Attributes:
        end: "used", "refused" with one line, or what is a fault: "exception", "lines", "memory" or "time".
        what: the message.
    """

    end: str
    what: str

    @property
    def is_fault(self) -> bool:
        return self.end not in ("used", "refused")


class Trials:
    """A folder with valid samples, some of which each trial replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digits = np.load(ROOT / "calibration" / "digits.npz")
        np.savez(folder / "a.npz", x=digits["x"][:40], y=digits["y"][:40])
        for i in range(6):
            image = folder / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits["x"][i, :, :, 0] * 15).save(image)
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        (folder / "npz.toml").write_text('source = "b.npz"\nlayout = "NHWC"\nscale = 0.0625\n')
        ten = f"classes = {['cat', 'dog', *map(str, range(2, 10))]}"
        (folder / "images.toml").write_text(f'source = "images"\nresize = 9\ncrop = 8\nscale = 0.004\n{ten}\n')
        (folder / "plain.toml").write_text(f'source = "images"\nscale = 0.004\n{ten}\n')

    def card(self, content: bytes) -> Verdict:
        """A card beside valid samples."""
        (self.folder / "card.toml").write_bytes(content)
        return self._judge("card.toml", skip=False)

    def npz(self, content: bytes) -> Verdict:
        """An `.npz` that a valid card names."""
        (self.folder / "b.npz").write_bytes(content)
        return self._judge("npz.toml", skip=False)

    def image(self, suffix: str, content: bytes, *, skip: bool) -> Verdict:
        """An image among valid ones; with `skip` it is left out if it cannot be read, whatever it is."""
        path = self.folder / "images" / "cat" / f"changed.{suffix}"
        path.write_bytes(content)
        try:
            found = self._judge("images.toml" if skip else "plain.toml", skip=skip)
        finally:
            path.unlink()
        refused_all_the_same = skip and found.end == "refused"
        return Verdict("lines", f"not skipped: {found.what}") if refused_all_the_same else found

    def _judge(self, card: str, *, skip: bool) -> Verdict:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as the command does
            found = self._run(card, skip=skip)
        if time.perf_counter() - start > LONGEST:
            return Verdict("time", f"{time.perf_counter() - start:.1f} s: {found.what}")
        if 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MEMORY:
            return Verdict("memory", found.what)
        return found

    def _run(self, card: str, *, skip: bool) -> Verdict:
        try:
            data = CalibrationSet.from_card(self.folder / card, skip_unreadable=skip)
            everything = range(len(data.labels))
            data.source.read(data.source.inputs[0], everything[:200])
            evaluate(_MODEL, data)
        except OnnxCbqError as error:
            line = str(error)
            fits = "\n" not in line and len(line) < 1000
            return Verdict("refused" if fits else "lines", line)
        except Exception as error:  # noqa: BLE001, that is what is looked for
            return Verdict("exception", f"{type(error).__name__}: {error}")
        return Verdict("used", "")


def without_latency() -> None:
    """Measure no latencies: they take most of the time of a small evaluation."""
    comparison.median_latency = lambda sessions, *_: [0.0] * len(sessions)  # type: ignore[attr-defined]
