"""Files run on a processor that is not there: Haswell has AVX2 and no VNNI, so its integer kernels saturate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig, quantize
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.unsafe import STEP, unsafe_file

QEMU = shutil.which("qemu-x86_64")

# Nothing but onnxruntime, since every import takes ten times as long: MODEL INPUT OUTPUT, and so on.
_RUN = """
import sys
import numpy
import onnxruntime
onnxruntime.set_default_logger_severity(4)
for model, given, made in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: numpy.load(given)})
    numpy.save(made, output)
"""


def run_on_haswell(folder: Path, *runs: tuple[Path, Array]) -> list[Array]:
    """The outputs of models for one input each."""
    assert QEMU is not None
    arguments = []
    for i, (model, given) in enumerate(runs):
        np.save(folder / f"given_{i}.npy", given)
        arguments += [model, folder / f"given_{i}.npy", folder / f"made_{i}.npy"]
    command = [QEMU, "-cpu", "Haswell", os.path.realpath(sys.executable), "-c", _RUN, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    return [np.load(folder / f"made_{i}.npy") for i in range(len(runs))]


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed, so no other processor can be imitated")
def test_what_saturates_does_and_ours_does_not(tmp_path: Path) -> None:
    """By default 8 bits give what the file says where kernels saturate; a file for VNNI does not."""
    unsafe, x, (saturated, exact) = unsafe_file(tmp_path)
    ((name, images),) = prepare(DIGITS_MODEL, DIGITS_CARD).samples.read(np.arange(100)).items()
    config = QuantizeConfig(bits=8, method="uniform", rounding="nearest", equalize=False)
    ours = tmp_path / "ours.onnx"
    quantize(DIGITS_MODEL, DIGITS_CARD, config).save(ours)

    wrong, logits = run_on_haswell(tmp_path, (unsafe, x), (ours, images))

    codes = (wrong[0].reshape(8, -1).T / STEP).round()
    assert np.abs(codes - np.rint(saturated / STEP).clip(0, 255)).max() <= 1
    assert np.abs(codes - np.rint(exact / STEP).clip(0, 255)).max() > 1
    plain = Session(ours, "off").run({name: images})["logits"]
    assert (logits.argmax(axis=1) == plain.argmax(axis=1)).all()
    assert np.abs(logits - plain).max() <= 0.05 * np.abs(plain).max()
