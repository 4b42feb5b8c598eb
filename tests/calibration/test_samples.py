"""Samples for a model: matching of inputs, labels, drawing, batches, and that they stream."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet, Samples
from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.draw import Draw, draw
from onnx_cbq.calibration.sources import Source
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.records.answers import Kind

NAMES = ("cat", "dog", "ship")


def spec(name: str = "input", *shape: int | None, batch: int | None = None, dtype: Any = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), (batch, *(shape or (2,))))


def samples(labels: Sequence[int], limit: int | None = None, batch: int | None = None) -> Samples:
    """Sample i holds the number i twice."""
    x = np.repeat(np.arange(len(labels), dtype=np.float32)[:, None], 2, axis=1)
    data = CalibrationSet.from_arrays(x, np.array(labels))
    return CalibrationSet(data.source, Card(Path(), limit=limit)).for_model([spec(batch=batch)])


def test_arrays_make_a_set_in_one_line() -> None:
    data = CalibrationSet.from_arrays([[1, 2], [3, 4]], [0, 1], ["a", "b"])
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(data.for_model([spec()]).read([1])["input"], np.array([[3, 4]], np.float32))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([[1], [2]], [0], "'x' has 2 samples but 'y' has 1 labels"),
        (3.0, [0], "'x' has no samples"),
        ([[1], [2]], 0, "labels 'y' must be whole numbers"),
        ([[1], [2]], [0.0, 0.5], "labels 'y' must be whole numbers or names, one per sample; got float64"),
        ([[1], [2, 3]], [0, 1], r"not one shape for all \(.*\); pad or cut them"),
        ([], np.zeros(0, int), "no samples; expected at least one of every class"),
    ],
)
def test_wrong_arrays_are_explained(x: Any, y: Any, expected: str) -> None:
    with pytest.raises(CalibrationError, match=expected):
        CalibrationSet.from_arrays(x, y)


def test_several_inputs_take_an_array_each() -> None:
    """Matched by name, whatever the order, each with its own type."""
    ids, mask = np.arange(12).reshape(3, 4), np.ones((3, 4), bool)
    data = CalibrationSet.from_arrays({"mask": mask, "ids": ids}, [0, 1, 2])
    found = data.for_model([spec("ids", 4, dtype=np.int64), spec("mask", None, dtype=np.float32)]).read([2, 0])
    np.testing.assert_array_equal(found["ids"], ids[[2, 0]])
    np.testing.assert_array_equal(found["mask"], mask[[2, 0]])
    assert {name: str(value.dtype) for name, value in found.items()} == {"ids": "int64", "mask": "float32"}


@pytest.mark.parametrize(("keys", "used"), [(("images",), "images"), (("x", "extra"), "x"), (("x", "input"), "input")])
def test_single_input_takes_the_array_that_can_be_meant(keys: tuple[str, ...], used: str) -> None:
    arrays = {key: np.full((3, 2), i, np.float32) for i, key in enumerate(keys)}
    found = CalibrationSet.from_arrays(arrays, [0, 1, 2]).for_model([spec()]).read([0])["input"]
    np.testing.assert_array_equal(found, arrays[used][:1])


@pytest.mark.parametrize("wanted", [("ids", "mask"), ("input",)])
def test_missing_input_is_named(wanted: tuple[str, ...]) -> None:
    data = CalibrationSet.from_arrays({"ids": np.zeros((3, 2)), "other": np.zeros((3, 2))}, [0, 1, 2])
    with pytest.raises(
        CalibrationError, match=f"no array for model input '{wanted[-1]}'; it holds ids, other, the model"
    ):
        data.for_model([spec(name) for name in wanted])


def test_limit_and_names_of_the_card_reach_the_samples(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", x=np.zeros((9, 2), np.float32), y=np.arange(9) % 3, class_names=np.array(["0", "1", "2"])
    )
    (tmp_path / "card.toml").write_text('source = "a.npz"\nlimit = 2\nclasses = ["cat", "dog", "ship"]')
    data = CalibrationSet.from_card(tmp_path / "card.toml")
    assert data.class_names == NAMES
    assert [len(part) for part in draw(data.for_model([spec()]), NAMES, None, 0).by_class] == [2, 2, 2]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2, 3], r"label 3 of sample 3 is outside 0\.\.2; the model has 3 classes"),
        ([0, -1, 2], r"label -1 of sample 1 is outside 0\.\.2"),
    ],
)
def test_labels_are_held_against_the_model(labels: list[int], expected: str) -> None:
    with pytest.raises(CalibrationError, match=expected):
        samples(labels).check_labels(3)


def test_number_of_names_is_held_against_the_model() -> None:
    data = CalibrationSet.from_arrays(np.zeros((2, 2)), [0, 1], NAMES)
    with pytest.raises(CalibrationError, match="3 class names, but the model has 2 classes"):
        data.for_model([spec()]).check_labels(2)


def test_classes_without_samples_are_known() -> None:
    found = samples([0, 2, 2])
    assert found.check_labels(4) == ("0", "1", "2", "3")
    assert found.empty_classes("abcd").tolist() == [1, 3]


def test_classes_of_one_name_are_told_apart() -> None:
    """ImageNet has two cranes and two maillots: in a result by name the first would be lost."""
    data = CalibrationSet.from_arrays(np.zeros((3, 2)), [0, 1, 2], ["crane", "dog", "crane"])
    assert data.for_model([spec()]).check_labels(3) == ("crane (label 0)", "dog", "crane (label 2)")


def test_drawing_is_even_and_seeded() -> None:
    found = samples([0] * 500 + [1] * 60 + [2] * 40)
    labels = found.labels
    first, again, other = (draw(found, NAMES, 100, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)
    assert len(set(first.indices.tolist())) == 100
    assert sorted(np.bincount(labels[first.indices])) == [33, 33, 34]
    for m, part in enumerate(first.by_class):
        assert (labels[part] == m).all()
    assert first.notes == ()


def test_first_samples_of_a_class_are_not_preferred() -> None:
    """Files are often sorted by something: the draw must come from the whole class."""
    taken = draw(samples([0] * 1000 + [1] * 1000), NAMES[:2], 200, 0).by_class[0]
    assert abs(taken.mean() - 500) < 4 * 289 / np.sqrt(100)


def test_class_with_too_few_gives_all_and_is_noted() -> None:
    found = draw(samples([0] * 50 + [1] * 5 + [2] * 50), NAMES, 90, 0)
    assert [len(part) for part in found.by_class] == [30, 5, 30]
    assert found.notes == ("class 'dog' has only 5 of the 30 samples wanted",)


def test_all_classes_with_too_few_are_one_note() -> None:
    found = draw(samples([0, 1, 2] * 4), NAMES, 90, 0)
    assert found.notes == ("only 12 of the 90 samples wanted: no class has its share",)


def test_long_list_of_short_classes_is_cut() -> None:
    names = tuple(f"class {m}" for m in range(20))
    notes = draw(samples([*range(20), 19]), names, 40, 0).notes
    assert len(notes) == 6
    assert notes[-1] == "14 more classes have fewer samples than wanted"


def test_limit_bounds_a_draw_without_a_note() -> None:
    found = draw(samples([0, 1, 2] * 50, limit=4), NAMES, 90, 0)
    assert [len(part) for part in found.by_class] == [4, 4, 4]
    assert found.notes == ()


def test_all_samples_are_taken_without_a_note() -> None:
    found = draw(samples([0] * 5 + [1] + [2] * 9), NAMES, None, 0)
    np.testing.assert_array_equal(found.indices, np.arange(15))
    assert found.notes == ()


def test_classes_without_samples_have_no_share() -> None:
    names = tuple("abcdefgh")
    found = draw(samples([2] * 50 + [5] * 50), names, 60, 0)
    assert [len(part) for part in found.by_class] == [0, 0, 30, 0, 0, 30, 0, 0]
    assert found.notes == ()
    assert draw(samples([2, 5] * 3), names, 60, 0).notes == ("only 6 of the 60 samples wanted: no class has its share",)


@pytest.mark.parametrize(("classes", "expected"), [(10, 1000), (500, 1000), (501, 1002), (700, 1400)])
def test_default_number_of_samples_follows_the_classes(classes: int, expected: int) -> None:
    """With one sample of each of 1,000 classes nothing could be held back, and with 1,200 nothing drawn at all."""
    names = tuple(map(str, range(classes)))
    found = draw(samples([i % classes for i in range(2000 + classes)]), names, "auto", 0)
    assert len(found.indices) == expected
    assert [note.split(" ", 1)[0] for note in found.notes] == ([f"{expected:,}"] if expected > 1000 else [])


def test_fewer_samples_than_classes_are_refused() -> None:
    with pytest.raises(CalibrationError, match="--samples 2: there are 3 classes; expected at least one of each"):
        draw(samples([0, 1, 2] * 5), NAMES, 2, 0)


@pytest.mark.parametrize(
    ("size", "share", "held"), [(100, 0.25, 25), (2, 0.25, 1), (1, 0.25, 0), (2, 0.9, 1), (0, 0.5, 0)]
)
def test_split_keeps_samples_on_both_sides(size: int, share: float, held: int) -> None:
    whole = Draw((np.arange(size), np.arange(size, size + 8)))
    first, second = whole.split(share)
    assert len(second.by_class[0]) == held
    joined = np.concatenate([*first.by_class, *second.by_class])
    np.testing.assert_array_equal(np.sort(joined), whole.indices)


@pytest.mark.parametrize(("sizes", "most", "held"), [((100, 300), 20, (5, 15)), ((100, 300), 50, (10, 30))])
def test_no_more_is_held_back_than_asked(sizes: tuple[int, int], most: int, held: tuple[int, int]) -> None:
    """Of 50,000 images 5,000 took a tenth of the time of training to look at; shares of classes stay alike."""
    whole = Draw((np.arange(sizes[0]), np.arange(sizes[0], sum(sizes))))
    first, second = whole.split(0.1, most)
    assert tuple(map(len, second.by_class)) == held
    assert len(first.indices) == sum(sizes) - sum(held)


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ((1, 1), 1),
        ((2,), 1),
        ((1,) * 10, 2),
        ((0, 1, 0, 1, 0), 1),
        ((1,) * 1000, 250),
        ((2,) * 1000, 500),
        ((2,) * 8, 8),
        ((1, 40), 10),
        ((4,) * 300, 300),
    ],
)
def test_something_is_held_back_while_there_are_two_samples(sizes: tuple[int, ...], held: int) -> None:
    """Plans are measured on what is held back, so that nothing must never be; nor may nothing be left to learn from."""
    edges = np.cumsum((0, *sizes))
    whole = Draw(tuple(np.arange(start, end) for start, end in itertools.pairwise(edges)))
    first, second = whole.split(0.25)
    assert len(second.indices) == held
    assert len(first.indices) > 0
    np.testing.assert_array_equal(np.sort(np.concatenate([first.indices, second.indices])), whole.indices)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_parts_have_samples_whatever_the_share(share: float) -> None:
    for sizes in itertools.product(range(4), repeat=3):
        if sum(sizes) < 2:
            continue
        edges = np.cumsum((0, *sizes))
        parts = Draw(tuple(np.arange(start, end) for start, end in itertools.pairwise(edges))).split(share)
        assert all(len(part.indices) for part in parts), sizes


def test_batches_keep_order_and_labels() -> None:
    found = samples([0, 1, 2] * 4)
    indices = np.array([7, 3, 3, 11, 0])
    batches = list(found.batches(indices, 2))
    assert [batch.count for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([b.feeds["input"][:, 0] for b in batches]), indices)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), found.labels[indices])


def test_fixed_batch_is_filled_up() -> None:
    """What pads the last batch must not be counted."""
    batches = list(samples([0, 1, 2] * 4, batch=4).batches(np.arange(6), 100))
    assert [(len(b.feeds["input"]), b.count, len(b.labels)) for b in batches] == [(4, 4, 4), (4, 2, 2)]
    np.testing.assert_array_equal(batches[1].feeds["input"][:2, 0], [4, 5])


class Counting(Source):
    """Samples made when they are asked for; sample 57 cannot be read."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.label, self.inputs = "made", ("x",)
        self.labels = np.zeros(count, np.int64)
        self.broken = broken
        self.largest = self.read_so_far = 0

    def read(self, name: str, indices: Sequence[int]) -> Array:
        if self.broken in indices:
            raise CalibrationError(f"made: sample {self.broken} cannot be read")
        self.largest = max(self.largest, len(indices))
        self.read_so_far += len(indices)
        return np.array(indices, np.float32)[:, None].repeat(2, axis=1)


