"""What reading an archive finds wrong with it."""

from __future__ import annotations


class Damaged(ValueError):
    """An archive is not what it claims to be; the message completes "cannot be restored: ..."."""
