"""Evidence is the same, bit for bit, whoever gathers it."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq import QuantizeConfig
from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.measure import Measured, PlanMeasure
from onnx_cbq.evidence.rounders import NearestRounder
from onnx_cbq.evidence.scoring import fisher_squares, score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.tensors import collect_histograms, collect_ranges, collect_sizes
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.execution import IN_PROCESS, Engine
from onnx_cbq.execution.cluster import Cluster
from onnx_cbq.execution.processes import Processes
from onnx_cbq.jobs.quantize import _quantize
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Grouping, Plan
from onnx_cbq.stages.compensation import Fitting, fitting_plan, round_in_order
from onnx_cbq.system.progress import Progress, silent
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.execution.works import pids

SIZE = 16
SAMPLES = 120


@pytest.fixture(scope="module")
def work() -> Workload:
    return prepare(DIGITS_MODEL, DIGITS_CARD)


@pytest.fixture(scope="module")
def drawn(work: Workload) -> Draw:
    return draw(work.samples, work.class_names, SAMPLES, seed=0)


def scoring_work(work: Workload) -> ScoringWork:
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig(), work.further.counted)
    return ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names))


def plans(work: Workload) -> list[Plan]:
    random = np.random.default_rng(3)
    return [
        Plan({layer.name: random.integers(1, 6, layer.channels).astype(np.int8) for layer in work.layers})
        for _ in range(3)
    ]


def measured(work: Workload, drawn: Draw, engine: Engine) -> list[Measured]:
    """Plans, some of them left early, and changes of one layer."""
    outputs = work.logits, Grouping.single(work.class_names), work.further.counted
    rounder = NearestRounder(work.model)
    samples = work.samples, drawn.indices, SIZE
    measure = PlanMeasure(work.model, work.layers, samples, outputs, rounder, engine=engine)
    first, second, third = plans(work)
    found = [measure(first), measure(second, lambda one: len(one.further) > 3 * SIZE), measure(third)]
    base, changed = measure.constants(first), measure.constants(second)
    changes = ((layer, {layer.weight: changed[layer.weight]}) for layer in work.layers)
    return [*found, *measure.alone(base, changes), measure.run(base)]


def in_order(work: Workload, drawn: Draw, engine: Engine) -> Any:
    """Constants of layers that are rounded one after another, each behind those in front."""
    config = RoundingConfig()
    run = run_of(work, drawn, config, np.ones(len(work.class_names)))
    fitting = Fitting(fitting_plan(plans(work)[0], config))
    return round_in_order(work.model, None, work.layers, fitting, run, engine=engine).constants(work.layers)


KINDS: dict[str, Callable[[Workload, Draw, Engine], Any]] = {
    "scores": lambda work, drawn, engine: score_channels(scoring_work(work), drawn, engine=engine),
    "sensitivity": lambda work, drawn, engine: fisher_squares(scoring_work(work), drawn, 7, engine=engine),
    "histograms": lambda work, drawn, engine: collect_histograms(
        work.model, _tensors(work), work.samples, drawn, SIZE, engine=engine
    ),
    "ranges": lambda work, drawn, engine: collect_ranges(
        work.model, dict.fromkeys(_tensors(work), 1), work.samples, drawn.indices, SIZE, engine=engine
    ),
    "sizes": lambda work, drawn, engine: collect_sizes(
        work.model, work.layers, work.samples, drawn.indices, SIZE, engine=engine
    ),
    "moments in order": in_order,
    "plans": measured,
}


def _tensors(work: Workload) -> list[str]:
    return list(dict.fromkeys(use.activation for layer in work.layers for use in layer.uses))


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_the_same_whoever_gathers_it(
    work: Workload, drawn: Draw, remote: Engine, kind: str, expected: dict[str, str]
) -> None:
    """Whatever the number of workers, and with one thread each where this process uses all."""
    found = flattened(KINDS[kind](work, drawn, remote))
    if kind not in expected:
        expected[kind] = flattened(KINDS[kind](work, drawn, IN_PROCESS))
    assert found == expected[kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file that this process makes, alone."""
    return written(IN_PROCESS, tmp_path_factory.mktemp("alone"))


def written(engine: Engine, folder: Path, progress: Progress = silent) -> bytes:
    config = QuantizeConfig(bits=3, samples=SAMPLES)
    _quantize((DIGITS_MODEL, DIGITS_CARD), config, (progress, None), engine).save(folder / "q.onnx")
    return (folder / "q.onnx").read_bytes()


def test_a_whole_run_writes_the_same_file_though_a_worker_is_killed(
    remote: Processes | Cluster, alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between layers that are rounded one after another, when workers hold what was computed in front of them."""
    monkeypatch.setattr(remote, "_lost", 0)
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "rounding" and 0 < done < total and not killed:
            killed.append(min(pids(remote)))
            os.kill(killed[0], signal.SIGKILL)

    assert written(remote, tmp_path, kill) == alone
    assert killed


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """What this process finds, once."""
    return {}


def flattened(value: Any) -> str:
    """The bytes of everything in it, and how it is put together."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return str({name: flattened(one) for name, one in value.items()})
    if isinstance(value, list | tuple):
        return str([flattened(one) for one in value])
    if hasattr(value, "__dict__"):
        return flattened(vars(value))
    return repr(value)
