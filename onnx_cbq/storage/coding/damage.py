"""What reading an archive finds wrong with it."""

from __future__ import annotations


class Damaged(ValueError):  # noqa: N818, an archive is damaged, which is no error of the code
    """An archive is not what it claims to be; the message completes "cannot be restored: ..."."""
