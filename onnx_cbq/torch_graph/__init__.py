"""A normalised ONNX graph as a torch module: what training runs.

`module.py` is the module, which `fusing.py` compiles where that pays, `operators.py` the one table from operator to
function, filled by one file per family. A function there takes an `OnnxNode`, resolves its attributes and constants
once, and returns what runs at every forward pass. To add an operator, write such a function in the family's file and
name it in that file's `OPERATORS`; the contract test then asks for a case.

torch is an extra, and asking for this package is what asks for it: nothing else of onnx_cbq imports either.
"""

from onnx_cbq.errors import ConfigError

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ConfigError(
        "training needs torch, which is not installed; install it with pip install 'onnx-cbq[torch]'"
    ) from None

from onnx_cbq.torch_graph.fusing import can_fuse
from onnx_cbq.torch_graph.module import EXACT, Speed, TorchGraph, choose_device, has_bfloat16

__all__ = ["EXACT", "Speed", "TorchGraph", "can_fuse", "choose_device", "has_bfloat16"]
