"""What samples say of recurrent weights and of tables: moments, how often entries are looked up, and scores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.scoring import score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.evidence.statistics import collect_moments
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.model import Array
from onnx_cbq.quantize.moments import UNSEEN
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records import Grouping
from onnx_cbq.runtime import Session
from tests.graphs import make_model, node

ENTRIES, WIDTH, STEPS, HIDDEN = 40, 64, 5, 4


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.5


def text_classifier(operator: str = "LSTM", gates: int = 4) -> onnx.ModelProto:
    """Words -> embedding -> a recurrent node in both directions -> mean -> three classes."""
    constants = {
        "emb": numbers(1, ENTRIES, WIDTH),
        "rnn.w": numbers(2, 2, gates * HIDDEN, WIDTH),
        "rnn.r": numbers(3, 2, gates * HIDDEN, HIDDEN),
        "axes": np.array([0, 1]),
        "fc": numbers(4, HIDDEN, 3),
    }
    nodes = [
        node("Gather", "emb x", "words"),
        node("Transpose", "words", "steps", perm=[1, 0, 2]),
        node(operator, "steps rnn.w rnn.r", "states last", hidden_size=HIDDEN, direction="bidirectional"),
        node("ReduceMean", "states axes", "mean", keepdims=0),
        node("MatMul", "mean fc", "y"),
    ]
    return make_model(nodes, {"x": ["N", STEPS]}, ["y"], constants, dtypes={"x": np.int64})


def samples(count: int = 60) -> tuple[Array, Array]:
    """Words 0 .. 29, those from 10 on also counted from the end; 30 .. 39 are never seen."""
    random = np.random.default_rng(0)
    words = random.integers(0, 30, (count, STEPS))
    return np.where(words < 10, words, words - ENTRIES), np.arange(count) % 3


def test_rows_of_a_table_count_by_how_often_they_are_looked_up() -> None:
    """An entry that no sample has would have no bits, and one counted from the end would be another."""
    x, y = samples()
    work = prepare(text_classifier(), CalibrationSet.from_arrays(x, y))
    run = run_of(work, draw(work.samples, work.class_names, None, seed=0), RoundingConfig(), np.ones(3))
    found = collect_moments(work.model, None, work.layers.layers, run)["emb"]
    together = WIDTH * ENTRIES // work.layers.by_name["emb"].weight_shape[0] // WIDTH
    counts = np.bincount((x % ENTRIES).reshape(-1) // together, minlength=ENTRIES // together)
    assert together == 2
    assert found.shares is not None
    np.testing.assert_allclose(found.shares, (1 - UNSEEN) * counts / counts.sum() + UNSEEN / len(counts))


def test_recurrent_weights_see_inputs_and_the_states_before() -> None:
    """The second direction comes from the end, and states of its own multiply its rows of R."""
    x, y = samples()
    work = prepare(text_classifier(), CalibrationSet.from_arrays(x, y))
    run = run_of(work, draw(work.samples, work.class_names, None, seed=0), RoundingConfig(), np.ones(3))
    found = collect_moments(work.model, None, work.layers.layers, run)
    values = Session(work.model.with_graph(outputs=["steps", "states"])).run({"x": x})
    rows = values["steps"].reshape(-1, WIDTH).astype(np.float64)
    np.testing.assert_allclose(found["rnn.w"].second[0][0], rows.T @ rows / len(rows), rtol=0, atol=1e-5)
    for d, states in enumerate((values["states"][:-1, 0], values["states"][1:, 1])):
        rows = states.reshape(-1, HIDDEN).astype(np.float64)
        np.testing.assert_allclose(found["rnn.r"].second[0][d], rows.T @ rows / len(rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_every_row_is_scored(operator: str, gates: int) -> None:
    """Words that a class never has score less for it; no row of a gate is left at 0."""
    x, y = samples()
    x[y == 0] = np.where(x[y == 0] == 5, 6, x[y == 0])  # class 0 never says word 5 or its neighbour
    x[y == 0] = np.where(x[y == 0] == 4, 6, x[y == 0])
    work = prepare(text_classifier(operator, gates), CalibrationSet.from_arrays(x, y))
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    scores = score_channels(
        ScoringWork(graph, work.layers, work.samples, Grouping.single(work.class_names)), drawn
    ).by_layer
    for name in ("rnn.w", "rnn.r"):
        assert scores[name].beta.shape == (3, 2 * gates * HIDDEN)
        # The forget gate has nothing to forget at the first step only.
        assert (scores[name].saliency > 0).all()
    np.testing.assert_array_equal(scores["rnn.w"].saliency, scores["rnn.r"].saliency)
    row = 4 // 2
    assert scores["emb"].saliency[0, row] < scores["emb"].saliency[1:, row].min()
    assert (scores["emb"].beta > 0).all()
    assert (scores["emb"].beta <= 1).all()


@pytest.mark.parametrize("storage", ["int8", "packed", "archive"])
def test_a_text_classifier_goes_the_whole_way(storage: str) -> None:
    """Methods, rounding, file and checks together, and every weight but biases in the average."""
    x, y = samples()
    proto = text_classifier()
    result = quantize(proto, CalibrationSet.from_arrays(x, y), QuantizeConfig(bits=4, storage=storage))
    assert [layer.operator for layer in result.layers] == ["Gather", "LSTM", "LSTM", "Gemm"]
    assert result.left_float < 1
    assert result.average_bits <= 5 if storage == "archive" else result.average_bits == pytest.approx(4, abs=0.01)
