"""What `quantize` goes through with some settings, for the time that is left in all."""

from __future__ import annotations

import numpy as np

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.cli.estimate import Route
from onnx_cbq.goals import Bits
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.methods import RateDistortion


def route_of(config: QuantizeConfig, card: CalibrationSet) -> Route | None:
    """The stages of a run; None where a limit decides how often they are gone through."""
    choice, refine = config.choice, config.refine
    if not isinstance(choice.goal, Bits):
        return None
    # Of other methods it is not known how long they take, but rounding and evaluation tell that by themselves.
    statistics, search = (("tables",), ("search",)) if isinstance(choice.method, RateDistortion) else ((), ())
    rounding = choice.scene.rounding
    stages = (("rounding", rounding.compensates), ("learned rounding", rounding.learns))
    solve = (*search, *(name for name, asked in stages if asked))
    training = () if refine is None else ("refine",)
    curve = (*solve, "evaluation") * len(config.curve)
    samples, limit = len(card.labels), card.card.limit
    if limit is not None:
        samples = min(samples, int(np.minimum(np.unique(card.labels, return_counts=True)[1], limit).sum()))
    most = {"learned rounding": 60 * config.learned.minutes} if rounding.learns else {}
    most |= {} if refine is None else {"refine": 60 * refine.minutes}
    return Route((*statistics, *solve, *training, *curve, "evaluation"), samples, most)
