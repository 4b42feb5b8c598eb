"""Beside other tools: accuracy, bytes, latency, time and memory, as a Markdown table.

Every tool gets the same prepared calibration samples and runs by itself, in an environment of its own that is made here
(kept in `--environments`), as a process whose wall time and peak memory are taken. What comes of it is measured here,
in one way: top-1 and the worst class on the test samples, bytes of the file, latency at batch 1 taking turns with the
float model. A row that cannot be had says why, and the table goes on.

Without a model it is ResNet-20 on CIFAR-10. `--rows` names tools: ours, onnxruntime, aimet, quark, nncf, onnxsim.

python benchmarks/peers.py [MODEL --data CARD]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from children import ChildError, Limits, Spent, make_environment, run_child
from common import CARDS, data_file, print_table
from peer_rows import ALWAYS, OURS, PEERS, ROWS, Row

from onnx_cbq import CalibrationSet, OnnxCbqError, evaluate
from onnx_cbq.calibration.draw import draw
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.records import Evaluation
from onnx_cbq.runtime import Session, median_latency, versions
from onnx_cbq.system.processor import processor_kind

HEADER = ("tool", "what", "bits", "top-1, %", "worst class, %", "bytes", "latency, ms", "beside float")
COSTS = ("seconds", "peak MB")
MODEL, DATA = "resnet20_cifar10.onnx", "cifar10"
# The file that is made, in a folder of its own: some come with others beside them.
MADE = "made.onnx"
LATENCY_SECONDS = 3.0
SEED = 0


@dataclass(frozen=True)
class Measured:
    """What a file is worth: median milliseconds of a run at batch 1, and those of the float model beside it."""

    figures: Evaluation
    latency: float
    float_latency: float


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
        work: the float model with the calibration samples, of which `drawn` are used.
        test: the samples that files are measured on.
        folder: where the samples are written.
        environments: the folder of the tools' environments.
    """

    model: Path
    work: Workload
    drawn: Indices
    test: CalibrationSet
    folder: Path
    environments: Path
    limits: Limits

    @property
    def samples(self) -> Path:
        """The drawn samples, prepared."""
        return self.folder / "samples.npz"

    @property
    def card(self) -> Path:
        """A card of those samples."""
        return self.folder / "samples.toml"

    def write_samples(self) -> None:
        """Write both."""
        inputs = self.work.samples.read(self.drawn)
        about = {"y": self.work.samples.truth[self.drawn], "class_names": np.array(self.work.class_names)}
        np.savez(self.samples, **inputs, **about)  # type: ignore[arg-type]  # of its flag
        self.card.write_text(f'source = "{self.samples.name}"\n', encoding="utf-8")

    def measure(self, path: Path) -> Measured:
        """Run a file on the test samples, and in turns with the float model.

        Raises:
            OnnxCbqError: it does not run.
        """
        figures = evaluate(path, self.test).model
        one = self.work.samples.read(np.zeros(self.work.samples.fixed_batch or 1, np.int64))
        spent = median_latency([Session(path), Session(self.model)], one, LATENCY_SECONDS)
        return Measured(figures, 1000 * spent[0], 1000 * spent[1])


def commands(bench: Bench, row: Row, bits: int) -> list[tuple[str, list[str | Path]]]:
    """How a row is made: what each way is called, and a command that writes `MADE` in the current folder.

    Raises:
        ChildError: the tool cannot be installed.
    """
    if row.tool == OURS:
        fixed = ("--bits", str(bits), "--storage", "packed", "-o", MADE, "--quiet")
        data = () if "--data-free" in row.ways else ("--data", bench.card, "--samples", "0", "--no-cache")
        ours: list[str | Path] = [sys.executable, "-m", "onnx_cbq", "quantize", bench.model, *fixed, *data, *row.ways]
        return [("", ours)]
    peer = PEERS[row.tool]
    python = make_environment(bench.environments, row.tool, peer.packages)
    command: list[str | Path] = [python, peer.script, bench.model, bench.samples, MADE]
    options = ("--bits", str(bits), "--processor", processor_kind())
    several = len(row.ways) > 1
    return [(way if several else "", [*command, *options, "--way", way]) for way in row.ways]


def best(bench: Bench, row: Row, bits: int) -> tuple[str, Measured, Spent]:
    """What the best way is called, and why others failed; what it is worth and what it took.

    Raises:
        ChildError: no way makes a file that runs.
    """
    if row.widths is not None and bits not in row.widths:
        raise ChildError(f"has no weights of {bits} bits")
    found: list[tuple[str, Measured, Spent]] = []
    failed: list[str] = []
    for way, command in commands(bench, row, bits):
        with tempfile.TemporaryDirectory() as folder:
            try:
                spent = run_child(command, Path(folder), bench.limits)
                found.append((way, bench.measure(Path(folder) / MADE), spent))
            except (ChildError, OnnxCbqError) as error:
                reason = " ".join(str(error).split())
                failed.append(f"{way}: {reason}" if way else reason)
    if not found:
        raise ChildError("; ".join(failed))
    way, measured, spent = max(found, key=lambda each: each[1].figures.top1)
    return "; ".join((way, *failed)), measured, spent


