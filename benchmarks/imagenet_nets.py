"""Quantize torchvision's ImageNet nets from both exporters: seconds, peak memory and agreement, as a Markdown table.

python benchmarks/imagenet_models.py FOLDER    # in an environment with torch, torchvision and onnxscript
python benchmarks/imagenet_nets.py FOLDER [--match 'resnet*'] [--bits 8] [--quick] [--json figures.json]

Each net is quantized by the command line in a process of its own, to 4 bits as by default and to 8 bits everywhere,
with 8-bit activations, and its predictions of 100 other images are held against the float net's. Seconds are those of
the whole command, beside whatever else runs: the limits are for two idle cores. `--quick` rounds to nearest and shows
within a minute a net what is refused and what stays float. Exit code 1 if a limit was missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx
from children import UNLIMITED, ChildError, run_child
from common import Requirements, print_table

HEADER = (
    *("model", "exporter", "nodes", "million weights", "left float, %"),
    *(f"{title}: {what}" for title in ("4 bits", "8 bits") for what in ("seconds", "GB", "agreement, %")),
)
SETTINGS = {"4 bits": ("--bits", "4"), "8 bits": ("--method", "uniform", "--bits", "8")}
QUICK = ("--rounding", "nearest", "--no-equalize")
# Seconds and gigabytes that a net may take at 4 bits.
LIMITS = {"resnet50": (600, 5), "vit_b_16": (1200, 8)}
LEAST_AGREEMENT = 97
# Percent of the weights: biases and normalizations are nearly all of it.
MOST_LEFT_FLOAT = 3


@dataclass(frozen=True)
class Found:
    """What became of a net at one setting.

    Attributes:
        refusal: what the command said where it failed, else empty; then there are no figures.
        gigabytes: the most memory that the process had.
        left_float: of the weights, in percent.
        agreement: of the other images, how many get the float net's class, in percent.
        stages: seconds of each stage.
    """

    refusal: str
    seconds: float = 0.0
    gigabytes: float = 0.0
    left_float: float = 100.0
    agreement: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Its columns of the table."""
        if self.refusal:
            return ["", "", "refused"]
        return [f"{self.seconds:.0f}", f"{self.gigabytes:.1f}", f"{self.agreement:.0f}"]


def quantize(model: Path, options: Sequence[str]) -> Found:
    """Quantize one net, and hold it against the float one on the other images."""
    model = model.resolve()
    name = model.stem.rpartition("_")[0]
    data = ("--data", model.with_name("images.toml"), "--source")
    calibration, others = (model.with_name(f"{name}_{part}.npz") for part in ("calibration", "others"))
    command: tuple[str | Path, ...] = (sys.executable, "-m", "onnx_cbq")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        written = ("--json", "report.json", "--quiet")
        target = "quantized.onnx"
        try:
            asked = (
                *command,
                "quantize",
                model,
                *data,
                calibration,
                "--no-cache",
                *options,
                "--output",
                target,
                *written,
            )
            spent = run_child(asked, scratch, UNLIMITED)
            made = json.loads((scratch / "report.json").read_text())
            run_child((*command, "evaluate", target, *data, others, "--reference", model, *written), scratch, UNLIMITED)
        except ChildError as error:
            return Found(str(error))
        agreement = json.loads((scratch / "report.json").read_text())["agreement"]
    figures = (spent.seconds, spent.peak / 1e9, made["weights_left_float"], agreement, made["seconds"], made["notes"])
    return Found("", *figures)


def add_figures(model: Path, settings: Mapping[str, Sequence[str]], known: dict[str, Any], store: Path | None) -> None:
    """Add what is not known of one net, and store it at once."""
    mine = known.setdefault(model.stem, {})
    for title, options in settings.items():
        if title not in mine:
            found = quantize(model, options)
            print(f"{model.stem}, {title}: {found}", file=sys.stderr, flush=True)
            mine[title] = asdict(found)
            if store is not None:
                store.write_text(json.dumps(known, indent=1))


def print_figures(models: Sequence[Path], found: Mapping[str, Mapping[str, Found]]) -> None:
    """A row per net."""
    rows = []
    for model in models:
        name, _, exporter = model.stem.rpartition("_")
        graph = onnx.load(model).graph
        weights = sum(math.prod(tensor.dims) for tensor in graph.initializer)
        mine = found[model.stem]
        left = max(one.left_float for one in mine.values())
        cells = [cell for title in SETTINGS for cell in (mine[title].cells() if title in mine else [""] * 3)]
        rows.append([name, exporter, str(len(graph.node)), f"{weights / 1e6:.1f}", f"{left:.2f}", *cells])
    print_table(HEADER, rows)


def hold(found: Mapping[str, Mapping[str, Found]]) -> int:
    """Hold all nets against the limits; the exit code."""
    requirements = Requirements()
    for stem, mine in found.items():
        for title, one in mine.items():
            what = f"{stem}, {title}"
            requirements.at_most(f"{what}: refusals{': ' * bool(one.refusal)}{one.refusal}", bool(one.refusal), 0)
            requirements.at_most(f"{what}: weights left float, %", one.left_float, MOST_LEFT_FLOAT)
        if "8 bits" in mine:
            requirements.at_least(f"{stem}, 8 bits: agreement, %", mine["8 bits"].agreement, LEAST_AGREEMENT)
        limits = LIMITS.get(stem.rpartition("_")[0])
        if limits and "4 bits" in mine:
            requirements.at_most(f"{stem}, 4 bits: seconds", mine["4 bits"].seconds, limits[0])
            requirements.at_most(f"{stem}, 4 bits: GB", mine["4 bits"].gigabytes, limits[1])
    return requirements.exit_code


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--match", default="*", help="pattern of names")
    parser.add_argument("--bits", choices=("4", "8"), help="one of the two settings only")
    parser.add_argument("--quick", action="store_true", help="round to nearest, without equalizing")
    parser.add_argument("--json", type=Path, help="keep all figures here; what it holds already is not run again")
    arguments = parser.parse_args()
    settings = {
        title: (*options, *(QUICK if arguments.quick else ()))
        for title, options in SETTINGS.items()
        if arguments.bits in (None, title[0])
    }
    models = sorted(path for path in arguments.folder.glob("*.onnx") if fnmatch(path.stem, arguments.match))
    if not models:
        sys.exit(f"{arguments.folder} holds no models; make them with benchmarks/imagenet_models.py")
    store = arguments.json
    known: dict[str, Any] = json.loads(store.read_text()) if store and store.exists() else {}
    for model in models:
        add_figures(model, settings, known, store)
    found = {
        model.stem: {title: Found(**one) for title, one in known[model.stem].items() if title in settings}
        for model in models
    }
    print_figures(models, found)
    return hold(found)


if __name__ == "__main__":
    sys.exit(main())
