"""What a cache holds, as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from onnx_cbq.report.tables import table_of
from onnx_cbq.system.store import Listed

_DAY, _HOUR, _MINUTE = 86_400.0, 3600.0, 60.0


def cache_table(
    folder: Path, found: Sequence[Listed], removed: Sequence[Listed] = (), *, entries: bool = False
) -> RenderableType:
    """A row for every kind of entry, or for every entry, the latest used first, and what all of them take."""
    if entries:
        table = table_of("kind", "size", "last used", "entry")
        for entry in sorted(found, key=lambda entry: entry.age):
            table.add_row(_kind(entry), size_of(entry.bytes), ago(entry.age), entry.path.name[:12])
    else:
        table = table_of("kind", "entries", "size", "last used", "longest unused")
        kinds: dict[str, list[Listed]] = {}
        for entry in found:
            kinds.setdefault(_kind(entry), []).append(entry)
        for kind, those in sorted(kinds.items(), key=lambda pair: -sum(entry.bytes for entry in pair[1])):
            ages = [entry.age for entry in those]
            size = size_of(sum(entry.bytes for entry in those))
            table.add_row(kind, str(len(those)), size, ago(min(ages)), ago(max(ages)))
    lines = [_counted(f"{folder}:", found)]
    if removed:
        lines.append(_counted("removed:", removed))
    return Group(*([table] if found else []), *map(Text, lines))


def _counted(what: str, those: Sequence[Listed]) -> str:
    entries = "1 entry" if len(those) == 1 else f"{len(those):,} entries"
    return f"{what} {entries}, {size_of(sum(entry.bytes for entry in those))}"


def size_of(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def ago(seconds: float) -> str:
    """A time since as people read it."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now"


def _kind(entry: Listed) -> str:
    return entry.kind or "damaged"
