"""Layers of two models are matched whatever a tool has done to names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from onnx_cbq.verification.matching import Site, match_sites

NET = [
    Site("stem", "s", "Conv", (16, 3, 3, 3)),
    Site("block/a", "a", "Conv", (16, 16, 3, 3)),
    Site("block/b", "b", "Conv", (16, 16, 3, 3)),
    Site("head", "h", "Gemm", (10, 16)),
]


def unnamed(sites: Sequence[Site]) -> list[Site]:
    return [replace(site, node="", output=f"t{i}") for i, site in enumerate(sites)]


def pairs(*positions: int) -> list[tuple[int, int]]:
    return [(i, i) for i in positions]


def test_the_same_model_matches_itself() -> None:
    assert match_sites(NET, NET) == pairs(0, 1, 2, 3)


def test_without_names_order_and_shapes_decide() -> None:
    assert match_sites(NET, unnamed(NET)) == pairs(0, 1, 2, 3)


def test_a_matrix_may_be_stored_transposed() -> None:
    other = [*unnamed(NET[:3]), Site("", "t", "MatMul", (16, 10))]
    assert match_sites(NET, other) == pairs(0, 1, 2, 3)


def test_a_layer_that_is_left_out_leaves_the_others_matched() -> None:
    """Folded, or run by another operator."""
    assert match_sites(NET, unnamed(NET[1:])) == [(1, 0), (2, 1), (3, 2)]


def test_names_decide_between_layers_of_one_shape() -> None:
    """A tool may drop the first of two equal layers; by order the second would be taken for it."""
    assert match_sites(NET, [NET[0], NET[2], NET[3]]) == [(0, 0), (2, 1), (3, 2)]


def test_a_layer_without_some_channels_is_known_by_its_name() -> None:
    """Channels of 0 bits are cut out of our files, and by pruning."""
    fewer = [NET[0], replace(NET[1], shape=(12, 16, 3, 3)), replace(NET[2], shape=(16, 12, 3, 3)), NET[3]]
    assert match_sites(NET, fewer) == pairs(0, 1, 2, 3)
    assert match_sites(NET, unnamed(fewer)) == pairs(0, 3)
    more = [NET[0], replace(NET[1], shape=(17, 16, 3, 3)), NET[3]]
    assert match_sites(NET, more) == [(0, 0), (3, 2)]


def test_names_that_came_to_mean_something_else_are_not_followed() -> None:
    swapped = [replace(NET[0], node="head", output="h"), *NET[1:3], replace(NET[3], node="stem", output="s")]
    assert match_sites(NET, swapped) == pairs(0, 1, 2, 3)


def test_a_name_that_stands_there_twice_says_nothing() -> None:
    twice = [replace(site, node="conv", output=f"o{i}") for i, site in enumerate(NET)]
    assert match_sites(twice, [replace(site, output=f"p{i}") for i, site in enumerate(twice)]) == pairs(0, 1, 2, 3)


def test_nothing_in_common_matches_nothing() -> None:
    assert match_sites(NET, [Site("x", "y", "Conv", (1, 1, 1, 1))]) == []
    assert match_sites([], NET) == []


@given(st.lists(st.sampled_from(NET), max_size=12), st.lists(st.sampled_from(NET), max_size=12), st.booleans())
def test_pairs_rise_and_are_of_one_kind(first: list[Site], second: list[Site], named: bool) -> None:
    one, other = (first, second) if named else (unnamed(first), unnamed(second))
    found = match_sites(one, other)
    for positions in zip(*found, strict=True):
        assert list(positions) == sorted(set(positions))
    assert all(one[a].may_have_become(other[b]) if named else one[a].kind == other[b].kind for a, b in found)
