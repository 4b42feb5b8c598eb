"""What the files of samples may hold. A new kind is a `Decoder` in a file of its own, and an entry here."""

from __future__ import annotations

from onnx_cbq.calibration.audio import Audio
from onnx_cbq.calibration.decoders import Decoder
from onnx_cbq.calibration.images import Images
from onnx_cbq.calibration.npy import Arrays

# Where files of several kinds lie together, the first kind is taken.
DECODERS: tuple[type[Decoder], ...] = (Images, Audio, Arrays)
