"""The command `quantize`: its options, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_cbq import goals, methods, storage
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli.config_file import read_config
from onnx_cbq.cli.console import show
from onnx_cbq.cli.options import Flag, Owner, command, fields_for, flags_of, given_values, refuse_unknown, refuse_unused
from onnx_cbq.cli.outputs import Inputs, beside, check_outputs
from onnx_cbq.cli.progress import progress_bars
from onnx_cbq.cli.route import route_of
from onnx_cbq.cli.shared import (
    AllClasses,
    CacheFolder,
    ConfigPath,
    JsonPath,
    ModelPath,
    NoCache,
    Quiet,
    ReportPath,
    SkipUnreadable,
    SourcePath,
    cache_folder,
)
from onnx_cbq.execution.settings import ExecutionConfig
from onnx_cbq.jobs import quantize as job
from onnx_cbq.jobs.choice import make_goal, make_method, make_storage
from onnx_cbq.jobs.data_free import DataFreeConfig
from onnx_cbq.jobs.settings import CURVE, QuantizeConfig
from onnx_cbq.jobs.written_settings import TABLES, as_table
from onnx_cbq.learned.settings import LearnedConfig
from onnx_cbq.methods import Entropy, SharedValues
from onnx_cbq.report import text
from onnx_cbq.report.plot import TradeOff
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.settings import CHOOSE, FIRST, OUTPUT, check
from onnx_cbq.stages.rounding import Learn
from onnx_cbq.storage.files import weights_beside, write_text
from onnx_cbq.training.settings import RefineConfig

ABOUT = "Quantize MODEL and prove what it costs: accuracy overall and per class, bytes, latency."
REFINE, DATA_FREE, FULL, LEARNED = "--refine", "--data-free", "--report-full", f"--rounding {Learn.name}"
# Options that mean something with --data-free; beside them those of its own settings.
_WITHOUT_DATA = {"bits", "storage", "keep_quantized"}

# Parameters that are no setting: files, and switches that bring other settings in.
FIXED: Mapping[str, Any] = {
    "model": ModelPath,
    "data": Annotated[
        Path | None,
        typer.Option(
            metavar="CARD",
            help="Calibration card: a TOML file; needed but for --data-free (default: none).",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ],
    "output": Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.onnx",
            help="File to write (default: MODEL with the ending .quantized.onnx/.cbqz).",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ],
    "refine": Annotated[
        bool | None,
        typer.Option(
            REFINE,
            help="Train weights, scales and biases once the bits are chosen; needs torch (default: no).",
            show_default=False,
            rich_help_panel=FIRST,
        ),
    ],
    "data_free": Annotated[
        bool | None,
        typer.Option(
            DATA_FREE,
            help="Use nothing but the weights; activations stay float (default: no).",
            show_default=False,
            rich_help_panel=CHOOSE,
        ),
    ],
    "curve": Annotated[
        bool | None,
        typer.Option(
            "--curve",
            help="Also show the whole trade-off, 1.5 to 8 bits on average (default: no).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    "source": SourcePath,
    "skip_unreadable": SkipUnreadable,
    "cache": CacheFolder,
    "no_cache": NoCache,
    "config": ConfigPath,
    "json": JsonPath,
    "report": ReportPath,
    "report_full": Annotated[
        bool | None,
        typer.Option(
            FULL,
            help="--report: also measure what each layer of the file costs by itself (default: no).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    "all_classes": AllClasses,
    "quiet": Quiet,
}
# Tables with the settings of a method.
_METHODS = ("search", "cbq", "differentiable")
# Those that mean nothing without samples.
_FOR_SAMPLES = FIXED.keys() - {"model", "output", "json", "quiet", "config", "data_free"}
_PATHS = {"model", "data", "output", "source", "json", "report", "cache"}


@dataclass(frozen=True)
class _Run:
    """What a run was told.

    Attributes:
        fixed: files and switches by name.
        values: options by flag.
        tables: of settings that are no options.
        groups: the file that groups of classes are read from.
    """

    fixed: Mapping[str, Any]
    values: Mapping[str, object]
    tables: Mapping[str, Mapping[str, Any]]
    groups: Path | None = None

    def path(self, name: str) -> Path | None:
        """A file."""
        found = self.fixed.get(name)
        return None if found is None else Path(found)

    def says(self, name: str) -> bool:
        """Whether a switch is on."""
        return bool(self.fixed.get(name))


def owners() -> list[Owner]:
    """The classes whose fields are options of the command, members of tables with what brings them in."""
    return [
        Owner(QuantizeConfig),
        *(Owner(kind, _option_of(kind)) for kind in (*methods.METHODS, *methods.CODEBOOKS)),
        *(Owner(kind, f"--storage {kind.name}") for kind in storage.STORAGES),
        *(Owner(kind) for kind in goals.GOALS),
        Owner(LearnedConfig, LEARNED),
        Owner(RefineConfig, REFINE),
        Owner(DataFreeConfig, DATA_FREE),
        Owner(ExecutionConfig),
    ]


def build() -> Callable[..., None]:
    """The command, with an option for every setting that there is."""
    flags = flags_of(owners())
    return command(lambda **given: quantize(flags, given), flags, FIXED, ABOUT)


def quantize(flags: Sequence[Flag], given: Mapping[str, Any]) -> None:
    """Run the command with what was typed, a parameter by its name."""
    run = _told(flags, given)
    model, kind = Path(run.fixed["model"]), storage.find_storage(str(run.values.get("storage", "int8")))
    destination = run.path("output") or beside(model, kind.suffix)
    _refuse_ignored(flags, run)
    if run.says("data_free"):
        _quantize_data_free(flags, run, model, destination)
        return
    card_path, source = run.path("data"), run.fixed.get("source")
    if card_path is None:
        raise typer.BadParameter("give a calibration card with --data, or use --data-free")
    config = _config(flags, run)
    goal = config.choice.goal
    if goal.finds_bits and "bits" in run.values:
        raise typer.BadParameter(f"{goal.option} finds the bits by itself; leave out --bits")
    cache = cache_folder(run.path("cache"), without=run.says("no_cache"))
    check_outputs(
        *(
            destination,
            run.path("json"),
            run.path("report"),
            weights_beside(destination),
        ),
        inputs=Inputs((model,), card_path, source, (run.groups, run.path("config"))),
    )
    runs = ExecutionConfig(**fields_for(ExecutionConfig, flags, run.values))
    card = CalibrationSet.from_card(card_path, source, skip_unreadable=run.says("skip_unreadable"))
    with progress_bars(quiet=run.says("quiet"), route=route_of(config, card)) as progress:
        result = job.quantize(model, card, config, progress, cache, runs)
        result.save(destination)
        if run.says("report_full"):
            result = job.measure_layers(result, model, destination, card, progress)
    if (page := run.path("report")) is not None:
        result.report(page)
    _tell(run, result.to_json(), lambda: text.result_table(result, destination, all_classes=run.says("all_classes")))
    if config.curve and not run.says("quiet"):
        show(text.curve_table(result), TradeOff(result))


def _told(flags: Sequence[Flag], given: Mapping[str, Any]) -> _Run:
    """What was typed, and what a file says beside it."""
    fixed = {name: given.get(name) for name in FIXED if given.get(name) is not None}
    if "config" not in fixed:
        return _Run(fixed, given_values(flags, given, {}), {}, _groups(given.get("clusters")))
    path = Path(str(fixed["config"]))
    where, stored = f"--config {path}", read_config(path)
    names = {name.replace("_", "-"): name for name in FIXED if name not in ("model", "config")}
    refuse_unknown(stored, [*names, *(name for flag in flags for name in flag.names), *TABLES], where)
    tables = {name: as_table(name, stored.pop(name), where) for name in TABLES if name in stored}
    there = {names[name]: stored.pop(name) for name in list(stored) if name in names}
    for name, value in there.items():
        wanted = str if name in _PATHS else bool
        check(isinstance(value, wanted), f"{where}: {name}", "a path" if wanted is str else "true or false", value)
    if "cache" in fixed or "no_cache" in fixed:
        there = {name: value for name, value in there.items() if name not in ("cache", "no_cache")}
    groups = _groups(given.get("clusters") or stored.get("clusters"))
    return _Run({**there, **fixed}, given_values(flags, given, stored), tables, groups)


def _groups(clusters: object) -> Path | None:
    """The file that `--clusters` names, where it is no number."""
    return Path(clusters) if isinstance(clusters, str) and not clusters.isdecimal() else None


def _config(flags: Sequence[Flag], run: _Run) -> QuantizeConfig:
    """The settings, with the members that were named."""
    values = run.values
    given = {owner.kind: fields_for(owner.kind, flags, values) for owner in owners()}
    common, training = given.pop(QuantizeConfig), {**run.tables.get("refinement", {}), **given[RefineConfig]}
    learning = {**run.tables.get("learned", {}), **given.pop(LearnedConfig)}
    # What is typed stands behind the tables, and wins.
    tables = {TABLES[name]: dict(run.tables[name]) for name in _METHODS if name in run.tables}
    given = {**tables, **given}
    stages = {name: TABLES[name](**run.tables[name]) for name in ("scoring", "compensation") if name in run.tables}
    search = RateDistortionConfig(**run.tables.get("search", {}))
    given |= {Entropy: {"held_back": search.held_back}, SharedValues: {"held_back": search.held_back}}
    kept = make_storage(common.pop("storage", QuantizeConfig.storage), given)
    codebook = common.pop("codebook", QuantizeConfig.codebook)
    scope = str(values.get("codebook-scope", QuantizeConfig.codebook_scope))
    method = make_method(common.pop("method", QuantizeConfig.method), (codebook, scope), kept, given)
    bits = common.get("bits", QuantizeConfig.bits)
    fit = method.fit(kept)
    whole = fit is not None and not fit.fractions
    return QuantizeConfig(
        **common,
        **stages,
        method=method,
        storage=kept,
        goal=make_goal(bits, given),
        curve=tuple(bits for bits in CURVE if not whole or bits.is_integer()) if run.says("curve") else (),
        learned=LearnedConfig(**learning),
        refine=RefineConfig(**training) if run.says("refine") else None,
    )


def _refuse_ignored(flags: Sequence[Flag], run: _Run) -> None:
    """An option that changes nothing is a mistake of whoever gave it."""
    values, data_free = run.values, run.says("data_free")
    if data_free:
        mine = {flag.name for flag in flags if any(owner.option == DATA_FREE for _, owner in flag.settings)}
        others = {f"--{name}" for name in values.keys() - mine - _WITHOUT_DATA}
        others |= {f"--{name.replace('_', '-')}" for name in _FOR_SAMPLES if run.fixed.get(name) not in (None, False)}
        others |= {f"[{name}]" for name in run.tables}
        if others:
            reason = "--data-free uses no samples and leaves activations float"
            raise typer.BadParameter(f"{reason}; leave out {', '.join(sorted(others))}")
        return
    said = {
        f"--method {values.get('method', QuantizeConfig.method)}",
        f"--codebook {values.get('codebook', QuantizeConfig.codebook)}",
        f"--storage {values.get('storage', QuantizeConfig.storage)}",
        f"--rounding {values.get('rounding', QuantizeConfig.rounding)}",
        *([REFINE] if run.says("refine") else []),
        "",
    }
    refuse_unused(flags, values, lambda owner: owner.option in said)
    default = f"--method {QuantizeConfig.method}"
    for name, wanted in (
        ("cbq", "--method cbq"),
        ("differentiable", "--method differentiable"),
        ("search", default),
        ("learned", LEARNED),
        ("refinement", REFINE),
    ):
        if name in run.tables and wanted not in said:
            raise typer.BadParameter(f"only for {wanted}; leave out [{name}]")
    if run.says("report_full") and run.path("report") is None:
        raise typer.BadParameter(f"only for --report; leave out {FULL}")


def _quantize_data_free(flags: Sequence[Flag], run: _Run, model: Path, target: Path) -> None:
    common = {"bits": QuantizeConfig.bits, **{name: run.values[name] for name in _WITHOUT_DATA if name in run.values}}
    config = DataFreeConfig(**{**common, **fields_for(DataFreeConfig, flags, run.values)})
    check_outputs(
        target, run.path("json"), weights_beside(target), inputs=Inputs((model,), others=(run.path("config"),))
    )
    result = job.quantize_without_data(model, config)
    result.save(target)
    _tell(run, result.to_json(), lambda: text.data_free_table(result, target))


def _tell(run: _Run, json: str, table: Callable[[], Any]) -> None:
    """Write the figures, and show the table."""
    path = run.path("json")
    if path:
        write_text(path, json)
    if not run.says("quiet"):
        show(table())


def _option_of(kind: type) -> str:
    """How a user asks for a method, whatever its fields."""
    name = kind.name  # type: ignore[attr-defined]
    return f"--codebook {name}" if kind in methods.CODEBOOKS else f"--method {name}"
