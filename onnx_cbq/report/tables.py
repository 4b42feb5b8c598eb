"""What tables of a terminal share: columns, and how accuracies are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from onnx_cbq.pages.figures import percent
from onnx_cbq.records import Evaluation

# Of more classes only those that lost most, or are worst, are listed, unless all are asked for.
LISTED_CLASSES = 10


def table_of(first: str, *columns: str) -> Table:
    """A table without lines; the first column is text, the others are figures."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def accuracy_name(evaluation: Evaluation) -> str:
    """What `top1` is called."""
    return "right answers, %" if evaluation.has_several else "top-1 accuracy, %"


def worst(evaluation: Evaluation, names: Sequence[str]) -> str:
    """The lowest accuracy of a class, and its name."""
    m = evaluation.worst_class
    return f"{percent(evaluation.per_class[m])} ({names[m]})"


def listed(classes: Sequence[int], rank: Callable[[int], Any], *, all_classes: bool) -> list[int]:
    """The classes to show: all in their order where they are few or asked for, else those of the lowest ranks."""
    few = all_classes or len(classes) <= LISTED_CLASSES
    return list(classes) if few else sorted(classes, key=rank)[:LISTED_CLASSES]
