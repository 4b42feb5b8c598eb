"""A file is proved before it is written: tried early, held against its target, run as it will run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from onnx_cbq import AutoBits, CalibrationSet, QuantizeConfig, RoundingConfig, VerificationError, quantize
from onnx_cbq.evidence.workload import prepare
from onnx_cbq.goals.goal import solve
from onnx_cbq.graph.load import load
from onnx_cbq.jobs.result import Result
from onnx_cbq.model import Array, Model
from onnx_cbq.records import LayerWeights
from onnx_cbq.runtime import median_latency
from onnx_cbq.stages.scene import Scene
from onnx_cbq.stages.solution import Solution, emit_solution
from onnx_cbq.stages.written import write_solution
from onnx_cbq.storage import Storage
from onnx_cbq.system.processor import architecture, processor_kind
from onnx_cbq.targets import CPU
from onnx_cbq.targets.lint import lint
from onnx_cbq.verification import comparison
from onnx_cbq.verification import prove as proving
from onnx_cbq.verification.comparison import Comparison, Fidelity, compare
from onnx_cbq.verification.kernels import Deviation, deviations
from onnx_cbq.verification.prove import attempt
from onnx_cbq.verification.saturation import saturates
from tests.conftest import DIGITS_CARD, DIGITS_MODEL, ROOT, random_set
from tests.graphs import make_model, node
from tests.scenes import aim, scene_of

UNIFORM = QuantizeConfig(bits=8, method="uniform", rounding="nearest", equalize=False, samples=50)


@pytest.fixture(autouse=True)
def _no_time_for_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "median_latency", partial(median_latency, seconds=0))


def broken(*arguments: Any, write: Callable[..., Model] = write_solution) -> Model:
    """The file that would be written, with an operator that nobody knows."""
    model = write(*arguments)
    return model.with_graph(
        [NodeProto(op_type="Nonsense", input=["logits"], output=["odd"])], outputs=["logits", "odd"]
    )


def forbidden(*_: object, **__: object) -> None:
    pytest.fail("a long stage began before the path was tried")


def test_what_cannot_be_loaded_is_refused_before_the_long_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "write_solution", broken)
    for stage in ("equalize", "make_scene"):
        monkeypatch.setattr(f"onnx_cbq.jobs.quantize.{stage}", forbidden)
    with pytest.raises(VerificationError, match="the quantized model is not valid: "):
        quantize(DIGITS_MODEL, DIGITS_CARD, QuantizeConfig())


def test_a_broken_file_is_refused_within_seconds(
    monkeypatch: pytest.MonkeyPatch, real_data: Callable[[str], Path]
) -> None:
    """ResNet-20 and 1,000 samples: what used to fail after minutes."""
    card = CalibrationSet.from_card(ROOT / "calibration" / "cifar10.toml", real_data("cifar10_calibration.npz"))
    monkeypatch.setattr(proving, "write_solution", broken)
    begun = time.monotonic()
    with pytest.raises(VerificationError, match="the quantized model is not valid: "):
        quantize(real_data("resnet20_cifar10.onnx"), card, QuantizeConfig(samples=1000))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "config",
    [
        UNIFORM,
        replace(UNIFORM, storage="packed", bits=3),
        QuantizeConfig(bits=3, codebook="kmeans", storage="packed"),
        QuantizeConfig(bits=2, storage="archive"),
        replace(UNIFORM, activation_bits=0, storage="packed"),
        replace(UNIFORM, target="vitis"),
    ],
    ids=["int8", "packed", "shared", "archive", "weights only", "vitis"],
)
def test_the_trial_goes_the_whole_way(config: QuantizeConfig) -> None:
    choice = config.choice
    attempt(aim(prepare(DIGITS_MODEL, DIGITS_CARD), config), choice.method, choice.scene, run_check=choice.run_check)


def unsafe(scene: Scene) -> Mapping[str, LayerWeights]:
    """Weights whose pairs overflow in 16 bits."""
    weights = solve(scene, UNIFORM.choice.method, 8).rounded.weights
    return {name: replace(found, codes=np.full_like(found.codes, 127)) for name, found in weights.items()}


def test_codes_that_overflow_are_found_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is in the file: on a processor with VNNI a run would show nothing."""

    def emit(scene: Scene, solution: Solution, storage: Storage | None = None) -> Model:
        written = replace(solution.written, weights=unsafe(scene_of(scene.work, UNIFORM)))
        return emit_solution(scene, replace(solution, written=written), storage)

    monkeypatch.setattr("onnx_cbq.stages.written.emit_solution", emit)
    monkeypatch.setattr(proving, "check_kernels", lambda *_: None)
    with pytest.raises(VerificationError, match=r"not fit for --target cpu: wrong: .* add up to 128 .*, found 254"):
        quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)


