"""Gradients of y = f(x) applied to every element: dx = dy f'(x).

Elu, Selu, Celu, Softplus and Mish have a definition by simpler operators in the standard, but it takes exp of any x:
beyond x = 88 that is infinite in float32 and the gradient becomes 0 * infinity. They have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import helper

from onnx_cbq.gradient.step import Gradients, Rule, Step


def relu(step: Step) -> Gradients:
    """y = max(x, 0): dx = dy where y > 0."""
    return [step.build.op("Mul", step.grad, step.build.not_zero(step.y))]


def leaky_relu(step: Step) -> Gradients:
    """y = x where x >= 0, else alpha x."""
    return [_two_slopes(step, step.build.number(float(step.attrs.get("alpha", 0.01))))]


def prelu(step: Step) -> Gradients:
    """y = x where x >= 0, else slope x; the slope is broadcast to x."""
    b = step.build
    dslope = None
    if step.needed[1]:
        negative = b.op("Min", step.x, b.number(0.0))
        dslope = step.sum_to_input(b.op("Mul", step.grad, negative), 1)
    return [_two_slopes(step, step.node.input[1]), dslope]


def clip(step: Step) -> Gradients:
    """y = min(max(x, low), high): dx = dy strictly between the bounds, as Relu has 0 at 0."""
    b = step.build
    grad = step.grad
    for index, comparison in ((1, "Greater"), (2, "Less")):
        if step.has_input(index):
            grad = b.where(b.op(comparison, step.x, step.node.input[index]), grad)
    return [grad]


def elu(step: Step) -> Gradients:
    """y = x where x > 0, else alpha (e^x - 1); there the slope is y + alpha."""
    alpha = float(step.attrs.get("alpha", 1.0))
    return [_two_slopes(step, step.build.op("Add", step.y, step.build.number(alpha)))]


def celu(step: Step) -> Gradients:
    """y = max(x, 0) + min(0, alpha (e^(x/alpha) - 1)); the negative side has slope y / alpha + 1."""
    b = step.build
    alpha = float(step.attrs.get("alpha", 1.0))
    return [_two_slopes(step, b.op("Add", b.op("Div", step.y, b.number(alpha)), b.number(1.0)))]


def selu(step: Step) -> Gradients:
    """y = gamma x where x > 0, else gamma (alpha e^x - alpha); there the slope is y + gamma alpha."""
    b = step.build
    alpha = float(step.attrs.get("alpha", 1.67326319217681884765625))
    gamma = float(step.attrs.get("gamma", 1.05070102214813232421875))
    negative = b.op("Add", step.y, b.number(gamma * alpha))
    slope = b.op("Where", b.op("Greater", step.x, b.number(0.0)), b.number(gamma), negative)
    return [b.op("Mul", step.grad, slope)]


def _two_slopes(step: Step, negative: str) -> str:
    """dy times 1 where x > 0, else times the tensor `negative`."""
    b = step.build
    slope = b.op("Where", b.op("Greater", step.x, b.number(0.0)), b.number(1.0), negative)
    return b.op("Mul", step.grad, slope)


def mish(step: Step) -> Gradients:
    """y = x tanh(s), s = softplus(x): y' = tanh(s) + x sigmoid(x) (1 - tanh(s)^2)."""
    b = step.build
    tanh = b.op("Tanh", b.op("Softplus", step.x))
    slope = b.op("Mul", b.op("Mul", step.x, b.op("Sigmoid", step.x)), _one_minus_square(step, tanh))
    return [b.op("Mul", step.grad, b.op("Add", tanh, slope))]


def power(step: Step) -> Gradients:
    """y = x^p: dx = dy p x^(p-1), dp = dy y log x; both may broadcast."""
    b = step.build
    base, exponent = step.node.input
    gradients: list[str | None] = [None, None]
    if step.needed[0]:
        lower = b.op("Pow", base, b.op("Sub", exponent, b.op("CastLike", b.number(1.0), exponent)))
        slope = b.op("Mul", b.op("CastLike", exponent, base), lower)
        gradients[0] = step.sum_to_input(b.op("Mul", step.grad, slope), 0)
    if step.needed[1]:
        slope = b.op("Mul", step.y, b.op("Log", base))
        gradients[1] = step.sum_to_input(b.op("Mul", step.grad, slope), 1)
    return gradients


def cast(step: Step) -> Gradients:
    """The gradient is cast back; a cast to integers has none."""
    if step.attrs["to"] not in _FLOATS:
        return [None]
    return [step.build.op("CastLike", step.grad, step.x)]


_FLOATS = {helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (np.float16, np.float32, np.float64)}


def _one_minus_square(step: Step, name: str) -> str:
    return step.build.op("Sub", step.build.number(1.0), step.build.op("Mul", name, name))


def _gaussian(step: Step) -> str:
    square = step.build.op("Mul", step.x, step.x)
    return step.build.op("Exp", step.build.op("Neg", square))


# The slope f'(x) as a tensor, from x and y.
SLOPES: Mapping[str, Callable[[Step], str]] = {
    "Sigmoid": lambda s: s.build.op("Mul", s.y, s.build.op("Sub", s.build.number(1.0), s.y)),
    "Softplus": lambda s: s.build.op("Sigmoid", s.x),
    "Tanh": lambda s: _one_minus_square(s, s.y),
    "Erf": lambda s: s.build.op("Mul", s.build.number(2.0 / math.sqrt(math.pi)), _gaussian(s)),
    "Exp": lambda s: s.y,
    "Log": lambda s: s.build.op("Reciprocal", s.x),
    "Sqrt": lambda s: s.build.op("Div", s.build.number(0.5), s.y),
    "Abs": lambda s: s.build.op("Sign", s.x),
    "Neg": lambda s: s.build.number(-1.0),
    "Reciprocal": lambda s: s.build.op("Neg", s.build.op("Mul", s.y, s.y)),
    "Sin": lambda s: s.build.op("Cos", s.x),
    "Cos": lambda s: s.build.op("Neg", s.build.op("Sin", s.x)),
}


def by_slope(step: Step) -> Gradients:
    """dx = dy f'(x), f' from the table `SLOPES`."""
    return [step.build.op("Mul", step.grad, SLOPES[step.node.op_type](step))]


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
    "CastLike": lambda step: [step.build.op("CastLike", step.grad, step.x)],
}
