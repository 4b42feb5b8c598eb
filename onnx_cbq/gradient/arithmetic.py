"""Gradients of operators that combine tensors element by element with broadcasting.

Every contribution is first computed in the output's shape, then summed over the axes along which its input was
broadcast.
"""

from __future__ import annotations

from onnx_cbq.gradient.site import Gradients, Rule, Site


def add(site: Site) -> Gradients:
    """y = a + b, also Sum of any number of inputs."""
    return [site.sum_to_input(site.grad, i) if needed else None for i, needed in enumerate(site.needed)]


def sub(site: Site) -> Gradients:
    """y = a - b."""
    negative = site.build.op("Neg", site.grad) if site.needed[1] else None
    return [
        site.sum_to_input(site.grad, 0) if site.needed[0] else None,
        site.sum_to_input(negative, 1) if negative else None,
    ]


def mul(site: Site) -> Gradients:
    """y = a b: da = dy b, db = dy a."""
    b = site.build
    return [
        site.sum_to_input(b.op("Mul", site.grad, site.node.input[1 - i]), i) if needed else None
        for i, needed in enumerate(site.needed)
    ]


def div(site: Site) -> Gradients:
    """y = a / b: da = dy / b, db = -dy y / b."""
    b = site.build
    ratio = b.op("Div", site.grad, site.node.input[1])
    slope = b.op("Neg", b.op("Mul", ratio, site.y)) if site.needed[1] else None
    return [
        site.sum_to_input(ratio, 0) if site.needed[0] else None,
        site.sum_to_input(slope, 1) if slope else None,
    ]


def extremum(site: Site) -> Gradients:
    """y = min or max of the inputs: dy goes to the inputs that attain it, in equal shares."""
    b = site.build
    hits = [b.indicator(b.op("Equal", name, site.y)) for name in site.node.input]
    count = b.op("Sum", *hits)
    share = b.op("Div", site.grad, count)
    return [
        site.sum_to_input(b.op("Mul", share, hit), i) if needed else None
        for i, (hit, needed) in enumerate(zip(hits, site.needed, strict=True))
    ]


def mean(site: Site) -> Gradients:
    """y = mean of the inputs."""
    share = site.build.op("Div", site.grad, site.build.number(len(site.node.input)))
    return [site.sum_to_input(share, i) if needed else None for i, needed in enumerate(site.needed)]


def where(site: Site) -> Gradients:
    """y = a where c, else b."""
    b = site.build
    condition = site.node.input[0]
    gradients: list[str | None] = [None, None, None]
    if site.needed[1]:
        gradients[1] = site.sum_to_input(b.where(condition, site.grad), 1)
    if site.needed[2]:
        gradients[2] = site.sum_to_input(b.where(b.op("Not", condition), site.grad), 2)
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
