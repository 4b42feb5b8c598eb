"""Options that several commands share and that are no setting of anything: files, and what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_cbq import targets
from onnx_cbq.settings import ACTIVATIONS, FIRST, OUTPUT, SAMPLES
from onnx_cbq.system.user_cache import user_folder

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
CardPath = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="CARD",
        help="Calibration card: a TOML file.",
        show_default=False,
        rich_help_panel=FIRST,
    ),
]
SourcePath = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="PATH",
        help="Samples to use, a path or a URL (default: the card's source).",
        show_default=False,
        rich_help_panel=SAMPLES,
    ),
]
SkipUnreadable = Annotated[
    bool | None,
    typer.Option(
        "--skip-unreadable",
        help="Leave out files of samples that cannot be read, and count them (default: stop at the first).",
        show_default=False,
        rich_help_panel=SAMPLES,
    ),
]
Logits = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the output that holds the class scores (default: the only one of shape (samples, classes)).",
        show_default=False,
        rich_help_panel=SAMPLES,
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="|".join(target.name for target in targets.TARGETS),
        help="Runtime and processor that the file is for; cpu is onnxruntime on any (default: cpu).",
        show_default=False,
        rich_help_panel=ACTIVATIONS,
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Folder that runs share and go on from; onnx-cbq cache lists it (default: the user's cache folder).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
NoCache = Annotated[
    bool | None,
    typer.Option(
        "--no-cache",
        help="Keep nothing for other runs, and use nothing of theirs (default: a cache).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Take options from a file: TOML by name, or the JSON of --json; the command line wins (default: none).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
JsonPath = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write all figures to this file (default: none).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ReportPath = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write all of it as one HTML page for a browser (default: none).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool | None,
    typer.Option(
        "--quiet",
        help="No progress bars and no table (default: both).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
AllClasses = Annotated[
    bool | None,
    typer.Option(
        "--all-classes",
        help="Show every class, and not only the ten that lost most, or are worst (default: no).",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]


def cache_folder(named: Path | None, *, without: bool) -> Path | None:
    """Where a run keeps what others may use; None for nowhere.

    Raises:
        BadParameter: a folder, and none, were asked for.
    """
    if named is not None and without:
        raise typer.BadParameter("expected one of them, got both --cache and --no-cache")
    return None if without else named or user_folder()
