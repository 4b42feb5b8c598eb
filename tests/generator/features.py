"""What the generator does not use yet, each with what happens if it does."""

from __future__ import annotations

from collections.abc import Mapping

OFF: Mapping[str, str] = {}
