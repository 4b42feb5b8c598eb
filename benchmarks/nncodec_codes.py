"""NNCodec (ISO/IEC 15938-17) on integer codes: its bytes, and whether they decode to the same codes, as JSON.

Runs in an environment of its own (`pip install nncodec`), so it imports nothing of this project.

PYTHON benchmarks/nncodec_codes.py CODES.npz
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from nncodec import nnc


def main() -> None:
    """Code, decode, compare, print."""
    with np.load(sys.argv[1]) as file:
        codes = {name: np.int32(value) for name, value in file.items()}
    with tempfile.TemporaryDirectory() as folder:
        # Integers are coded without loss; dependent quantization is for floats.
        coded = nnc.compress(
            {name: value.copy() for name, value in codes.items()},
            bitstream_path=str(Path(folder) / "codes.nnc"),
            use_dq=False,
            return_bitstream=True,
        )
    decoded = nnc.decompress(coded)
    same = all(np.array_equal(decoded[name], value) for name, value in codes.items())
    sys.stdout.write(json.dumps({"bytes": len(coded), "same": same}) + "\n")


if __name__ == "__main__":
    main()