@pytest.mark.parametrize("bits", [8, AutoBits(6.0, (4, 8))])
def test_a_file_for_vnni_is_not_proved_where_kernels_saturate(
    monkeypatch: pytest.MonkeyPatch, bits: int | AutoBits
) -> None:
    """The widest activation that may come counts."""
    monkeypatch.setattr(proving, "saturates", lambda: True)
    config = replace(UNIFORM, target="vnni", activation_bits=bits)
    with pytest.raises(VerificationError, match=r"--target vnni: .* saturate.*use --target cpu, or say --no-run-check"):
        quantize(DIGITS_MODEL, DIGITS_CARD, config)
    result = quantize(DIGITS_MODEL, DIGITS_CARD, replace(config, run_check=False))
    assert result.fidelity is None
    assert any("integer kernels were not run" in note for note in result.notes)
    assert {violation.finding.fact for violation in lint(result.model, CPU)} == {"pairs"}


@pytest.mark.skipif(saturates(), reason="the integer kernels of this processor saturate")
def test_a_file_for_vnni_is_proved_where_kernels_do_not_saturate() -> None:
    result = quantize(DIGITS_MODEL, DIGITS_CARD, replace(UNIFORM, target="vnni"))
    assert result.fidelity is not None


def test_predictions_of_both_graphs_are_counted() -> None:
    result = quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)
    assert result.fidelity is not None
    assert result.fidelity.samples == 500
    assert result.fidelity.differing <= 1


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (Fidelity(10_000, 50, 25, 25), (True, True)),
        (Fidelity(10_000, 51, 25, 25), (False, True)),
        (Fidelity(100, 3, 0, 3), (True, True)),
        (Fidelity(100, 4, 2, 2), (False, True)),
        (Fidelity(10_000, 40, 5, 30), (True, False)),  # by chance 5 to 30 comes once in 30,000 times
        (Fidelity(10_000, 40, 12, 25), (True, True)),
    ],
)
def test_what_rounding_and_chance_explain(found: Fidelity, holds: tuple[bool, bool]) -> None:
    assert (found.is_small, found.is_even) == holds


def predicting(monkeypatch: pytest.MonkeyPatch, found: Fidelity, *off: Deviation) -> None:
    """Let the optimized graph seem to differ from the plain one."""

    def differing(*arguments: Any) -> Comparison:
        return replace(compare(*arguments), fidelity=found)

    monkeypatch.setattr(proving, "compare", differing)
    monkeypatch.setattr(proving, "deviations", lambda *_, **__: list(off))


@pytest.mark.parametrize(
    ("found", "off"),
    [
        (Fidelity(500, 20, 1, 19), Deviation("Conv c", "x", 1, 1, 10_000)),  # one is better than the other
        (Fidelity(500, 80, 3, 4), Deviation("Conv c", "x", 2, 1, 10_000)),  # what MOST_CODES refuses, on other samples
        (Fidelity(500, 80, 3, 4), Deviation("Conv c", "x", 1, 3_000, 10_000)),  # a kernel that rounds down
    ],
)
def test_graphs_that_predict_differently_are_refused(
    monkeypatch: pytest.MonkeyPatch, found: Fidelity, off: Deviation
) -> None:
    predicting(monkeypatch, found, off)
    with pytest.raises(VerificationError, match=rf"different classes for {found.differing} of 500 .* Conv c is off by"):
        quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)


def test_a_net_that_enlarges_rounding_is_written_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep net of random weights was refused after minutes, with every code within one of what the file says."""
    predicting(monkeypatch, Fidelity(500, 80, 3, 4), Deviation("Conv c", "x", 1, 1, 10_000))
    result = quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)
    assert len(notes_of(result, "different classes for 80 of 500 samples (16.00 %; 3 and 4 of them rightly)")) == 1


def test_kernels_are_looked_at_again_on_more_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 16 samples do not show may show on others."""
    seen = []

    def looked(model: Model, feeds: Mapping[str, Array], most: int) -> list[Deviation]:
        seen.append((next(iter(feeds.values())), most))
        return deviations(model, feeds, most)

    predicting(monkeypatch, Fidelity(500, 80, 3, 4))
    monkeypatch.setattr(proving, "deviations", looked)
    quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)
    assert [most for _, most in seen] == [0] * 4
    assert len(np.unique(np.concatenate([samples for samples, _ in seen]), axis=0)) == 64


