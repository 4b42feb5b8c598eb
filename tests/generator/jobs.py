"""What is asked of a generated model: a command with settings that keep it quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_cbq import DataFreeConfig, QuantizeConfig, RateDistortionConfig
from tests.generator.net import Draw

# Targets whose files keep the free sizes of the model.
_TARGETS = ("vnni", "arm64", "openvino", "tensorrt", "qnn", "xnnpack", "vitis")
_QUICK = RateDistortionConfig(exchanges=2)


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: what it is, for tables.
        config: of quantize, with samples or without; None for commands without settings.
        close: outputs must stay within what rounding to 8 bits explains.
    """

    name: str
    config: QuantizeConfig | DataFreeConfig | None = None
    close: bool = False

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _quantize(name: str, *, close: bool = False, **settings: Any) -> Job:
    return Job(f"quantize {name}", QuantizeConfig(**settings), close)


_EIGHT: dict[str, Any] = {"method": "uniform", "bits": 8, "rounding": "nearest"}
JOBS: tuple[Job, ...] = (
    _quantize("8 bits", close=True, **_EIGHT),
    _quantize("8 bits, float activations", close=True, activation_bits=0, **_EIGHT),
    _quantize("8 bits, packed", close=True, storage="packed", **_EIGHT),
    _quantize("8 bits, not equalized", close=True, equalize=False, **_EIGHT),
    Job("quantize 8 bits, data-free", DataFreeConfig(), close=True),
    Job("quantize data-free, asymmetric", DataFreeConfig(bits=4, scheme="asymmetric", per_tensor=True)),
    Job("quantize data-free, log, packed", DataFreeConfig(bits=3.5, scheme="log", storage="packed")),
    _quantize("rate-distortion", search=_QUICK),
    _quantize("rate-distortion to nearest, 6 bits", bits=6, rounding="nearest", search=_QUICK),
    _quantize("rate-distortion, packed", bits=2.5, storage="packed", search=_QUICK),
    _quantize("archive", storage="archive", search=_QUICK),
    _quantize("cbq", method="cbq", rounding="nearest"),
    _quantize("uniform, 3 bits", method="uniform", bits=3),
    _quantize("kmeans", codebook="kmeans", search=_QUICK),
    _quantize("4-bit activations", activation_bits=4, rounding="nearest", search=_QUICK),
    *(_quantize(f"for {target}", target=target, run_check=False, **_EIGHT) for target in _TARGETS),
    Job("evaluate and inspect"),
    Job("score"),
)


def choose(draw: Draw) -> Job:
    """Any of them; 8 bits, which says most, in half of the cases."""
    close = [job for job in JOBS if job.close]
    return close[draw(0, len(close) - 1)] if draw(0, 1) == 0 else JOBS[draw(0, len(JOBS) - 1)]
