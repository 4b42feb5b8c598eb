"""From settings to the objects that they stand for, and which of these do not go together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from onnx_cbq import ConfigError, QuantizeConfig, RateDistortionConfig, RefineConfig
from onnx_cbq.goals import GOALS, Accuracy, Bits, Bytes, Goal
from onnx_cbq.methods import CODEBOOKS, METHODS, Entropy, Method, RateDistortion
from onnx_cbq.methods.cbq import Cbq
from onnx_cbq.methods.codebooks import Ecsq, HessianKMeans, KMeans
from onnx_cbq.methods.differentiable import Differentiable
from onnx_cbq.methods.uniform import Uniform
from onnx_cbq.search.cbq import CbqConfig
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.stages.rounding import ROUNDINGS, Compensate, Nearest
from onnx_cbq.storage import STORAGES, Archived, Int8, Packed, Storage
from onnx_cbq.targets import CPU, find_target


def config(**settings: Any) -> QuantizeConfig:
    return QuantizeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, RateDistortion()),
        ({"search": RateDistortionConfig(exchanges=3, held_back=0.5)}, RateDistortion(held_back=0.5, exchanges=3)),
        ({"method": "cbq", "cbq": CbqConfig(stride=0.1)}, Cbq(stride=0.1)),
        ({"method": "differentiable", "differentiable": DifferentiableConfig(updates=7)}, Differentiable(updates=7)),
        ({"method": "uniform"}, Uniform()),
        ({"storage": "archive"}, Entropy()),
        ({"storage": "archive", "search": RateDistortionConfig(held_back=0.4)}, Entropy(0.4)),
        ({"codebook": "kmeans"}, KMeans()),
        ({"codebook": "hessian-kmeans", "codebook_scope": "net"}, HessianKMeans("net")),
        ({"codebook": "kmeans", "storage": "archive"}, KMeans()),
        ({"codebook": "ecsq", "storage": "archive", "search": RateDistortionConfig(held_back=0.4)}, Ecsq("layer", 0.4)),
    ],
    ids=str,
)
def test_names_and_their_settings_become_a_method(settings: dict[str, Any], method: Method) -> None:
    """A setting that does not reach its method would be ignored without a word."""
    found = config(**settings).choice
    assert found.method == method
    assert found.scene.samples.held_back == method.held_back


@pytest.mark.parametrize(
    ("settings", "goal"),
    [
        ({"bits": 2.5}, Bits(2.5)),
        ({"bytes": 9000, "storage": "packed"}, Bytes(9000)),
        ({"max_drop": 1.0, "bits": 3}, Accuracy(1.0, None, 3)),
        ({"max_class_drop": 2.0}, Accuracy(None, 2.0)),
        ({"max_drop": 1.0, "max_class_drop": 2.0}, Accuracy(1.0, 2.0)),
        ({"goal": Bytes(9000), "storage": "archive"}, Bytes(9000)),
    ],
    ids=str,
)
def test_limits_become_a_goal(settings: dict[str, Any], goal: Goal) -> None:
    assert config(**settings).choice.goal == goal


@pytest.mark.parametrize(
    ("settings", "storage"),
    [
        ({}, Int8()),
        ({"storage": "packed"}, Packed()),
        ({"storage": "archive", "coder": "huffman"}, Archived("huffman")),
        ({"storage": Archived("huffman")}, Archived("huffman")),
    ],
    ids=str,
)
def test_names_become_a_storage(settings: dict[str, Any], storage: Storage) -> None:
    assert config(**settings).choice.scene.storage == storage


def test_objects_say_the_same_as_their_names() -> None:
    """A library user may give either, and a later member of a table has no name to give."""
    named = config(method="cbq", storage="packed", target="vnni", bits=3)
    given = config(method=Cbq(), storage=Packed(), target=find_target("vnni"), bits=3, goal=Bits(3))
    assert given.choice == named.choice
    assert config().choice == config(method=RateDistortion(), storage=Int8(), target=CPU, goal=Bits()).choice


def test_settings_reach_the_scene() -> None:
    """One that does not is ignored without a word."""
    found = config(
        rounding="nearest",
        keep=(("a", 4),),
        clusters=3,
        classes=("1", "2"),
        class_weights=(("1", 2.0),),
        samples=50,
        seed=7,
        activation_bits=4,
        activation_range="minmax",
        refine=RefineConfig(held_back=0.3),
    ).choice.scene
    assert found.rounding == Nearest()
    assert (found.keep, found.clusters, found.spared) == ((("a", 4),), 3, 0.3)
    assert (found.samples.classes, found.samples.class_weights) == (("1", "2"), (("1", 2.0),))
    assert (found.samples.samples, found.samples.seed, found.evidence.seed) == (50, 7, 7)
    assert (found.activations.bits, found.activations.range) == (4, "minmax")
    assert config().choice.scene.spared == 0
    assert config().choice.scene.rounding == Compensate()


@pytest.mark.parametrize(
    ("settings", "gathers"),
    [
        ({}, True),
        ({"method": "uniform"}, True),
        ({"method": "uniform", "rounding": "nearest"}, True),
        ({"method": "uniform", "rounding": "nearest", "activation_bits": 0}, False),
        ({"method": "uniform", "activation_bits": 0}, True),
        ({"method": "cbq", "rounding": "nearest", "activation_bits": 0}, True),
        ({"codebook": "kmeans", "rounding": "nearest", "activation_bits": 0}, True),
    ],
    ids=str,
)
def test_whether_anything_is_estimated_from_samples(settings: dict[str, Any], gathers: bool) -> None:
    """Where nothing is, wild samples need not be left out."""
    assert config(**settings).choice.gathers is gathers


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "other"}, "--method: expected rate-distortion or cbq or differentiable or uniform, got other"),
        ({"rounding": "other"}, "--rounding: expected compensate or nearest or learned, got other"),
        ({"storage": "other"}, "--storage: expected int8 or packed or archive, got other"),
        ({"coder": "other"}, "--coder: expected ans or huffman, got other"),
        ({"codebook": "other"}, "--codebook: expected uniform or kmeans or hessian-kmeans or ecsq, got other"),
        ({"codebook": "kmeans", "codebook_scope": "other"}, "--codebook-scope: expected layer or net, got other"),
        ({"codebook_scope": "net"}, "--codebook-scope: expected another --codebook beside it, got uniform"),
        ({"codebook": "kmeans", "method": "cbq"}, "--codebook kmeans: expected no --method beside it, got cbq"),
        ({"target": "cuda"}, "--target: expected cpu or vnni"),
        ({"method": "cbq", "storage": "archive"}, "--method cbq: expected --storage int8 or packed beside it, got arc"),
        ({"codebook": "ecsq"}, "--codebook ecsq: expected --storage archive beside it, got int8"),
        ({"storage": "archive", "rounding": "nearest"}, "--storage archive: expected a --rounding that compensates,"),
        ({"storage": "archive", "keep": (("a", 8),)}, "--storage archive: expected no --keep beside it"),
        ({"codebook": "kmeans", "keep": (("a", 8),)}, "--codebook kmeans and --storage int8: expected no --keep"),
        ({"method": "uniform", "bits": 2.5}, "--bits: expected a whole number with --method uniform and --storage int"),
        ({"method": "uniform", "curve": (2.5,)}, "expected a whole number with --method uniform and --storage int8"),
        ({"codebook": "kmeans", "bits": 2.5}, "--bits: expected a whole number with --codebook kmeans and --storage i"),
        ({"method": "cbq", "max_drop": 1.0}, "--method cbq and --storage int8: expected --bits beside it, got --max-d"),
        ({"method": "uniform", "max_class_drop": 1.0}, "expected --bits beside it, got --max-class-drop"),
        ({"method": "cbq", "bytes": 900, "storage": "packed"}, "expected --bits beside it, got --bytes"),
        ({"codebook": "kmeans", "max_drop": 1.0}, "--codebook kmeans and --storage int8: expected --bits beside it"),
        ({"bytes": 900}, "--bytes: expected --storage packed or archive beside it, got --storage int8"),
        ({"bytes": 900, "storage": "packed", "max_drop": 1.0}, "--bytes: expected no "),
        ({"target": "qnn", "activation_bits": 4}, "--activation-bits 4 cannot be had with --target qnn"),
        ({"target": "vitis", "storage": "packed"}, "--storage packed cannot be had with --target vitis"),
        ({"target": "tensorrt", "codebook": "kmeans"}, "--codebook kmeans cannot be had with --target tensorrt"),
        ({"bits": 0}, "--bits: expected a number above 0 and up to 8, got 0"),
        ({"curve": (9,)}, "curve: expected a number above 0 and up to 8, got 9"),
        ({"keep": (("a", 9),)}, "--keep a: expected 0 to 8 bits, got 9"),
        ({"clusters": 1}, "--clusters: expected at least 2 groups, got 1"),
        ({"samples": 0}, "--samples: expected a number above 0, got 0"),
        ({"seed": -1}, "--seed: expected a number of at least 0, got -1"),
        ({"class_weights": (("a", -1.0),)}, "--class-weight a: expected a number of at least 0, got -1"),
        ({"activation_bits": 1}, "--activation-bits: expected 2 to 8, or 0 for float, got 1"),
        ({"activation_range": "other"}, "--activation-range: expected mse or percentile or minmax, got other"),
        ({"max_drop": 101.0}, "--max-drop: expected points of accuracy, 0 to 100, got 101"),
        ({"max_class_drop": -1.0}, "--max-class-drop: expected points of accuracy, 0 to 100, got -1"),
        ({"bytes": 0, "storage": "packed"}, "--bytes: expected a number above 0, got 0"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused_when_they_are_made(settings: dict[str, Any], said: str) -> None:
    """Not after minutes of work; in one line that names the option, what it expects and what it got."""
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LIMITS: dict[str, Goal] = {"bits": Bits(3), "bytes": Bytes(900), "accuracy": Accuracy(1.0)}


@pytest.mark.parametrize("member", [*METHODS, *CODEBOOKS, Entropy], ids=lambda member: member.name)
def test_what_goes_together_is_what_a_method_says_of_itself(member: type[Method]) -> None:
    """Every storage, rounding and goal: taken where `fit` allows them, refused everywhere else."""
    assert LIMITS.keys() == {goal.name for goal in GOALS}
    for storage, rounding, (name, goal) in itertools.product(STORAGES, ROUNDINGS, LIMITS.items()):
        made: dict[str, Any] = {"method": member(), "storage": storage(), "rounding": rounding.name, "goal": goal}
        fit = member().fit(storage())
        rounds = fit is not None and (fit.nearest or rounding.compensates) and (fit.learned or not rounding.learns)
        reaches = fit is not None and (fit.goals or name == "bits") and (name == "bits" or not rounding.learns)
        fitting = rounds and reaches
        if fitting and not goal.goes_with(storage()):
            assert config(**made).choice.method == member()
        else:
            with pytest.raises(ConfigError, match="expected"):
                config(**made)


def test_a_changed_setting_makes_another_choice() -> None:
    """The objects are made anew, not carried over from the settings that were replaced."""
    first = config(bits=2)
    other = replace(first, method="cbq", bits=3)
    assert (first.choice.method, first.choice.goal) == (RateDistortion(), Bits(2))
    assert (other.choice.method, other.choice.goal) == (Cbq(), Bits(3))
    assert first == config(bits=2) != other
