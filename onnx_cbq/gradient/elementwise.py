"""Gradients of y = f(x) applied to every element: dx = dy f'(x).

Elu, Selu, Celu, Softplus and Mish have a definition by simpler operators in the standard, but it takes exp of any x:
beyond x = 88 that is infinite in float32 and the gradient becomes 0 * infinity. They have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import helper

from onnx_cbq.gradient.site import Gradients, Rule, Site


def relu(site: Site) -> Gradients:
    """y = max(x, 0): dx = dy where y > 0."""
    return [site.build.op("Mul", site.grad, site.build.not_zero(site.y))]


def leaky_relu(site: Site) -> Gradients:
    """y = x where x >= 0, else alpha x."""
    return [_two_slopes(site, site.build.number(float(site.attrs.get("alpha", 0.01))))]


def prelu(site: Site) -> Gradients:
    """y = x where x >= 0, else slope x; the slope is broadcast to x."""
    b = site.build
    dslope = None
    if site.needed[1]:
        negative = b.op("Min", site.x, b.number(0.0))
        dslope = site.sum_to_input(b.op("Mul", site.grad, negative), 1)
    return [_two_slopes(site, site.node.input[1]), dslope]


def clip(site: Site, *, finite: bool = False) -> Gradients:
    """y = min(max(x, low), high): dx = dy strictly between the bounds, as Relu has 0 at 0; beyond, the bound has it.

    Gradients that are known to be `finite` pass ten times as fast.
    """
    b = site.build
    grad, bounds = site.grad, list[str | None]()
    if not finite and site.has_input(1) and site.has_input(2) and not any(site.needed[1:]):
        _, low, high = site.node.input
        within = b.op("And", b.op("Greater", site.x, low), b.op("Less", site.x, high))
        return [b.where(within, grad), None, None]
    for index, comparison in ((1, "Greater"), (2, "Less")):
        bounds.append(None)
        if site.has_input(index):
            bound = site.node.input[index]
            ends = (site.y, bound) if index == 1 else (bound, site.y)
            if finite:
                passed = b.op("Mul", grad, b.not_zero(b.op("Sub", *ends)))
            else:
                passed = b.where(b.op(comparison, site.x, bound), grad)
            if site.needed[index]:
                bounds[-1] = b.op("ReduceSum", b.op("Sub", grad, passed), keepdims=0)
            grad = passed
    return [grad, *bounds]


def elu(site: Site) -> Gradients:
    """y = x where x > 0, else alpha (e^x - 1); there the slope is y + alpha."""
    alpha = float(site.attrs.get("alpha", 1.0))
    return [_two_slopes(site, site.build.op("Add", site.y, site.build.number(alpha)))]


def celu(site: Site) -> Gradients:
    """y = max(x, 0) + min(0, alpha (e^(x/alpha) - 1)); the negative side has slope y / alpha + 1."""
    b = site.build
    alpha = float(site.attrs.get("alpha", 1.0))
    return [_two_slopes(site, b.op("Add", b.op("Div", site.y, b.number(alpha)), b.number(1.0)))]


def selu(site: Site) -> Gradients:
    """y = gamma x where x > 0, else gamma (alpha e^x - alpha); there the slope is y + gamma alpha."""
    b = site.build
    alpha = float(site.attrs.get("alpha", 1.67326319217681884765625))
    gamma = float(site.attrs.get("gamma", 1.05070102214813232421875))
    negative = b.op("Add", site.y, b.number(gamma * alpha))
    slope = b.op("Where", b.op("Greater", site.x, b.number(0.0)), b.number(gamma), negative)
    return [b.op("Mul", site.grad, slope)]


def _two_slopes(site: Site, negative: str) -> str:
    """dy times 1 where x > 0, else times the tensor `negative`."""
    b = site.build
    slope = b.op("Where", b.op("Greater", site.x, b.number(0.0)), b.number(1.0), negative)
    return b.op("Mul", site.grad, slope)


def mish(site: Site) -> Gradients:
    """y = x tanh(s), s = softplus(x): y' = tanh(s) + x sigmoid(x) (1 - tanh(s)^2)."""
    b = site.build
    tanh = b.op("Tanh", b.op("Softplus", site.x))
    slope = b.op("Mul", b.op("Mul", site.x, b.op("Sigmoid", site.x)), _one_minus_square(site, tanh))
    return [b.op("Mul", site.grad, b.op("Add", tanh, slope))]


