"""The trade-off of bits and accuracy as an SVG that reads on light and on dark pages.

Draws the `curve` of each JSON that `onnx-cbq quantize --curve --json FILE` wrote: top-1 and the accuracy of whichever
class is worst, over the average bits per weight, and the float model's as horizontal lines. Needs matplotlib:
`pip install '.[bench]'`.

python benchmarks/picture.py curve.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

# Okabe and Ito's colours, those whose contrast is at least 3 on white and on black; one per file.
COLOURS = ("#d55e00", "#0a85c7", "#009e73", "#b5679a")
# Contrast above 4 on white and on black.
GREY = "#808080"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    # The same bytes for the same figures.
    "svg.hashsalt": "onnx-cbq",
}


@dataclass(frozen=True)
class Series:
    """One accuracy of one file: over the bits, and of the float model."""

    label: str
    bits: list[float]
    accuracies: list[float]
    reference: float
    is_worst: bool


def worst(evaluation: dict[str, Any]) -> float:
    """The accuracy of the worst class, in percent."""
    return float(min(evaluation["per_class"].values()))


def read(path: Path) -> dict[str, Any]:
    """What quantize wrote; ends the run with one line where it has no curve."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read: {error}") from None
    if not content.get("curve"):
        raise SystemExit(f"{path}: has no curve; write it by onnx-cbq quantize --curve --json {path}")
    return content


def series(content: dict[str, Any]) -> tuple[Series, Series]:
    """Top-1 and worst class."""
    points, reference = content["curve"], content["float"]
    bits = [point["average_bits"] for point in points]
    top1 = Series("top-1", bits, [point["top1"] for point in points], reference["top1"], is_worst=False)
    return top1, Series("worst class", bits, [worst(point) for point in points], worst(reference), is_worst=True)


def draw_series(axes: Any, entry: Series, colour: str) -> None:
    """A line with its name above its right end, and the float model's accuracy behind it."""
    axes.axhline(entry.reference, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)) if entry.is_worst else "solid")
    face = {"markerfacecolor": "none"} if entry.is_worst else {}
    line = "dashed" if entry.is_worst else "solid"
    axes.plot(
        entry.bits, entry.accuracies, color=colour, marker="o", markersize=5, linewidth=1.8, linestyle=line, **face
    )


def name_reference(axes: Any, entry: Series) -> None:
    """The float model's accuracy in words beside its line, top-1 above and the worst class below: they may be close."""
    side, offset = ("top", -1) if entry.is_worst else ("bottom", 1)
    place = {"xytext": (8, offset), "textcoords": "offset points", "xycoords": ("axes fraction", "data")}
    axes.annotate(f"float {entry.label} {entry.reference:.2f}", (1, entry.reference), va=side, **place)


def plot(contents: dict[str, dict[str, Any]], title: str) -> Any:
    """A figure of all files, by their names."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, content), colour in zip(contents.items(), COLOURS, strict=False):
        for entry in series(content):
            draw_series(axes, entry, colour)
            label = entry.label if len(contents) == 1 else f"{name}, {entry.label}"
            axes.lines[-1].set_label(label)
    content = next(iter(contents.values()))
    for entry in series(content):
        name_reference(axes, entry)
    ticks = sorted({round(2 * point["average_bits"]) / 2 for point in content["curve"]})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    samples = f"{content['float']['samples']:,} samples, {content['calibration_samples']:,} of them to calibrate"
    axes.set_xlabel(f"average bits per weight (log scale)  ·  measured on {samples}", loc="left", fontsize=9)
    axes.set_title(title, loc="left", fontsize=11, pad=12)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.legend(loc="lower right", frameon=False, handlelength=3)
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, nargs="+", metavar="CURVE.json", help=f"at most {len(COLOURS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "tradeoff.svg")
    parser.add_argument("--title", default="accuracy, %", help="what is said above the picture")
    options = parser.parse_args()
    if len(options.curves) > len(COLOURS):
        parser.error(f"expected at most {len(COLOURS)} files, got {len(options.curves)}")
    contents = {path.stem: read(path) for path in options.curves}
    with plt.rc_context(STYLE):
        plot(contents, options.title).savefig(options.output, transparent=True, metadata={"Date": None})
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
