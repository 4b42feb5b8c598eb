"""What was tried to find a card, as a table for a terminal. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_cbq.calibration.candidates import Candidate
from onnx_cbq.jobs.card_result import CardResult, Tried

# Beyond so many only the JSON has them.
_LISTED = 20


def card_table(result: CardResult) -> RenderableType:
    """Accuracy and mean confidence of what was tried, best first; ties are marked."""
    rows = [row for row in result.rows if row.outcome.failure is None]
    failed = [row for row in result.rows if row.outcome.failure is not None]
    columns = [column for column in _COLUMNS if len({_COLUMNS[column](row.candidate) for row in rows}) > 1]
    table = Table(box=None, pad_edge=False)
    for column in columns or ["values"]:
        table.add_column(column, overflow="fold")
    for column in ("samples", "right, %", "confidence, %", "loss", ""):
        table.add_column(column, justify="right")
    for number, row in enumerate(rows[:_LISTED]):
        cells = (_COLUMNS[column](row.candidate) for column in columns or ["values"])
        table.add_row(*cells, *_figures(row), "best" if not number else "tied" if row.tied else "")
    hidden = len(rows) - _LISTED
    seconds = ", ".join(f"{name} {spent:.1f}" for name, spent in result.seconds.items())
    lines = [
        *([f"{hidden} more are in the JSON"] if hidden > 0 else []),
        *(f"cannot be run: {result.name(row)}: {row.outcome.failure}" for row in failed),
        "what was plainly behind dropped out after fewer samples; loss: mean -log of the right answer's probability",
        f"a constant answer is right on {100 * result.guessing:.1f} %",
        *([] if result.refusal else result.verdict()),
        f"seconds: {seconds}",
        *(f"note: {note}" for note in result.notes),
    ]
    return Group(table, Text(), *(Text(line) for line in lines))


_COLUMNS: Mapping[str, Callable[[Candidate], str]] = {
    "layout": lambda candidate: candidate.card.layout or "as stored",
    "values": lambda candidate: candidate.content,
    "size": lambda candidate: candidate.framing,
}


def _figures(row: Tried) -> tuple[str, ...]:
    outcome = row.outcome
    shares = (f"{100 * outcome.accuracy:.1f}", f"{100 * float(outcome.confidence.mean()):.1f}")
    return f"{outcome.samples:,}", *shares, f"{float(outcome.loss.mean()):.3f}"
