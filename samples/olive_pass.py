"""A pass for Olive (pip install olive-ai): a step of an Olive workflow that quantizes a classifier class by class.

Olive learns of the class below by a package configuration; `main` runs a whole workflow:

python samples/olive_pass.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.workflows import run

from onnx_cbq import QuantizeConfig, evaluate, quantize

HERE = Path(__file__).parent
MODEL = HERE / "digits_cnn.onnx"
CARD = HERE.parent / "calibration" / "digits.toml"


class OnnxCbq(Pass):
    """Quantizes an ONNX classifier with the samples of a calibration card."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:  # noqa: ARG003
        return {
            "card": PassConfigParam(type_=str, required=True, description="Path of the calibration card."),
            "bits": PassConfigParam(type_=float, default_value=4.0, description="Average bits per weight."),
            "settings": PassConfigParam(
                type_=dict, default_value={}, description="Further fields of onnx_cbq.QuantizeConfig."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        settings: dict[str, Any] = config.model_dump()
        result = quantize(model.model_path, settings["card"], QuantizeConfig(settings["bits"], **settings["settings"]))
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        result.save(path)
        attributes = {**(model.model_attributes or {}), "top1": result.quantized.top1, "bits": result.average_bits}
        return ONNXModelHandler(model_path=str(path), model_attributes=attributes)


def package_config() -> dict[str, Any]:
    """Olive's own passes, and where it finds this one: a class in a module on the path of Python."""
    found: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    found["passes"]["OnnxCbq"] = {
        "module_path": f"{Path(__file__).stem}.OnnxCbq",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return found


def main() -> None:
    """A workflow of this pass alone."""
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory() as folder:
        workflow = {
            "input_model": {"type": "ONNXModel", "model_path": str(MODEL)},
            "passes": {"quantize": {"type": "OnnxCbq", "card": str(CARD), "bits": 4.0}},
            "output_dir": f"{folder}/out",
            "cache_dir": f"{folder}/cache",
            "evaluate_input_model": False,
            "log_severity_level": 3,
        }
        run(workflow, package_config=package_config())
        made = Path(folder, "out", "model.onnx")
        found = evaluate(made, CARD)
        print(f"{made.stat().st_size:,} bytes, {found.model.top1:.2f} % of the card's samples right")


if __name__ == "__main__":
    main()