def test_samples_stream() -> None:
    """At any time no more than the batch in use and the next one have been read."""
    source = Counting(100)
    found = CalibrationSet(source, Card(Path())).for_model([spec()])
    source.read_so_far = 0
    for done, batch in enumerate(found.batches(np.arange(100), 10)):
        assert source.read_so_far <= 10 * (done + 2)
        assert batch.feeds["input"][0, 0] == 10 * done
    assert source.largest == 10


def test_errors_of_the_reading_thread_arrive() -> None:
    """Batches before the broken one come; an error must neither hang nor end the samples early without a word."""
    found = CalibrationSet(Counting(100, broken=57), Card(Path())).for_model([spec()])
    seen: list[int] = []
    with pytest.raises(CalibrationError, match="sample 57 cannot be read"):
        seen.extend(batch.count for batch in found.batches(np.arange(100), 10))
    assert sum(seen) == 50


def test_stopping_early_ends_the_reading_thread() -> None:
    before = threading.active_count()
    batches = samples([0, 1, 2] * 4).batches(np.arange(12), 2)
    next(batches)
    assert isinstance(batches, Iterator)
    del batches
    assert threading.active_count() == before


def test_arrays_stay_as_they_are_where_the_model_leaves_every_size_open() -> None:
    """They are given as the model takes them, and do not become images of the folder that one happens to be in."""
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 6)).astype(np.float32)
    found = CalibrationSet.from_arrays(x, [0, 1, 2]).for_model([spec("input", None, None, None)])
    np.testing.assert_array_equal(found.read([0, 1, 2])["input"], x)


