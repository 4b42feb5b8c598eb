"""What a command found, as JSON: one form for all commands, which `report/result.schema.json` describes."""

from __future__ import annotations

import json
from typing import Any

# Rises when a key changes its meaning or goes; a new key does not change it.
FORMAT = 1


def to_json_text(command: str, content: dict[str, Any]) -> str:
    """The content as the JSON of a command; infinities and NaN are errors."""
    return json.dumps({"format": FORMAT, "command": command, **content}, indent=1, allow_nan=False) + "\n"
