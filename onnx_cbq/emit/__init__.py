"""From integer weights to an ONNX model."""
