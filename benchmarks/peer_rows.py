"""The rows of `peers.py`: which tools, of which versions, asked for what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).with_name("peer_tools")
# What several of them need; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares the GPU's libraries.
_RUNTIME = ("onnxruntime==1.32.0", "onnx==1.22.0")
_TORCH = ("torch==2.13.0",)


@dataclass(frozen=True)
class Peer:
    """Another tool: what its environment holds, the tool itself first, and the script that runs in it."""

    packages: tuple[str, ...]
    script: Path


PEERS = {
    "onnxruntime": Peer((*_RUNTIME, "onnx-ir==1.1.0", "sympy==1.14.0"), TOOLS / "onnxruntime_static.py"),
    "aimet": Peer(("aimet-onnx==2.42.0", *_RUNTIME, *_TORCH), TOOLS / "aimet_rounding.py"),
    "quark": Peer(("amd-quark==0.13", *_RUNTIME, *_TORCH), TOOLS / "quark_rounding.py"),
    "nncf": Peer(("nncf==3.4.0", *_RUNTIME), TOOLS / "nncf_quantization.py"),
    "onnxsim": Peer(("onnxsim==0.8.1", *_RUNTIME), TOOLS / "onnxsim_rounding.py"),
}
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """A row of the table, for each number of bits.

    Attributes:
        tool: a name of `PEERS`, or `OURS`.
        title: what it does.
        form: bits of weights and activations; {} stands for those asked for.
        ways: of the script; the file that is best on the test samples counts. For ours, the options of `quantize`.
        widths: the bits that the tool offers, None for any.
    """

    tool: str
    title: str
    form: str
    ways: tuple[str, ...]
    widths: tuple[int, ...] | None = None


_CALIBRATIONS = ("min-max", "entropy", "percentile")
ROWS = (
    Row(OURS, "default", "W{} A8", ()),
    Row(OURS, "default, float activations", "W{} A float", ("--activation-bits", "0")),
    Row(OURS, "uniform", "W{} A8", ("--method", "uniform")),
    Row(OURS, "cbq", "W{} A8", ("--method", "cbq")),
    Row(OURS, "data-free", "W{} A float", ("--data-free",)),
    Row(OURS, "refined", "W{} A8", ("--refine",)),
    Row("onnxruntime", "quantize_static", "W{} A8", _CALIBRATIONS, (8,)),
    Row("onnxruntime", "quantize_static, int4", "W{} A8", _CALIBRATIONS, (4,)),
    Row("onnxruntime", "MatMulNBits", "W{} in blocks, of MatMul; A float", ("blocks",), (4,)),
    Row("aimet", "AdaRound", "W{} A float", ("adaround",)),
    Row("aimet", "AMP", "W{} or 8, A8", ("amp",), (2, 4)),
    Row("quark", "AdaRound", "W{} A8", ("A8W8_ADAROUND",), (8,)),
    Row("quark", "AdaQuant", "W{} A8", ("A8W8_ADAQUANT",), (8,)),
    Row("nncf", "quantize", "W{} A8", ("quantize",), (8,)),
    Row("nncf", "compress_weights", "W{} of MatMul and Gemm, A float", ("compress",), (4,)),
    Row("onnxsim", "AdaRound", "W{} in blocks, A float", ("adaround",), (4,)),
    Row("onnxsim", "BRECQ", "W{} in blocks, A float", ("brecq",), (4,)),
)
# Tools whose integers all have 8 bits are asked for those whatever the others are asked for.
ALWAYS = 8
