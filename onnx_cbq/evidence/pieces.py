"""The pieces of evidence that more than one method looks at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from onnx_cbq.errors import UnsupportedOperatorError
from onnx_cbq.evidence.cache import Parts
from onnx_cbq.evidence.evidence import Evidence
from onnx_cbq.evidence.fingerprint import fingerprint
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.kept import Memory, gradient_parts, kept_scores, kept_sensitivity
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.rounders import NearestRounder, Rounder, TableRounder
from onnx_cbq.evidence.scoring import batch_size, fisher_squares, score_channels
from onnx_cbq.evidence.scoring_graph import ScoringGraph, scoring_graph
from onnx_cbq.evidence.tables import make_tables, table_parts
from onnx_cbq.model import Array
from onnx_cbq.quantize.table import Table
from onnx_cbq.records import Scores


def class_scores(evidence: Evidence) -> Scores:
    """Class scores of every channel.

    Raises:
        UnsupportedOperatorError: an operator has no gradient rule.
    """
    work, train, groups = evidence.work, evidence.train, evidence.groups
    return work.cache.of(
        kept_scores(work.layers, groups),
        lambda: [*gradient_parts(work, train, groups), evidence.settings.scoring],
        lambda: score_channels(_scoring(evidence), train, evidence.progress, work.engine),
    )


def sensitivity(evidence: Evidence) -> Mapping[str, Array]:
    """Layer -> what noise at each channel's output costs a group: the mean squared gradient, [groups, channels].

    Raises:
        UnsupportedOperatorError: an operator has no gradient rule.
    """
    work, train, groups, seed = evidence.work, evidence.train, evidence.groups, evidence.settings.seed
    return work.cache.of(
        kept_sensitivity(work.layers, groups),
        lambda: [*gradient_parts(work, train, groups), seed],
        lambda: fisher_squares(_scoring(evidence), train, seed, evidence.progress, work.engine),
    )


def channel_costs(evidence: Evidence, class_weights: Array, needed_by: str) -> dict[str, Array]:
    """a_c of every layer: half the mean square of the gradient at the channel's outputs, by classes that matter.

    `needed_by` is the option that an error names, since it does not go without gradients.

    Raises:
        UnsupportedOperatorError: an operator has no gradient rule.
    """
    try:
        found = evidence.of(sensitivity)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(
            f"{str(error).partition(';')[0]}, and {needed_by} chooses values by gradients; use --storage packed or int8"
        ) from error
    shares = evidence.groups.sums(class_weights) / class_weights.sum()
    return {layer.name: 0.5 * (shares @ found[layer.name]) for layer in evidence.work.layers}


def width_tables(evidence: Evidence) -> Mapping[str, Table]:
    """Layer -> every channel rounded to every width, with what that does to its outputs."""
    return make_tables(evidence.work, evidence.run, evidence.settings.compensation, evidence.progress)


def measure_by_tables(evidence: Evidence) -> PlanMeasure:
    """A measure of plans on the samples held back, rounded as in the tables."""
    work = evidence.work
    rounder = TableRounder(evidence.of(width_tables))
    return _measure(evidence, rounder, lambda: table_parts(work, evidence.run, work.layers.layers))


def measure_by_nearest(evidence: Evidence) -> PlanMeasure:
    """A measure of plans on the samples held back, rounded to nearest."""
    work = evidence.work
    return _measure(
        evidence, NearestRounder(work.model), lambda: [work.cache.digests.model(work.model), work.layers.layers]
    )


def _measure(evidence: Evidence, rounder: Rounder, rounded: Parts) -> PlanMeasure:
    """`rounded` says what the rounder depends on."""
    work = evidence.work

    @cache
    def base() -> str:
        held = work.cache.digests.samples(work.samples, evidence.held.indices)
        outputs = work.logits, evidence.groups, work.further.counted
        return fingerprint(type(rounder).__name__, rounded(), held, batch_size(work.layers), outputs)

    return PlanMeasure(
        work.model,
        work.layers,
        (work.samples, evidence.held.indices, batch_size(work.layers)),
        (work.logits, evidence.groups, work.further.counted),
        rounder,
        Memory(work.cache, base),
        work.engine,
    )


def _scoring(evidence: Evidence) -> ScoringWork:
    return ScoringWork(evidence.of(_graph), evidence.work.layers, evidence.work.samples, evidence.groups)


def _graph(evidence: Evidence) -> ScoringGraph:
    work = evidence.work
    return scoring_graph(
        work.model, work.layers, work.logits, work.example, evidence.settings.scoring, work.further.counted
    )
