"""What a target is: data only. Each runtime is one constant in a file of its own; `TARGETS` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnx_cbq.records import FUSED, KERNELS, UNSIGNED, ActivationRules, FileRules, PlacementRules
from onnx_cbq.settings import MOST_BITS

# What onnxruntime 1.32 opens; 1.22 opens opset 23 and IR version 10.
HIGHEST_OPSET = 26
HIGHEST_IR = 14

# What comes of a file that does not keep a demand: other numbers than it says, no run at all, or a run in float.
Effect = Literal["wrong", "refused", "slow"]
# What a rule of `targets.rules` looks at.
Fact = Literal[
    "activation type",
    "attributes",
    "axis",
    "bias",
    "bias scale",
    "domain",
    "equal grids",
    "float activation",
    "float weight",
    "ir",
    "loads",
    "lowest code",
    "on integers",
    "one grid",
    "one scale",
    "opset",
    "output",
    "pairs",
    "per tensor",
    "power of two",
    "range",
    "relu",
    "requantization",
    "residual",
    "same type",
    "samples",
    "scale",
    "sizes",
    "weight type",
    "weight zero point",
    "zero point",
    "zero point written",
]


@dataclass(frozen=True)
class Demand:
    """What comes of it if a fact does not hold, and where the runtime says so."""

    effect: Effect
    source: str


@dataclass(frozen=True)
class Target:
    """What a runtime on a processor needs of a file.

    Attributes:
        name: as `--target` takes it.
        what: where the file runs, for people.
        activation: grids of activations.
        activation_bits: the widths that activations may have, 0 for float.
        power_of_two: scales of weights are powers of two.
        per_tensor: operators whose weights have one scale.
        lanes: whether codes are held within what 16-bit lanes add exactly (see `records.lanes`). All targets but one
            ask for it, so that what is verified on any x86 machine is what the target computes.
        placement: which tensors are quantized.
        file: how nodes are written.
        types: of activation codes, that it takes.
        products: operators whose product of integers it has a kernel for.
        storages: of weights, that it takes; any if none is named.
        shared_values: whether weights may share values (`--codebook`).
        highest_opset, highest_ir: of the file.
        needs: what the processor must have for a run here to mean anything, "" for nothing.
        machines: architectures on which onnxruntime's CPU provider is the target itself, and its latency that of the
            target.
        demands: what the lint holds a file against.
    """

    name: str
    what: str
    activation: ActivationRules = UNSIGNED
    activation_bits: tuple[int, ...] = (0, *range(2, MOST_BITS + 1))
    power_of_two: bool = False
    per_tensor: frozenset[str] = frozenset()
    lanes: bool = True
    placement: PlacementRules = FUSED
    file: FileRules = KERNELS
    types: frozenset[str] = frozenset(("uint8", "int8"))
    products: frozenset[str] = frozenset(("Conv", "Gemm", "MatMul"))
    storages: tuple[str, ...] = ()
    shared_values: bool = True
    highest_opset: int = HIGHEST_OPSET
    highest_ir: int = HIGHEST_IR
    needs: str = ""
    machines: frozenset[str] = frozenset()
    demands: Mapping[Fact, Demand] = field(default_factory=dict)