# At 0 roots are infinitely steep, but norms of nothing and what a Relu cut have no slope: 0 times this is still 0, and
# every root of a normal float32 is above its inverse.
_STEEPEST = 1e19


def power(site: Site) -> Gradients:
    """y = x^p: dx = dy p x^(p-1), dp = dy y log x; both may broadcast. At x = 0 with p < 1 they stay numbers."""
    b = site.build
    base, exponent = site.node.input
    gradients: list[str | None] = [None, None]
    if site.needed[0]:
        lower = b.op("Pow", base, b.op("Sub", exponent, b.op("CastLike", b.number(1.0), exponent)))
        slope = b.op("Mul", b.op("CastLike", exponent, base), b.op("Min", lower, b.number(_STEEPEST)))
        gradients[0] = site.sum_to_input(b.op("Mul", site.grad, slope), 0)
    if site.needed[1]:
        slope = b.op("Mul", site.y, b.op("Log", b.op("Max", base, b.number(1 / _STEEPEST))))
        gradients[1] = site.sum_to_input(b.op("Mul", site.grad, slope), 1)
    return gradients


def cast(site: Site) -> Gradients:
    """The gradient is cast back; a cast to integers has none."""
    if site.attrs["to"] not in _FLOATS:
        return [None]
    return [site.build.op("CastLike", site.grad, site.x)]


_FLOATS = {helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (np.float16, np.float32, np.float64)}


def _one_minus_square(site: Site, name: str) -> str:
    return site.build.op("Sub", site.build.number(1.0), site.build.op("Mul", name, name))


def _gaussian(site: Site) -> str:
    square = site.build.op("Mul", site.x, site.x)
    return site.build.op("Exp", site.build.op("Neg", square))


# The slope f'(x) as a tensor, from x and y.
SLOPES: Mapping[str, Callable[[Site], str]] = {
    "Sigmoid": lambda s: s.build.op("Mul", s.y, s.build.op("Sub", s.build.number(1.0), s.y)),
    "Softplus": lambda s: s.build.op("Sigmoid", s.x),
    "Tanh": lambda s: _one_minus_square(s, s.y),
    "Erf": lambda s: s.build.op("Mul", s.build.number(2.0 / math.sqrt(math.pi)), _gaussian(s)),
    "Exp": lambda s: s.y,
    "Log": lambda s: s.build.op("Reciprocal", s.x),
    "Sqrt": lambda s: s.build.op("Div", s.build.number(0.5), s.build.op("Max", s.y, s.build.number(1 / _STEEPEST))),
    "Abs": lambda s: s.build.op("Sign", s.x),
    "Neg": lambda s: s.build.number(-1.0),
    "Reciprocal": lambda s: s.build.op("Neg", s.build.op("Mul", s.y, s.y)),
    "Sin": lambda s: s.build.op("Cos", s.x),
    "Cos": lambda s: s.build.op("Neg", s.build.op("Sin", s.x)),
}


def by_slope(site: Site) -> Gradients:
    """dx = dy f'(x), f' from the table `SLOPES`."""
    return [site.build.op("Mul", site.grad, SLOPES[site.node.op_type](site))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(SLOPES, by_slope),
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Clip": clip,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "Mish": mish,
    "Pow": power,
    "Cast": cast,
    "CastLike": lambda site: [site.build.op("CastLike", site.grad, site.x)],
}
