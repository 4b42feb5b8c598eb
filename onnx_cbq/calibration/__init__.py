"""The only place that reads samples: cards, `.npz` files, folders of images."""

from onnx_cbq.calibration.card import Card, load_card
from onnx_cbq.calibration.samples import Batch, CalibrationSet, Samples

__all__ = ["Batch", "CalibrationSet", "Card", "Samples", "load_card"]
