"""What the files of samples may hold. A new kind is a `Decoder` in a file of its own, and an entry here."""

from __future__ import annotations

from onnx_cbq.calibration.decoding.audio import Audio
from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.decoding.images import Images
from onnx_cbq.calibration.decoding.npy import Arrays

# Where files of several kinds lie together, the first kind is taken.
DECODERS: tuple[type[Decoder], ...] = (Images, Audio, Arrays)
