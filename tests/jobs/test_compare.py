"""`compare`: figures are those of `evaluate`, whatever kind of file a model lies in; tests against numpy and SciPy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binomtest

from onnx_cbq import CalibrationSet, QuantizeConfig, StepConfig, archive, compare, evaluate, make_steps, quantize
from onnx_cbq.calibration.sources import ArraySource
from onnx_cbq.errors import CalibrationError, ConfigError, ModelError
from onnx_cbq.jobs import compare as job
from onnx_cbq.jobs.compare_result import Timing
from onnx_cbq.model import Array
from onnx_cbq.search.racing import chance_of_difference
from onnx_cbq.system.timing import median_seconds
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

CLASSES, SIZE = 4, 5
UNIFORM = QuantizeConfig(bits=2, method="uniform", samples=60)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "median_seconds", lambda runs, _: median_seconds(runs, 0))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at 2 bits."""
    path = tmp_path_factory.mktemp("compared") / "q.onnx"
    quantize(DIGITS_MODEL, DIGITS_CARD, UNIFORM).save(path)
    return path


def linear(weight: Array, last: str | None = None, *, batch: int | str = "n", name: str = "x") -> onnx.ModelProto:
    """scores = x W, and what `last` makes of them."""
    nodes = [helper.make_node("MatMul", [name, "w"], ["z" if last else "y"])]
    nodes += [helper.make_node(last, ["z"], ["y"])] if last else []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def zip_map(weight: Array, names: Sequence[str]) -> onnx.ModelProto:
    """A model that gives a dictionary for each sample, as those of scikit-learn do."""
    model = linear(weight, "Softmax")
    model.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["p"], domain="ai.onnx.ml", classlabels_strings=list(names))
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info("p"))
    return model


def saved(folder: Path, **models: onnx.ModelProto) -> list[Path]:
    paths = [folder / f"{name}.onnx" for name in models]
    for path, model in zip(paths, models.values(), strict=True):
        onnx.save(model, path)
    return paths


def samples(count: int = 70) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    return random.standard_normal((count, SIZE)).astype(np.float32), np.arange(count) % CLASSES


