"""Score every channel of a model by how many classes need it."""

from __future__ import annotations

from dataclasses import replace

from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.scoring import score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.workload import DataSource, ModelSource, Workload, prepare, run_by
from onnx_cbq.execution.settings import ALONE, ExecutionConfig
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.records import Grouping, Layers, Scores
from onnx_cbq.stages.wild import without_wild
from onnx_cbq.system.progress import Progress, silent


def score(
    model: ModelSource,
    data: DataSource,
    config: QuantizeConfig | None = None,
    progress: Progress = silent,
    execution: ExecutionConfig = ALONE,
) -> tuple[Layers, Scores]:
    """Score every channel by how many classes need it; of `config` only samples, seed, logits and scoring matter.

    `execution` says who runs the model over the samples.

    Raises:
        OnnxCbqError: model or samples cannot be used, or an operator has no gradient rule.
    """
    config = config or QuantizeConfig()
    work = prepare(model, data, config.logits)
    with execution.open() as engine:
        work = without_wild(run_by(work, engine), _drawn(work, config).indices, progress)
        drawn = _drawn(work, config)
        found = _scores(work, drawn, config, progress)
    return work.layers, replace(found, notes=(*work.notes, *drawn.notes))


def _drawn(work: Workload, config: QuantizeConfig) -> Draw:
    return draw(work.samples, work.class_names, config.samples, config.seed)


def _scores(work: Workload, drawn: Draw, config: QuantizeConfig, progress: Progress) -> Scores:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, config.scoring, work.further.counted)
    scored = ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names))
    return score_channels(scored, drawn, progress, work.engine)
