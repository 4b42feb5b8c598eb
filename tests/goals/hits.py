"""Which samples a model answers right, computed apart from what the goals do."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_cbq.evidence.workload import Workload
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session


def hits(model: Any, work: Workload, indices: Array) -> Array:
    """Which of the samples a model predicts right, in one batch."""
    output = Session(model).run(work.samples.read(indices))[work.logits.output]
    return np.asarray(output.argmax(axis=1) == work.samples.labels[indices])
