"""A large model without its weights, for whoever asks what it consists of and not what it computes."""

from __future__ import annotations

import numpy as np

from onnx_cbq.model import Model
from onnx_cbq.model.mapped import HUGE, LARGE, place_of


def skim(model: Model) -> Model:
    """The same graph with zeros in place of large weights that lie in a file, where there are many; nothing is read.

    A page of zeros that nobody wrote takes no memory, however often it is read.
    """
    in_files = {name: value for name, value in model.weights.items() if place_of(value) is not None}
    if sum(value.nbytes for value in in_files.values()) <= LARGE:
        return model
    zeros = {n: np.zeros(v.shape, v.dtype) for n, v in in_files.items() if v.nbytes >= HUGE}
    return model.with_constants(zeros)
