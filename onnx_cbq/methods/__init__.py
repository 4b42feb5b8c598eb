"""How widths and codes are chosen. A method is a class in a file of this folder, listed here.

`METHODS` are what `--method` takes, `CODEBOOKS` what `--codebook` takes. An archive takes codes by error and length in
place of the default method (`Entropy`).
"""

from __future__ import annotations

from onnx_cbq.methods.cbq import Cbq
from onnx_cbq.methods.codebooks import Ecsq, HessianKMeans, KMeans
from onnx_cbq.methods.criteria import CRITERIA, Criterion
from onnx_cbq.methods.differentiable import Differentiable
from onnx_cbq.methods.entropy import Entropy
from onnx_cbq.methods.method import Fit, Learning, Method, PlanMethod, Planned, RateMethod, coded_bits
from onnx_cbq.methods.rate_distortion import RateDistortion
from onnx_cbq.methods.shared_values import SharedValues
from onnx_cbq.methods.uniform import Uniform
from onnx_cbq.settings import check, either

__all__ = [
    "CODEBOOKS",
    "CRITERIA",
    "METHODS",
    "Criterion",
    "Entropy",
    "Fit",
    "Learning",
    "Method",
    "PlanMethod",
    "Planned",
    "RateDistortion",
    "RateMethod",
    "SharedValues",
    "coded_bits",
    "find_codebook",
    "find_method",
]

# The first is the default, of which an archive or a codebook makes another.
METHODS: tuple[type[Method], ...] = (RateDistortion, Cbq, Differentiable, Uniform)
CODEBOOKS: tuple[type[SharedValues], ...] = (KMeans, HessianKMeans, Ecsq)


def find_method(name: str) -> type[Method]:
    """The method that `--method` calls so.

    Raises:
        ConfigError: there is none.
    """
    found = {kind.name: kind for kind in METHODS}
    check(name in found, "--method", either(tuple(found)), name)
    return found[name]


def find_codebook(name: str, other: str) -> type[SharedValues]:
    """The method that `--codebook` calls so; `other` is what it may be called where there is none.

    Raises:
        ConfigError: there is none.
    """
    found = {kind.name: kind for kind in CODEBOOKS}
    check(name in found, "--codebook", either((other, *found)), name)
    return found[name]
