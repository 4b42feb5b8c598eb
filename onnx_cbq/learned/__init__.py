"""Rounding that is learned: codes, scales and biases by gradients of the whole net, computed by onnxruntime."""
