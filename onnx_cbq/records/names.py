"""Names of classes as options and files give them; a name may hold commas of its own."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence

from onnx_cbq.errors import ConfigError


def split_names(text: str, where: str) -> tuple[str, ...]:
    """Names with commas between them; one with a comma in it may stand in double quotes, as in a CSV file.

    Raises:
        ConfigError: the text is no such line.
    """
    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error as error:
        raise ConfigError(f"{where}: expected names with commas between them, got {text[:80]!r} ({error})") from None
    return tuple(name.strip() for row in rows for name in row if name.strip())


def class_indices(names: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """The positions of classes; a name that was cut at its commas may be in several pieces.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {_spaced(name): m for m, name in reversed(list(enumerate(names)))}
    pieces, found = list(wanted), []
    while pieces:
        joined = (_spaced(",".join(pieces[:count])) for count in range(1, len(pieces) + 1))
        count = next((i for i, name in enumerate(joined, start=1) if name in known), 0)
        if not count:
            near = difflib.get_close_matches(pieces[0], names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are: {', '.join(names[:10])}"
            raise ConfigError(f"{where} {pieces[0]!r}: no such class; {hint}")
        found.append(known[_spaced(",".join(pieces[:count]))])
        del pieces[:count]
    return found


def _spaced(name: str) -> str:
    """A name without the spaces around it and around its commas, by which it is found."""
    return ",".join(part.strip() for part in name.split(","))
