"""A net that is run stretch by stretch gives what it gives from the start, and computes what is final only once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence import relay as relays
from onnx_cbq.evidence.relay import begin_at, final_ends
from onnx_cbq.evidence.statistics import Run, collecting
from onnx_cbq.evidence.tables import run_of
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.execution import IN_PROCESS
from onnx_cbq.graph.load import load
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.runtime import Session
from tests.conftest import random_set
from tests.exports import make_net
from tests.graphs import make_model, node

Exported = Callable[..., onnx.ModelProto]
SAMPLES = 50
WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def two_inputs() -> Model:
    """x and a mask m: the mask is read at the front and once more near the end; Split gives a tensor that waits."""
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Mul", "a m", "b"),
        node("Split", "b", "c d", axis=1, num_outputs=2),
        node("Concat", "d c", "e", axis=1),
        node("MatMul", "e w2", "f"),
        node("Add", "f d2", "g"),
        node("Concat", "d d", "d2", axis=1),
        node("Mul", "g m", "h"),
        node("MatMul", "h w3"),
    ]
    nodes[5], nodes[6] = nodes[6], nodes[5]
    constants = {name: WEIGHT * k for k, name in enumerate(("w1", "w2", "w3"), start=1)}
    return load(make_model(nodes, {"x": ["N", 4], "m": ["N", 4]}, ["y"], constants))


def test_ends_are_what_final_nodes_give_to_others() -> None:
    """By hand: with w2 to come, d, its copy and m wait beside the input of the second layer."""
    model = two_inputs()
    assert set(final_ends(model, {"w1", "w2", "w3"})) == {"x", "m"}
    assert set(final_ends(model, {"w2", "w3"})) == {"e", "d2", "m"}
    assert set(final_ends(model, {"w3"})) == {"h"}
    assert final_ends(model, ()) == ()


def test_a_part_begins_at_what_is_known() -> None:
    """Nodes in front are gone, and so are inputs that nothing reads; the outputs are the same."""
    model = two_inputs()
    feeds = {name: np.random.default_rng(k).standard_normal((5, 4)).astype(np.float32) for k, name in enumerate("xm")}
    whole = Session(model.with_graph(outputs=["e", "d2", "h", "y"])).run(feeds)
    known = {"e": whole["e"], "d2": whole["d2"], "m": feeds["m"]}
    part = begin_at(model, known, ["h"])
    assert [one.op_type for one in part.nodes] == ["MatMul", "Add", "Mul"]
    assert {spec.name for spec in part.inputs} == {"e", "d2", "m"}
    np.testing.assert_allclose(Session(part).run(known)["h"], whole["h"], rtol=1e-6)


def test_a_tensor_beside_one_that_is_known_is_computed_again() -> None:
    """Split gives both; only one was kept."""
    model = two_inputs()
    feeds = {name: np.random.default_rng(k).standard_normal((5, 4)).astype(np.float32) for k, name in enumerate("xm")}
    whole = Session(model.with_graph(outputs=["c", "d", "e"])).run(feeds)
    part = begin_at(model, {"c": whole["c"]}, ["e"])
    found = Session(part).run({"c": whole["c"], **feeds})
    np.testing.assert_allclose(found["e"], whole["e"], rtol=1e-6)


def moments_in_order(work: Workload, run: Run, limit: int) -> list[dict[str, Array]]:
    """Moments, about 0, of each layer once those in front are halved."""
    found: list[dict[str, Array]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relays, "KEPT_BYTES", limit)
        with collecting(IN_PROCESS, work.model, None, work.layers.layers, run) as collector:
            for i, layer in enumerate(work.layers):
                pending = frozenset(one.weight for one in work.layers.layers[i:])
                moments = collector.collect([layer], pending)[layer.name]
                x, y = moments.means[0] if moments.means else (np.zeros(1), np.zeros(1))
                parts = {"second": (moments.second[0], y, y), "cross": (moments.cross[0], x, y)}
                found.append({name: m + a[..., :, None] * b[..., None, :] for name, (m, a, b) in parts.items()})
                collector.rounded({layer.weight: work.model.weight(layer.weight) / 2})
    return found


@pytest.mark.parametrize("limit", [0, 30_000, 1 << 30], ids=["nothing", "some", "all"])
@pytest.mark.parametrize("name", ["residual", "depthwise", "vit"])
def test_moments_are_those_of_runs_from_the_start(
    exported: Exported, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fits; a stale tensor would give the moments of another net."""
    data = random_set(make_net(name).example_shape, SAMPLES)  # type: ignore[arg-type]
    work = prepare(exported(name, dynamo=False), data)
    drawn = draw(work.samples, work.class_names, None, seed=0)
    run = replace(run_of(work, drawn, RoundingConfig(), np.ones(work.logits.classes)), size=10)
    found = moments_in_order(work, run, limit)
    monkeypatch.setattr(relays, "final_ends", lambda *_: ())
    for ours, theirs in zip(found, moments_in_order(work, run, 0), strict=True):
        for kind, matrix in theirs.items():
            np.testing.assert_allclose(ours[kind], matrix, rtol=1e-4, atol=1e-5 * float(np.abs(matrix).max()))


def test_every_node_runs_once_per_batch_where_all_fits(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of it: the cost of all layers together is that of a pass, not of one for each."""
    data = random_set(make_net("residual").example_shape, SAMPLES)  # type: ignore[arg-type]
    work = prepare(exported("residual", dynamo=False), data)
    drawn = draw(work.samples, work.class_names, None, seed=0)
    run = replace(run_of(work, drawn, RoundingConfig(), np.ones(work.logits.classes)), size=10)
    ran: Counter[str] = Counter()

    def counted(model: Model, known: dict[str, Array], outputs: list[str]) -> Model:
        part = begin_at(model, known, outputs)
        ran.update(one.output[0] for one in part.nodes if one.op_type in ("Conv", "Gemm"))
        return part

    monkeypatch.setattr(relays, "begin_at", counted)
    moments_in_order(work, run, 1 << 30)
    assert set(ran.values()) == {2}, "once in the float net, once in the other"
