"""What the frame of a file that onnx-cbq made is likely to hold, as a dictionary for zstandard.

Part of the format: a change of these bytes needs a new version of it.
"""

from __future__ import annotations

VOCABULARY = b""