def cells(name: str, what: str, bits: str, measured: Measured, spent: Spent | None) -> list[str]:
    """A row of the table."""
    figures = measured.figures
    return [
        *(name, what, bits, f"{figures.top1:.2f}", f"{figures.per_class[figures.worst_class]:.2f}"),
        *(f"{figures.bytes:,}", f"{measured.latency:.3f}", f"{measured.latency / measured.float_latency:.2f}"),
        *(("", "") if spent is None else (f"{spent.seconds:.0f}", f"{spent.peak / 1e6:,.0f}" if spent.peak else "")),
    ]


def make_row(bench: Bench, row: Row, bits: int) -> list[str]:
    """A row, or why there is none."""
    tool = "onnx-cbq" if row.tool == OURS else PEERS[row.tool].packages[0].replace("==", " ")
    name = f"{tool}, {row.title}"
    form = row.form.format(bits)
    try:
        way, measured, spent = best(bench, row, bits)
    except ChildError as error:
        made = [name, str(error), form, *[""] * (len(HEADER) + len(COSTS) - 3)]
    else:
        made = cells(name, way, form, measured, spent)
    print(" | ".join(made), file=sys.stderr)
    return made


def all_rows(bench: Bench, tools: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The float model, then every row of these tools at each of the widths."""
    made = [cells("float", "", "float", bench.measure(bench.model), None)]
    for row in (row for row in ROWS if row.tool in tools):
        always = row.widths == (ALWAYS,)
        made += [make_row(bench, row, bits) for bits in ((ALWAYS,) if always else widths)]
    return made


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="default: ResNet-20, with its samples")
    parser.add_argument("--data", type=Path, metavar="CARD", help="of the calibration samples; needed with MODEL")
    parser.add_argument("--source", metavar="PATH", help="its samples (default: the card's source)")
    parser.add_argument("--test", type=Path, metavar="CARD", help="of the test samples (default: that of --data)")
    parser.add_argument(
        "--test-source", metavar="PATH", help="their samples (default: with --test its source, else what is not drawn)"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], metavar="B", help="default: 4 3")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="to calibrate with (default: 1000)")
    parser.add_argument("--rows", default=",".join((OURS, *PEERS)), metavar="TOOL,...", help="default: all")
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="of a row at most (default: 60)")
    parser.add_argument("--gigabytes", type=float, default=12, metavar="G", help="of a row at most (default: 12)")
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        default=os.environ.get("ONNX_CBQ_PEERS", Path.home() / ".cache" / "onnx-cbq" / "peers"),
        help="where the environments of the tools are kept (default: ONNX_CBQ_PEERS, else %(default)s)",
    )
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - {OURS, *PEERS}:
        parser.error(f"--rows: no tool {sorted(unknown)[0]!r}; expected some of {', '.join((OURS, *PEERS))}")
    if options.model is None:
        options.model, options.data = data_file(MODEL), CARDS / f"{DATA}.toml"
        options.source, options.test_source = (data_file(f"{DATA}_{part}.npz") for part in ("calibration", "test"))
    elif options.data is None:
        parser.error("MODEL needs --data CARD")
    return options


def test_samples(options: argparse.Namespace, work: Workload, drawn: Indices) -> CalibrationSet:
    """The samples to measure on: those that are asked for, else those of the card that are not drawn."""
    if options.test or options.test_source:
        return CalibrationSet.from_card(options.test or options.data, options.test_source)
    rest = np.setdiff1d(np.arange(len(work.samples.labels)), drawn)
    if not len(rest):
        sys.exit(f"--samples {options.samples} takes all samples of {options.data}; give --test or fewer --samples")
    return CalibrationSet.from_arrays(work.samples.read(rest), work.samples.truth[rest], work.class_names)


def main() -> None:
    """Make all rows and print them."""
    options = read_options()
    model = options.model.resolve()
    work = prepare(model, CalibrationSet.from_card(options.data, options.source))
    drawn = draw(work.samples, work.class_names, options.samples, SEED).indices
    test = test_samples(options, work, drawn)
    limits = Limits(options.minutes, options.gigabytes)
    with tempfile.TemporaryDirectory() as folder:
        environments = options.environments.resolve()
        bench = Bench(model, work, drawn, test, Path(folder), environments, limits)
        bench.write_samples()
        rows = all_rows(bench, options.rows, options.bits)
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(
        f"{model.name}, {len(drawn):,} calibration and {len(test.labels):,} test samples; {processor_kind()}; {used}\n"
    )
    print_table((*HEADER, *COSTS), rows)


if __name__ == "__main__":
    main()
