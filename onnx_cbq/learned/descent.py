"""Learning itself: latent weights, biases and all scales follow the gradient of the divergence from the float model.

With q(theta) the net whose weights are theta's rounded to their grids, and p the float model, what falls is

    E KL(p(x) || q(x; theta))      by Adam, gradients straight through the rounding

(quantization-aware distillation; Mishra and Marr, arXiv 1711.05852). Labels say only what a sample counts. What is kept
is the last of what was seen on samples held back; or the best, which may be the start, if the last one has lost half of
what that had gained: a thousand samples say by chance a tenth more or less of a net with activations of few bits, and
while rates still fall, states get better whatever these say. What is seen there are running means of what is learned,
theta_t counting (1 + eta) / (t + eta) (Shamir and Zhang, ICML 2013): single states swing around these by as much as
learning saves at 3 bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_cbq.calibration.samples import Batch
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.scoring import batch_size
from onnx_cbq.learned.adam import Adam
from onnx_cbq.learned.grids import LearnedScale
from onnx_cbq.learned.latent import Latent
from onnx_cbq.learned.pace import by_time, rate_at, rise
from onnx_cbq.learned.settings import LearnedConfig
from onnx_cbq.learned.student import Student, make_student
from onnx_cbq.learned.teacher import Lesson, Taught, Teacher
from onnx_cbq.model import Array
from onnx_cbq.records import ActivationGrid, LayerWeights, Uniform
from onnx_cbq.system.progress import Progress, silent

_LOG = logging.getLogger("onnx_cbq")
# Of what is learned, in the last digit too.
LEARNED = 6
# Means are over about an eighth of what was done.
_ETA = 7
# Samples of an update, at least.
_FEWEST = 16


@dataclass(frozen=True)
class Learned:
    """Weights, biases and grids as they are in the end.

    Attributes:
        grids: of activations whose scale is another now, by tensor.
        before, after: loss of the samples held back.
        left: layers whose weights stay as they were: no gradient is known of a table, a ConvTranspose or a recurrent
            node with respect to its weight, or the answers do not depend on it.
        by_time: whether time decided, so that a repeated run may give something else.
        updates: how many were done; `kept` after how many that was which is kept, 0 for the start.
        skipped: how many of them did nothing, since a gradient was not finite.
    """

    weights: Mapping[str, LayerWeights]
    biases: Mapping[str, Array]
    grids: Mapping[str, ActivationGrid]
    before: float
    after: float
    updates: int
    kept: int
    left: tuple[str, ...] = ()
    by_time: bool = False
    skipped: int = 0


@dataclass(frozen=True)
class State:
    """Everything that is learned, by layer and by constant, and what its optimizer remembers of each."""

    latents: Mapping[str, Latent]
    biases: Mapping[str, Array]
    scales: Mapping[str, LearnedScale]
    memory: Mapping[tuple[str, str], Adam]

    def constants(self) -> dict[str, Array]:
        """What the student is given."""
        weights = {one.layer.weight: one.weight() for one in self.latents.values()}
        return {**weights, **self.biases, **{name: one.value for name, one in self.scales.items()}}

    def grids(self) -> dict[str, ActivationGrid]:
        """Those of activations that are learned."""
        return {name: grid for one in self.scales.values() for name, grid in one.grids().items()}

    def towards(self, other: State, share: float) -> State:
        """The mean of both, the other counting for a share; what an optimizer remembers is left behind."""

        def mean(first: Array, second: Array) -> Array:
            return np.asarray(first + share * (second - first), first.dtype)

        latents = {}
        for name, one in self.latents.items():
            to = other.latents[name]
            latents[name] = replace(one, rows=mean(one.rows, to.rows), log_scale=mean(one.log_scale, to.log_scale))
        biases = {name: mean(value, other.biases[name]) for name, value in self.biases.items()}
        scales = {
            name: replace(one, log_scale=mean(one.log_scale, other.scales[name].log_scale))
            for name, one in self.scales.items()
        }
        return State(latents, biases, scales, {})

    def moved(self, gradients: Mapping[str, Array], weight_rate: float, rate: float) -> State:
        """The state after an update."""
        memory: dict[tuple[str, str], Adam] = {}

        def move(key: tuple[str, str], value: Array, gradient: Array, speed: float) -> Array:
            known = self.memory.get(key) or Adam.of(value)
            found, memory[key] = known.step(value, np.asarray(gradient, np.float32), speed)
            return found

        latents = {}
        for name, one in self.latents.items():
            by_rows, by_scale = one.gradients(gradients[one.layer.weight])
            rows = move((name, "rows"), one.rows, by_rows, weight_rate * one.spacing)
            scale = one.log_scale
            if one.layer.rules.per_tensor:
                by_scale = np.full_like(by_scale, by_scale.sum())
            if not one.layer.rules.power_of_two:
                scale = move((name, "scale"), scale, by_scale, rate)
            latents[name] = replace(one, rows=rows, log_scale=scale)
        biases = {name: move((name, "bias"), value, gradients[name], rate) for name, value in self.biases.items()}
        scales = {}
        for name, scale_of in self.scales.items():
            slope = gradients[name] * scale_of.value
            found = move((name, "activations"), scale_of.log_scale, slope, rate)
            scales[name] = replace(scale_of, log_scale=found)
        return State(latents, biases, scales, memory)


def learn(
    lesson: Lesson,
    start: Mapping[str, LayerWeights],
    biases: Mapping[str, Array],
    config: LearnedConfig,
    progress: Progress = silent,
) -> Learned:
    """Better weights and biases than those to start from; these where nothing is better on the samples held back.

    Cost per update: a pass forward of the float net, and one forward and backward of the quantized net, together about
    seven times the first, and some fifty passes over the weights.

    Raises:
        UnsupportedOperatorError: an operator on the way has no gradient.
    """
    work, size = lesson.work, min(config.batch, batch_size(lesson.work.layers))
    student, state = begin(lesson, start, biases)
    outputs, held = (work.logits, lesson.groups, work.further.counted), (work.samples, lesson.held, size)
    measure = PlanMeasure(work.model, work.layers, held, outputs, None, engine=work.engine)

    def loss_of(state: State) -> float:
        return measure.run_instead(student.of(state.constants())).loss(lesson.class_weights)

    before = loss = loss_of(state)
    student.open()
    best, mean, kept, done, skipped, on_time, begun = state, state, 0, 0, 0, False, time.monotonic()
    batches, each = Teacher.of(lesson, size).endless(), _batches_each(config, work.samples.fixed_batch or size)
    while True:
        spent, share = (time.monotonic() - begun) / (60 * config.minutes), done / config.updates
        on_time = on_time or spent >= 1 or by_time(done, config.updates, spent)
        share = spent if on_time else share
        if share < 1:
            speed = rate_at(rise(before), done, share)
            gradients = _mean_gradients(student, state.constants(), [next(batches) for _ in range(each)])
            done += 1
            if all(np.isfinite(value).all() for value in gradients.values()):
                state = state.moved(gradients, speed * config.weight_rate, speed * config.rate)
            else:
                skipped += 1
            mean = mean.towards(state, (1 + _ETA) / (done + _ETA))
            progress("learned rounding", done, max(round(done / spent), done) if on_time else config.updates)
        if share >= 1 or done % config.check_every == 0 or done == config.updates:
            found = loss_of(mean)
            _LOG.debug("learned rounding, update %d: divergence on samples held back %.5f", done, found)
            if found < loss:
                best, kept, loss = mean, done, found
        if share >= 1 or done == config.updates:
            if _lasts(before, loss, found):
                best, kept, loss = mean, done, found
            break
    weights = {**start, **{name: one.integers() for name, one in best.latents.items()}} if kept else start
    left = tuple(layer.name for layer in lesson.work.layers if layer.name not in state.latents)
    found_biases, grids = ({**biases, **best.biases}, best.grids()) if kept else (biases, {})
    return Learned(weights, found_biases, grids, before, loss, done, kept, left, on_time, skipped)


def _lasts(start: float, best: float, last: float) -> bool:
    """Whether what is seen last counts, and not the best: it has half of the gain or more."""
    return last < start and last <= (start + best) / 2


def _batches_each(config: LearnedConfig, size: int) -> int:
    """How many batches an update takes: gradients of a few samples are mostly noise, and some models take only one."""
    return -(-min(config.batch, _FEWEST) // size)


def _mean_gradients(
    student: Student, constants: Mapping[str, Array], batches: Sequence[tuple[Batch, Taught]]
) -> dict[str, Array]:
    """The gradient of each constant over some batches of the same size."""
    total: dict[str, Array] = {}
    for batch, taught in batches:
        found = student.differentiate(batch.feeds, constants, taught)
        total = {name: total[name] + value for name, value in found.items()} if total else found
    return {name: np.asarray(value / len(batches), value.dtype) for name, value in total.items()}


def begin(lesson: Lesson, start: Mapping[str, LayerWeights], biases: Mapping[str, Array]) -> tuple[Student, State]:
    """The student, and the state to start from: layers on uniform grids, and biases, that the answers depend on."""
    work = lesson.work
    own = {use.bias: work.model.weight(use.bias) for layer in work.layers for use in layer.uses if use.bias is not None}
    every = {**own, **biases}
    uniform = [
        layer for layer in work.layers if layer.kind == "product" and isinstance(start[layer.name].grid, Uniform)
    ]
    rounded = {layer.weight: start[layer.name].values(layer) for layer in work.layers}
    student = make_student(
        replace(work, model=work.model.with_constants({**rounded, **every})),
        lesson.grids,
        lesson.groups,
        [*(layer.weight for layer in uniform), *every],
    )
    latents = {
        layer.name: Latent.of(layer, work.model.weight(layer.weight), start[layer.name])
        for layer in uniform
        if layer.weight in student.gradients
    }
    learned = {name: np.asarray(value, np.float32) for name, value in every.items() if name in student.gradients}
    return student, State(latents, learned, student.scales, {})