@pytest.mark.parametrize(
    ("layout", "stored", "wanted", "axis"),
    [
        ("NHWC", (8, 6, 3), (3, 8, 6), 1),
        ("NHWC", (8, 6, 3), (8, 6, 3), 3),
        ("NCHW", (3, 8, 6), (8, 6, 3), 3),
        ("NCHW", (3, 8, 6), (3, 8, 6), 1),
        (None, (3, 8, 6), (3, 8, 6), 1),
        (None, (8, 6, 3), (8, 6, 3), 3),
    ],
)
def test_channels_of_images_are_where_the_model_takes_them(
    layout: str | None, stored: tuple[int, ...], wanted: tuple[int, ...], axis: int
) -> None:
    """Else an image that is mirrored has its colours mirrored instead."""
    source = CalibrationSet.from_arrays(np.zeros((4, *stored), np.float32), [0, 1, 2, 0]).source
    found = CalibrationSet(source, Card(Path(), layout=layout)).for_model([spec("input", *wanted)])
    assert found.image_axes == {"input": axis}
    found.check_images(["flip"])


def test_samples_that_are_no_images_are_not_left_unchanged_in_silence() -> None:
    assert samples([0, 1, 2]).image_axes == {}
    samples([0, 1, 2]).check_images([])
    with pytest.raises(CalibrationError, match=r"--augment flip is for images, samples are 'input' \(2,\); leave it"):
        samples([0, 1, 2]).check_images(["flip"])


