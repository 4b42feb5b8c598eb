"""What a command found, as JSON: one form for all commands, which `report/result.schema.json` describes."""

from __future__ import annotations

import json
import re
from typing import Any

# Rises when a key changes its meaning or goes; a new key does not change it.
FORMAT = 1


# Only between values is there a real line break.
_NUMBERS = re.compile(r"\[\n([-+.\deE,\snul]+)\]")


def to_json_text(command: str, content: dict[str, Any]) -> str:
    """The content as the JSON of a command, lists of numbers on one line; infinities and NaN are errors."""
    text = json.dumps({"format": FORMAT, "command": command, **content}, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