def weights(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((SIZE, CLASSES))


def softmax(scores: Array) -> Array:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def test_figures_are_those_of_evaluate(coarse: Path) -> None:
    result = compare([DIGITS_MODEL, coarse], DIGITS_CARD)
    expected = evaluate(coarse, DIGITS_CARD, DIGITS_MODEL)
    first, second = result.models
    assert expected.reference is not None
    for found, wanted in ((first, expected.reference), (second, expected.model)):
        np.testing.assert_array_equal(found.evaluation.confusion, wanted.confusion)
        assert (found.evaluation.top1, found.evaluation.bytes) == (wanted.top1, wanted.bytes)
    assert second.agreement == expected.agreement
    assert (first.agreement, first.gained, first.lost, first.chance) == (100, 0, 0, 1)
    assert second.gained - second.lost == round((second.evaluation.top1 - first.evaluation.top1) / 100 * 500)
    assert 0 < second.compressed < second.evaluation.bytes
    assert second.memory > 0


@pytest.mark.parametrize("last", [None, "Softmax", "LogSoftmax"])
def test_disagreements_are_the_farthest_answers(tmp_path: Path, last: str | None) -> None:
    """Confidences and divergences by the definition, whether a model ends in scores or in probabilities."""
    (x, y), one, other = samples(), weights(1), weights(2)
    paths = saved(tmp_path, one=linear(one), other=linear(other, last))
    result = compare(paths, CalibrationSet.from_arrays(x, y))
    p, q = softmax(x @ one), softmax(x @ other)
    divergence = (p * np.log(p / q)).sum(axis=1)
    differ = np.flatnonzero(p.argmax(axis=1) != q.argmax(axis=1))
    order = differ[np.argsort(-divergence[differ])][: job.DISAGREEMENTS]
    assert [found.sample for found in result.disagreements] == order.tolist()
    for found in result.disagreements:
        assert found.divergence == pytest.approx(divergence[found.sample], rel=1e-4)
        assert found.label == str(y[found.sample])
        for (name, share), mine in zip(found.answers, (p, q), strict=True):
            assert name == str(mine[found.sample].argmax())
            assert share == pytest.approx(mine[found.sample].max(), rel=1e-5)
    right, also = (shares.argmax(axis=1) == y for shares in (p, q))
    assert (result.models[1].gained, result.models[1].lost) == ((also & ~right).sum(), (right & ~also).sum())
    spread = right.mean() * (1 - right.mean()) / len(y)
    assert result.models[0].error == pytest.approx(100 * np.sqrt(spread))


def test_two_classes_by_one_number(tmp_path: Path) -> None:
    """A score, and the probability that a Sigmoid makes of it."""
    x, _ = samples()
    weight = weights(1)[:, :1]
    score = linear(weight)
    share = linear(weight, "Sigmoid")
    for model in (score, share):
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    result = compare(saved(tmp_path, score=score, share=share), CalibrationSet.from_arrays(x, np.arange(len(x)) % 2))
    assert result.models[1].agreement == 100
    assert result.disagreements == ()
    assert result.models[0].evaluation.top1 == result.models[1].evaluation.top1


def test_models_of_other_batches_and_names_of_inputs(tmp_path: Path) -> None:
    """Other tools' files: a fixed batch that does not divide the samples, an input that is called otherwise."""
    x, y = samples()
    paths = saved(
        tmp_path,
        any=linear(weights(1)),
        three=linear(weights(1), batch=3),
        named=linear(weights(1), name="pixels", batch=2),
    )
    result = compare(paths, CalibrationSet.from_arrays(x, y))
    for model in result.models:
        assert (model.evaluation.samples, model.agreement) == (70, 100)
    assert [[(t.batch, t.threads) for t in model.timings] for model in result.models] == [
        [(1, 0), (job.LATENCY_BATCH, 0), (1, 1), (job.LATENCY_BATCH, 1)],
        [(3, 0), (3, 1)],
        [(2, 0), (2, 1)],
    ]


def test_archives_and_steps_are_compared_as_they_are(coarse: Path, tmp_path: Path) -> None:
    packed, folder = tmp_path / "q.cbqz", tmp_path / "steps"
    archive(coarse).save(packed)
    make_steps(DIGITS_MODEL, DIGITS_CARD, StepConfig(macs=(0.3, 0.7), updates=4, rounds=1)).save(folder)
    result = compare([DIGITS_MODEL, coarse, packed, folder], DIGITS_CARD)
    _, plain, archived, first, both = result.models
    assert archived.evaluation.top1 == plain.evaluation.top1
    assert archived.evaluation.bytes == packed.stat().st_size < plain.evaluation.bytes
    sizes = [(folder / f"step_{number}.onnx").stat().st_size for number in (1, 2)]
    assert (first.evaluation.bytes, both.evaluation.bytes) == (sizes[0], sum(sizes))
    assert (first.label, both.label) == (f"{folder}, step 1", f"{folder}, steps 1 to 2")
    assert both.memory > 0


def test_samples_that_models_take_alike_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a folder were decoded anew for every model."""
    x, y = samples()
    read: list[int] = []
    plain = ArraySource.read

    def counted(source: ArraySource, name: str, indices: Sequence[int]) -> Array:
        read.extend(indices)
        return plain(source, name, indices)

    monkeypatch.setattr(ArraySource, "read", counted)
    paths = saved(tmp_path, a=linear(weights(1)), b=linear(weights(2)), c=linear(weights(3), "Softmax"))
    monkeypatch.setattr(job, "_timings", lambda entries, *_: [(Timing(1, 0, 1.0),)] * len(entries))
    compare(paths, CalibrationSet.from_arrays(x, y))
    # Twice for those that end in scores and those that end in probabilities, and some to look at.
    assert sum(position == len(y) - 1 for position in read) == 2


def test_models_that_call_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    """By position, a cat of one would be the dog of the other."""
    x, y = samples()
    data = CalibrationSet.from_arrays(x, np.array(["a", "b", "c", "d"])[y])
    names = [["a", "b", "c", "d"], ["b", "a", "c", "d"]]
    paths = saved(tmp_path, **{f"m{i}": zip_map(weights(1), each) for i, each in enumerate(names)})
    with pytest.raises(CalibrationError, match=r"m1\.onnx: calls class 0 'b', which is 'a' for .*m0\.onnx"):
        compare(paths, data)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (1, 8), (40, 20), (0, 1000)])
def test_the_chance_is_that_of_the_exact_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert chance_of_difference(gained, lost) == pytest.approx(expected)


def test_positions_have_no_exact_test(tmp_path: Path) -> None:
    """Tokens of one sentence are not independent of each other."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, CLASSES])],
        [numpy_helper.from_array(weights(1).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).standard_normal((20, 3, SIZE)).astype(np.float32)
    paths = saved(tmp_path, a=model, b=model)
    found = compare(paths, CalibrationSet.from_arrays(x, np.arange(60).reshape(20, 3) % CLASSES))
    assert found.models[1].chance is None
    assert found.models[1].agreement == 100


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    x, y = samples()
    data = CalibrationSet.from_arrays(x, y)
    (one,) = saved(tmp_path, one=linear(weights(1)))
    with pytest.raises(ConfigError, match="compare: one model; give at least two"):
        compare([one], data)
    with pytest.raises(ModelError, match=r"no-such\.onnx: no such file"):
        compare([one, tmp_path / "no-such.onnx"], data)
    with pytest.raises(ModelError, match=r"stepping\.json: no such file; give the folder that onnx-cbq step wrote"):
        compare([one, tmp_path], data)
    narrow = linear(weights(1)[:3])
    narrow.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(CalibrationError, match=r"narrow\.onnx: .* wants \(3\)"):
        compare([one, *saved(tmp_path, narrow=narrow)], data)
    wide = linear(np.concatenate([weights(1)] * 2, axis=1))
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2 * CLASSES
    with pytest.raises(CalibrationError, match="models of 4 and 8 classes cannot be compared"):
        compare([one, *saved(tmp_path, wide=wide)], data)


def test_the_command_shows_a_column_for_each(coarse: Path, tmp_path: Path, command: Command) -> None:
    written = tmp_path / "c.json"
    done = command("compare", DIGITS_MODEL, coarse, "--data", DIGITS_CARD, "--json", written)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"A  {DIGITS_MODEL}\nB  {coarse}\n")
    found = json.loads(written.read_text())["models"]
    assert re.search(rf"top-1 accuracy, % +{found[0]['top1']:.2f} +{found[1]['top1']:.2f}\n", done.out)
    assert "A and B disagree on" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines()[2:])


@pytest.mark.parametrize("place", ["model", "step"])
def test_no_output_replaces_what_is_read(
    coarse: Path, tmp_path: Path, command: Command, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "compare", _never)
    folder = tmp_path / "steps"
    make_steps(DIGITS_MODEL, DIGITS_CARD, StepConfig(macs=(0.5,), updates=2, rounds=1)).save(folder)
    target = coarse if place == "model" else folder / "step_1.onnx"
    before = target.read_bytes()
    done = command("compare", coarse, folder, "--data", DIGITS_CARD, "--json", target)
    assert done.code == 1
    assert "is also another file of this command" in done.err
    assert target.read_bytes() == before


def _never(*_: object) -> None:
    raise AssertionError("nothing must run")
