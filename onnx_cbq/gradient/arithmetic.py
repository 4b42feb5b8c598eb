"""Gradients of operators that combine tensors element by element with broadcasting.

Every contribution is first computed in the output's shape, then summed over the axes along which its input was
broadcast.
"""

from __future__ import annotations

from onnx_cbq.gradient.step import Gradients, Rule, Step


def add(step: Step) -> Gradients:
    """y = a + b, also Sum of any number of inputs."""
    return [step.sum_to_input(step.grad, i) if needed else None for i, needed in enumerate(step.needed)]


def sub(step: Step) -> Gradients:
    """y = a - b."""
    negative = step.build.op("Neg", step.grad) if step.needed[1] else None
    return [
        step.sum_to_input(step.grad, 0) if step.needed[0] else None,
        step.sum_to_input(negative, 1) if negative else None,
    ]


def mul(step: Step) -> Gradients:
    """y = a b: da = dy b, db = dy a."""
    b = step.build
    return [
        step.sum_to_input(b.op("Mul", step.grad, step.node.input[1 - i]), i) if needed else None
        for i, needed in enumerate(step.needed)
    ]


def div(step: Step) -> Gradients:
    """y = a / b: da = dy / b, db = -dy y / b."""
    b = step.build
    ratio = b.op("Div", step.grad, step.node.input[1])
    slope = b.op("Neg", b.op("Mul", ratio, step.y)) if step.needed[1] else None
    return [
        step.sum_to_input(ratio, 0) if step.needed[0] else None,
        step.sum_to_input(slope, 1) if slope else None,
    ]


def extremum(step: Step) -> Gradients:
    """y = min or max of the inputs: dy goes to the inputs that attain it, in equal shares."""
    b = step.build
    hits = [b.indicator(b.op("Equal", name, step.y)) for name in step.node.input]
    count = b.op("Sum", *hits)
    share = b.op("Div", step.grad, count)
    return [
        step.sum_to_input(b.op("Mul", share, hit), i) if needed else None
        for i, (hit, needed) in enumerate(zip(hits, step.needed, strict=True))
    ]


def mean(step: Step) -> Gradients:
    """y = mean of the inputs."""
    share = step.build.op("Div", step.grad, step.build.number(len(step.node.input)))
    return [step.sum_to_input(share, i) if needed else None for i, needed in enumerate(step.needed)]


def where(step: Step) -> Gradients:
    """y = a where c, else b."""
    b = step.build
    condition = step.node.input[0]
    gradients: list[str | None] = [None, None, None]
    if step.needed[1]:
        gradients[1] = step.sum_to_input(b.where(condition, step.grad), 1)
    if step.needed[2]:
        gradients[2] = step.sum_to_input(b.where(b.op("Not", condition), step.grad), 2)
    return gradients


RULES: dict[str, Rule] = {
    "Add": add,
    "Sum": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Min": extremum,
    "Max": extremum,
    "Mean": mean,
    "Where": where,
}
