"""The only place that reads samples: cards, and the files that they name."""

from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.calibration.opening import files_read
from onnx_cbq.calibration.samples import Batch, CalibrationSet, Samples

__all__ = ["Batch", "CalibrationSet", "Card", "Samples", "files_read", "load_card"]
