"""Groups of classes: joined as average linkage by hand joins them, and everything counted by group."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from onnx_cbq import ConfigError, QuantizeConfig, quantize
from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.draw import draw
from onnx_cbq.evidence.clusters import by_confusion, find_groups, read_groups
from onnx_cbq.evidence.gradients import ScoringWork
from onnx_cbq.evidence.measure import PlanMeasure
from onnx_cbq.evidence.rounders import NearestRounder
from onnx_cbq.evidence.scoring import score_channels
from onnx_cbq.evidence.scoring_graph import scoring_graph
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.evidence.workload import Workload, prepare
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.records import Grouping, Plan
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
CLASSES = len(NAMES)
GROUPS = (("cat", "dog", "fox"), ("bee", "ant"))
OF_CLASS = np.array([1, 1, 0, 0, 2, 0])
WEIGHT = np.random.default_rng(0).standard_normal((8, CLASSES)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
Y = np.arange(50) % CLASSES


def linear() -> Workload:
    """A net of one layer, whose class scores are X times WEIGHT."""
    proto = make_model([node("Gemm", "x w")], {"x": ["N", 8]}, ["y"], {"w": WEIGHT})
    return prepare(proto, CalibrationSet.from_arrays(X, Y, NAMES))


def probabilities(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def average_linkage(confusion: Array, count: int) -> set[frozenset[int]]:
    """Join the two groups whose members are least far apart on average, until `count` are left."""
    groups = [frozenset([m]) for m in range(len(confusion))]
    while len(groups) > count:
        one, other = min(
            itertools.combinations(groups, 2),
            key=lambda pair: np.mean(
                [1 - (confusion[a, b] + confusion[b, a]) / 2 for a, b in itertools.product(*pair)]
            ),
        )
        groups = [group for group in groups if group not in (one, other)] + [one | other]
    return set(groups)


def members(groups: Grouping) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups.of_class == g).tolist()) for g in range(len(groups.names))}


@pytest.mark.parametrize("count", range(2, CLASSES + 1))
@pytest.mark.parametrize("seed", range(5))
def test_classes_are_joined_by_average_linkage(seed: int, count: int) -> None:
    confusion = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), CLASSES)
    before = confusion.copy()
    groups = by_confusion(NAMES, confusion, count)
    assert members(groups) == average_linkage(confusion, count)
    assert len(groups.names) == count
    assert groups.of_class[0] == 0
    for g, name in enumerate(groups.names):
        assert name == "+".join(NAMES[m] for m in np.flatnonzero(groups.of_class == g))
    np.testing.assert_array_equal(confusion, before)


@pytest.mark.parametrize("count", range(2, CLASSES + 1))
def test_as_many_groups_as_asked_for_where_classes_are_equally_far_apart(count: int) -> None:
    """A model that confuses nothing: a cut at a distance would join all classes or none."""
    groups = by_confusion(NAMES, np.eye(CLASSES), count)
    assert len(groups.names) == len(members(groups)) == count


def test_confusion_is_the_mean_probability_by_class() -> None:
    """Three groups of this net, from what numpy computes on the drawn samples alone."""
    work = linear()
    drawn = draw(work.samples, work.class_names, 24, seed=0)
    chosen = drawn.indices
    shares = probabilities(X[chosen] @ WEIGHT)
    confusion = np.stack([shares[Y[chosen] == m].mean(axis=0) for m in range(CLASSES)])
    assert members(find_groups(work, drawn, 3)) == average_linkage(confusion, 3)


def test_listed_groups_and_classes_that_are_not_listed() -> None:
    work = linear()
    groups = find_groups(work, draw(work.samples, work.class_names, None, 0), GROUPS)
    assert groups.names == ("cat+dog+fox", "ant+bee", "eel")
    np.testing.assert_array_equal(groups.of_class, OF_CLASS)
    assert not groups.is_trivial


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [
        ((("cat", "cow"),), "--clusters 'cow': no such class; the classes are: ant, bee"),
        ((("cat", "dog"), ("eel", "cat")), "--clusters: class 'cat' stands in two groups"),
        ((("cat", "cat"),), "--clusters: class 'cat' stands in two groups"),
        ((NAMES,), "--clusters: all classes are in one group"),
        (7, "--clusters 7: the model has 6 classes"),
    ],
)
def test_groups_that_cannot_be(clusters: int | tuple[tuple[str, ...], ...], expected: str) -> None:
    work = linear()
    drawn = draw(work.samples, work.class_names, None, 0)
    with pytest.raises(ConfigError, match=expected):
        find_groups(work, drawn, clusters)


@pytest.mark.parametrize("text", ["cat, dog ,fox\nbee,ant\n", "\n cat,dog,fox,\r\n\nbee,ant"])
def test_a_file_has_a_line_per_group(tmp_path: Path, text: str) -> None:
    (tmp_path / "groups.txt").write_text(text)
    assert read_groups(tmp_path / "groups.txt") == GROUPS


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\xff"], ids=["missing", "empty", "blank", "binary"])
def test_files_that_hold_no_groups(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "groups.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--clusters .*groups.txt: .*a line of class names per group"):
        read_groups(path)


def measure(work: Workload, groups: Grouping) -> PlanMeasure:
    held = (work.samples, np.arange(len(Y)), 7)
    return PlanMeasure(work.model, work.layers, held, (work.logits, groups, ()), NearestRounder(work.model))


@pytest.mark.parametrize("of_class", [OF_CLASS, np.arange(CLASSES), np.arange(CLASSES)[::-1]], ids=["3", "6", "turned"])
def test_measured_plans_count_groups(of_class: Array) -> None:
    """A sample is right where its group is; the divergence is that of the groups' probabilities."""
    work, bits = linear(), np.full(CLASSES, 2, np.int8)
    found = measure(work, Grouping.of(NAMES, of_class))(Plan({work.layers.layers[0].name: bits}))
    rounded = X @ quantize_rows(WEIGHT.T, bits).values.T
    one, other = (
        np.stack([probabilities(z)[:, of_class == g].sum(axis=1) for g in range(of_class.max() + 1)], axis=1)
        for z in (X @ WEIGHT, rounded)
    )
    divergence = (one * np.log(one / other)).sum(axis=1)
    hits = of_class[rounded.argmax(axis=1)] == of_class[Y]
    np.testing.assert_array_equal(found.counts, np.bincount(Y))
    np.testing.assert_array_equal(found.hits, np.bincount(Y, hits))
    np.testing.assert_allclose(found.divergence, np.bincount(Y, divergence), rtol=1e-4)


