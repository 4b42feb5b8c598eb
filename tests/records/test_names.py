"""Names of classes in options and files: commas and quotes in them, and what is said of unknown ones."""

from __future__ import annotations

import pytest

from onnx_cbq.errors import ConfigError
from onnx_cbq.records.names import class_indices, split_names

NAMES = ("ant", "bee", "cat", "dog", "tench, Tinca tinca", '7" disc', "tench")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat,dog", ("cat", "dog")),
        (" cat , dog ,", ("cat", "dog")),
        ('"tench, Tinca tinca",dog', ("tench, Tinca tinca", "dog")),
        ('7" disc,"say ""a"""', ('7" disc', 'say "a"')),
        ("", ()),
    ],
)
def test_names_stand_between_commas_and_may_be_quoted(text: str, expected: tuple[str, ...]) -> None:
    assert split_names(text, "--classes") == expected


def test_a_line_that_is_too_long_is_explained() -> None:
    with pytest.raises(ConfigError, match="--classes: expected names with commas between them"):
        split_names('"' + 200_000 * "x", "--classes")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("dog", "ant"), [3, 0]),
        (("tench, Tinca tinca", "dog"), [4, 3]),
        (("tench,Tinca tinca",), [4]),
        (('7" disc',), [5]),
        (("tench",), [6]),
        ((), []),
    ],
)
def test_names_are_found_with_their_commas(wanted: tuple[str, ...], expected: list[int]) -> None:
    assert class_indices(NAMES, wanted, "--classes") == expected


def test_a_name_that_was_cut_at_its_comma_is_put_together() -> None:
    assert class_indices(NAMES[:6], split_names("dog, tench, Tinca tinca,ant", ""), "--classes") == [3, 4, 0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("catt", "did you mean 'cat'?"), ("BEE", "the classes are: ant, bee, cat, dog"), ("", "the classes are: ant")],
)
def test_an_unknown_class_is_an_error_that_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        class_indices(NAMES, (name,), "--classes")
    assert str(caught.value).startswith(f"--classes {name!r}: no such class; {hint}")
