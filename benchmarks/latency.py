"""Latency at batch 1 beside onnxruntime's own quantization of the same model: per channel, int8, QDQ.

For both exports of ResNet-20: `quantize_static` behind `quant_pre_process`, and `onnx-cbq quantize --method uniform
--bits 8`, on the same samples; the float model, for scale. All three take turns in one run.

python benchmarks/latency.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import CARDS, Requirements, data_file, print_table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, median_latency

MODELS = ("resnet20_cifar10.onnx", "resnet20_cifar10_torchscript.onnx")
LARGEST_RATIO = 1.10
SAMPLES = 1000
SECONDS = 10.0


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The drawn samples, one by one, as onnxruntime's quantizer asks for them."""

    def __init__(self, work: Workload) -> None:
        drawn = draw(work.samples, work.class_names, SAMPLES, seed=0)
        self._feeds: Iterator[dict[str, Array]] = (work.samples.read([i]) for i in drawn.indices)

    def get_next(self) -> dict[str, Array] | None:
        """The next sample, None at the end."""
        return next(self._feeds, None)


def quantize_by_onnxruntime(
    model: Path, work: Workload, target: Path, weight_type: QuantType = QuantType.QInt8
) -> None:
    """uint8 activations, per-channel int8 weights, QDQ. With its default int8 activations half the Convs stay float."""
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(work),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=weight_type,
    )


def main() -> int:
    """Measure, print, and return 1 if the requirement was missed."""
    data = CalibrationSet.from_card(CARDS / "cifar10.toml", data_file("cifar10_calibration.npz"))
    required = Requirements()
    rows = []
    for name in MODELS:
        model = data_file(name)
        work = prepare(model, data)
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = Path(folder) / "onnxruntime.onnx", Path(folder) / "onnx-cbq.onnx"
            quantize_by_onnxruntime(model, work, theirs)
            quantize(model, data, QuantizeConfig(8, "uniform", samples=SAMPLES)).save(ours)
            one = work.samples.read([0])
            spent = median_latency([Session(path) for path in (model, theirs, ours)], one, SECONDS)
            for title, path, seconds in zip(
                ("float", "onnxruntime", "onnx-cbq"), (model, theirs, ours), spent, strict=True
            ):
                rows.append([name, title, f"{path.stat().st_size:,}", f"{seconds * 1e3:.3f}"])
        required.at_most(f"{name}: onnx-cbq / onnxruntime", spent[2] / spent[1], LARGEST_RATIO)
    print_table(("model", "made by", "bytes", "ms at batch 1"), rows)
    return required.exit_code


if __name__ == "__main__":
    sys.exit(main())