@pytest.mark.parametrize("labels", [[0, 1, 1, 2], ["ant", "bee", "bee", "cow"]])
def test_names_in_another_order_than_the_model_has_them_are_put_in_its_order(labels: list[Any]) -> None:
    """Folders are sorted, and a model's names may not be: every label would be that of another class."""
    data = CalibrationSet.from_arrays(np.zeros((4, 2), np.float32), labels, ["ant", "bee", "cow"])
    samples = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2))])
    found = samples.labelled(Kind(3), ["cow", "ant", "bee"])
    assert found.known is not None
    assert found.known.truth.tolist() == [1, 2, 2, 0]
    assert found.data.class_names == ("cow", "ant", "bee")


@pytest.mark.parametrize("label", [np.inf, 1e30, np.uint64(2**64 - 100)])
def test_labels_beyond_whole_numbers_are_not_wrapped(label: float) -> None:
    """2^64 - 100 as a signed number is -100, which does not count."""
    with pytest.raises(CalibrationError, match="must be whole numbers or names"):
        CalibrationSet.from_arrays(np.zeros((2, 2), np.float32), np.array([label, 0], np.asarray(label).dtype))


def test_class_names_may_be_bytes_or_numbers() -> None:
    found = CalibrationSet.from_arrays(np.zeros((2, 2), np.float32), [0, 1], [b"ant", 7])  # type: ignore[list-item]
    assert found.class_names == ("ant", "7")


def test_names_without_a_list_become_the_names_of_the_classes() -> None:
    data = CalibrationSet.from_arrays(np.zeros((3, 2), np.float32), ["yes", "no", "yes"])
    found = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2))]).labelled(Kind(2))
    assert found.data.class_names == ("no", "yes")
    assert found.known is not None
    assert found.known.truth.tolist() == [1, 0, 1]


def test_a_name_of_two_classes_is_no_label() -> None:
    data = CalibrationSet.from_arrays(np.zeros((2, 2), np.float32), ["ant", "bee"], ["ant", "ant", "bee"])
    with pytest.raises(CalibrationError, match="label 'ant' is the name of several classes"):
        data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2))]).labelled(Kind(3))


@pytest.mark.parametrize(("labels", "kind"), [([[-100, -100]], Kind(3)), ([[0, 0, 0]], Kind(3, several=True))])
def test_samples_without_any_label_are_refused(labels: list[list[int]], kind: Kind) -> None:
    data = CalibrationSet.from_arrays(np.zeros((1, 2), np.float32), labels)
    with pytest.raises(CalibrationError, match="no sample has a label"):
        data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2))]).labelled(kind)


def test_columns_of_labels_follow_the_names_of_the_model() -> None:
    """Of labels that say 0 or 1 for each class the columns are in the order of the card's names."""
    data = CalibrationSet.from_arrays(np.zeros((2, 2), np.float32), [[1, 0, 0], [0, 1, 1]], ["ant", "bee", "cow"])
    samples = data.for_model([InputSpec("x", np.dtype(np.float32), (None, 2))])
    for _ in range(2):  # and are not moved again
        samples = samples.labelled(Kind(3, several=True), ["cow", "ant", "bee"])
        assert samples.known is not None
        assert samples.known.truth.tolist() == [[0, 1, 0], [1, 0, 1]]
