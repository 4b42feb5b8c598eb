"""Which refusals are true: the message, and what must hold of the model for it."""

from __future__ import annotations

import re
from collections.abc import Callable

from onnx_cbq import QuantizeConfig
from tests.generator.jobs import Job
from tests.generator.models import Case

WITHOUT_GRADIENT = ("If", "Loop", "LSTM", "GRU", "RNN", "Atan", "CumSum", "LpNormalization", "LRN")
# Message -> (why it is right, when it is).
REFUSALS: tuple[tuple[str, str, Callable[[Case, Job], bool]], ...] = (
    (
        r"^several outputs of shape",
        "the class scores must be named",
        lambda case, _: case.logits is None and len(case.model.graph.output) > 1,
    ),
    (
        r"the model has opset \d+, expected \d+ or earlier for --target",
        "the target takes no opset so late",
        lambda _, job: isinstance(job.config, QuantizeConfig) and job.config.target != "cpu",
    ),
    (
        r"the model takes \d+ samples at a time, expected 1 or any number for --target",
        "the target takes one sample at a time",
        lambda case, _: (case.fixed_batch or 1) > 1,
    ),
    (
        r"no layer to quantize: .*the nodes that share its weight do not agree on the output channels",
        "its layers use one weight in two ways",
        lambda case, _: "shared weight" in case.features,
    ),
    (
        rf"operator ({'|'.join(WITHOUT_GRADIENT)}) has no gradient rule(;|, and .* chooses values by gradients)",
        "no gradient passes this operator",
        lambda _, job: (
            job.config is None or (isinstance(job.config, QuantizeConfig) and job.config.method != "uniform")
        ),
    ),
)


def reason_of(message: str, case: Case, job: Job) -> str | None:
    """Why it is right to refuse `case` with `message`, or None if it is not."""
    return next((why for pattern, why, holds in REFUSALS if re.search(pattern, message) and holds(case, job)), None)