def test_groups_are_easier_to_tell_apart_than_classes() -> None:
    """Joining classes can only lower the divergence, and turn misses into hits."""
    work = linear()
    plan = Plan({work.layers.layers[0].name: np.full(CLASSES, 2, np.int8)})
    single, grouped = (measure(work, g)(plan) for g in (Grouping.single(NAMES), Grouping.of(NAMES, OF_CLASS)))
    assert (grouped.divergence <= single.divergence).all()
    assert (grouped.hits >= single.hits).all()
    assert grouped.hits.sum() > single.hits.sum()


def test_scores_are_of_the_mean_logit_of_a_group() -> None:
    """z dPhi/dz of this net by hand: z_j over the size of the group where j belongs to it, else 0."""
    work = linear()
    graph = scoring_graph(work.model, work.layers, work.logits, work.example, ScoringConfig())
    drawn = draw(work.samples, work.class_names, None, seed=0)
    groups = Grouping.of(NAMES, OF_CLASS)
    found = score_channels(ScoringWork(graph, work.layers, work.samples, groups), drawn).layers[0]
    for g in range(3):
        z = np.abs(X[OF_CLASS[Y] == g] @ WEIGHT).mean(axis=0)
        belongs = np.isin(OF_CLASS, g)
        np.testing.assert_allclose(found.saliency[g], z * belongs / belongs.sum(), rtol=1e-4)
        np.testing.assert_array_equal(found.beta[g], belongs)


def test_accuracy_by_groups_from_a_confusion_matrix() -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (CLASSES, CLASSES))
    same = sum(int(confusion[a, b]) for a in range(CLASSES) for b in range(CLASSES) if OF_CLASS[a] == OF_CLASS[b])
    assert Grouping.of(NAMES, OF_CLASS).accuracy(confusion) == pytest.approx(100 * same / confusion.sum())
    assert Grouping.single(NAMES).accuracy(confusion) == pytest.approx(100 * np.trace(confusion) / confusion.sum())


def test_as_many_groups_as_classes_are_no_groups() -> None:
    """The same plan and the same file, and no word of groups in the result."""
    plain, single = (
        quantize(DIGITS_MODEL, DIGITS_CARD, QuantizeConfig(bits=1.0, samples=60, clusters=k)) for k in (None, 10)
    )
    assert plain.proto == single.proto
    assert plain.method == single.method
    assert json.loads(single.to_json())["groups"] is None


def test_the_command_shows_the_groups_and_their_accuracy(tmp_path: Path, command: Command) -> None:
    (tmp_path / "groups.txt").write_text("0,1,2,3,4\n5,6,7,8,9\n")
    options = ("--clusters", tmp_path / "groups.txt", "--bits", "1", "--samples", "60")
    target = ("--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json")
    finished = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *target, *options)
    assert (finished.code, finished.err) == (0, "")
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["groups"]["names"] == ["0+1+2+3+4", "5+6+7+8+9"]
    top1 = found["groups"]["top1"]
    assert top1["quantized"] > found["quantized"]["top1"]
    rows = {line[:28].strip(): line[28:].split() for line in finished.out.splitlines()}
    assert rows["2 groups of classes, %"] == [f"{top1[side]:.2f}" for side in ("float", "quantized")]
    for name in found["groups"]["names"]:
        assert f"group: {name}" in finished.out
