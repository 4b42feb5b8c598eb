"""The command `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from onnx_cbq.cli.console import show
from onnx_cbq.cli.shared import ModelPath
from onnx_cbq.jobs import inspect as job
from onnx_cbq.jobs.data_free import layer_statistics
from onnx_cbq.report import text as report


def inspect(
    model: ModelPath,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Show how each scheme of --data-free fits each layer (default: no).", show_default=False
        ),
    ] = False,
    bits: Annotated[int, typer.Option(metavar="B", help="Width that --weights looks at, 2 to 8.")] = 4,
    per_tensor: Annotated[
        bool,
        typer.Option(
            "--per-tensor", help="--weights: one scale per layer (default: one per channel).", show_default=False
        ),
    ] = False,
) -> None:
    """List the layers of a float MODEL, or the bits per layer of one that onnx-cbq made."""
    if weights:
        show(report.weights_table(layer_statistics(model, bits, per_tensor=per_tensor), bits))
        return
    found = job.inspect(model)
    if found.plan is not None:
        show(report.plan_table(found.plan, found.unsafe))
    elif found.products:
        show(report.products_table(found.products, found.unsafe))
    if found.layers.layers:
        show(report.float_table(found.layers))


def build() -> Callable[..., None]:
    """The command."""
    return inspect
