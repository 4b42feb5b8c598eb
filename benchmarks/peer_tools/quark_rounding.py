"""AMD Quark's presets of 8 bits with AdaRound and with AdaQuant; its integers for Conv have no fewer bits."""

from __future__ import annotations

from peer_task import Reader, Task, run
from quark.onnx import ModelQuantizer, QConfig

PRESETS = ("A8W8_ADAROUND", "A8W8_ADAQUANT")


def preset(task: Task) -> None:
    """Quantize as the preset of that name says."""
    ModelQuantizer(QConfig.get_default_config(task.way)).quantize_model(str(task.model), str(task.output), Reader(task))


if __name__ == "__main__":
    run(dict.fromkeys(PRESETS, preset))
