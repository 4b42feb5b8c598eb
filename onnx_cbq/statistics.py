"""Run the float model over the samples and keep what quantization needs to know about its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_cbq.calibration.samples import Draw, Samples
from onnx_cbq.model import Model
from onnx_cbq.progress import Progress, silent
from onnx_cbq.quantize.activations import Histogram
from onnx_cbq.runtime import Session


def collect_histograms(
    model: Model, tensors: Sequence[str], samples: Samples, drawn: Draw, size: int, progress: Progress = silent
) -> Mapping[str, Histogram]:
    """A histogram of the values of each tensor over the samples drawn, `size` samples at a time.

    Memory does not grow with the number of samples.
    """
    inputs = {spec.name for spec in model.inputs}
    session = Session(model.with_graph(outputs=[name for name in tensors if name not in inputs] or model.outputs))
    histograms = dict.fromkeys(tensors, Histogram.empty())
    done, indices = 0, drawn.indices
    for batch in samples.batches(indices, size):
        values = {**session.run(batch.feeds), **batch.feeds}
        histograms = {name: seen.add(values[name]) for name, seen in histograms.items()}
        done += batch.count
        progress("activations", done, len(indices))
    return histograms