def tiny() -> onnx.ModelProto:
    constants: dict[str, Array] = {"w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32)}
    return make_model([node("Gemm", "x w b")], {"x": ["N", 4]}, ["y"], constants)


def notes_of(result: Result, word: str) -> list[str]:
    return [note for note in result.notes if word in note]


def test_a_file_that_is_not_smaller_says_so() -> None:
    result = quantize(tiny(), random_set((4,), classes=2), replace(UNIFORM, samples=None))
    assert result.sizes.file >= result.reference.bytes
    assert notes_of(result, "not smaller than the float model")
    assert not notes_of(quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM), "not smaller")


@pytest.mark.parametrize(("ratio", "said"), [(1.5, True), (0.9, False)])
def test_a_file_that_is_slower_here_says_so(monkeypatch: pytest.MonkeyPatch, ratio: float, said: bool) -> None:
    monkeypatch.setattr(comparison, "median_latency", lambda sessions, _: [1e-3, ratio * 1e-3, 1e-3][: len(sessions)])
    found = notes_of(quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM), "slower than the float model")
    assert bool(found) is (said and architecture() in CPU.machines)
    assert not found or f"({processor_kind()}): 1.50 times" in found[0]


def test_figures_of_another_runtime_are_not_claimed() -> None:
    result = quantize(DIGITS_MODEL, DIGITS_CARD, replace(UNIFORM, target="tensorrt"))
    assert notes_of(result, "not of TensorRT")


def test_weights_only_tell_of_the_session_option() -> None:
    config = replace(UNIFORM, activation_bits=0)
    assert notes_of(quantize(DIGITS_MODEL, DIGITS_CARD, config), "session.disable_quant_qdq=1")
    packed = quantize(DIGITS_MODEL, DIGITS_CARD, replace(config, storage="packed"))
    assert not notes_of(packed, "session.disable_quant_qdq")
    operators = {found.op_type for found in packed.proto.graph.node}
    assert "DequantizeLinear" not in operators


def test_what_stayed_float_is_a_share_of_all_weights() -> None:
    """Here the biases alone: 90 of 12,730 numbers."""
    result = quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM)
    constants = [load(DIGITS_MODEL).weight(t.name) for t in load(DIGITS_MODEL).skeleton.graph.initializer]
    total = sum(value.size for value in constants if value.dtype == np.float32)
    assert result.left_float == pytest.approx(100 * (total - result.layers.size) / total)
    assert result.processor == processor_kind()


def test_every_rounding_of_a_whole_run_is_pair_safe() -> None:
    """What is proved of files holds for every way of making one; large weights of one sign are the worst case."""
    random = np.random.default_rng(0)
    values = {
        "w": random.choice([-1, 1], (1, 24)) * random.uniform(0.8, 1, (32, 24)) / 6,
        "v": random.choice([-1, 1], (1, 4)) * random.uniform(0.8, 1, (24, 4)),
        "b": random.standard_normal(24),
        "c": random.standard_normal(4),
    }
    constants: dict[str, Array] = {name: value.astype(np.float32) for name, value in values.items()}
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v c")]
    proto = make_model(nodes, {"x": ["N", 32]}, ["y"], constants)
    quick = RoundingConfig(refits=1, sweeps=1)
    for settings in (
        {"method": "uniform", "bits": 8},
        {"method": "uniform", "bits": 7},
        {"method": "uniform", "bits": 8, "rounding": "nearest"},
        {"bits": 6},
        {"bits": 7, "storage": "packed"},
        {"bits": 6, "storage": "archive"},
        {"bits": 8, "codebook": "kmeans"},
        {"bits": 7, "codebook": "hessian-kmeans", "codebook_scope": "net"},
        {"bits": 5, "codebook": "ecsq", "storage": "archive"},
        {"method": "cbq", "bits": 6, "keep": (("v", 8),)},
    ):
        config = QuantizeConfig(**settings, samples=40, compensation=quick)
        result = quantize(proto, random_set((32,), 80, 4), config)
        assert [str(violation) for violation in lint(result.model, CPU)] == [], settings
