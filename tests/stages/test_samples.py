"""What classes count, which samples are drawn from them, and what that changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnx_cbq import ConfigError, QuantizeConfig, RateDistortionConfig, RoundingConfig, quantize
from onnx_cbq.stages.samples import SampleSettings, class_weights
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.scenes import gather

NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("classes", "weights", "expected"),
    [
        (None, (), [1, 1, 1, 1]),
        (("dog", "bee"), (), [0, 1, 0, 1]),
        (("bee", "bee"), (), [0, 1, 0, 0]),
        (None, (("cat", 2.5), ("ant", 0)), [0, 1, 2.5, 1]),
        (None, (("cat", 2), ("cat", 3)), [1, 1, 6, 1]),
        (("dog", "bee"), (("dog", 3), ("cat", 5)), [0, 1, 0, 3]),
    ],
)
def test_what_a_sample_of_each_class_counts(
    classes: tuple[str, ...] | None, weights: tuple[tuple[str, float], ...], expected: list[float]
) -> None:
    """A weight does not bring back a class that was left out."""
    found = class_weights(NAMES, SampleSettings(classes, weights))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("settings", [{"classes": ("cat", "bee")}, {"class_weights": (("bee", 5.0),)}])
def test_a_class_without_samples_cannot_be_asked_for(settings: dict[str, Any]) -> None:
    """Nothing is known of it: a weight would change nothing, without a word."""
    with pytest.raises(ConfigError, match="'bee': there are no samples of this class"):
        class_weights(NAMES, SampleSettings(**settings), [1, 3])
    np.testing.assert_array_equal(class_weights(NAMES, SampleSettings(), [1, 3]), [1, 0, 1, 0])


def test_one_class_must_count() -> None:
    for classes, weights in ((("ant",), (("ant", 0.0),)), (None, tuple((name, 0.0) for name in NAMES))):
        with pytest.raises(ConfigError, match="every class that counts has weight 0; give one a weight above 0"):
            class_weights(NAMES, SampleSettings(classes, weights))


@pytest.mark.parametrize(("classes", "each"), [(None, 4), (("3", "8"), 20), (("5",), 40)])
def test_samples_are_drawn_from_the_classes_that_matter(classes: tuple[str, ...] | None, each: int) -> None:
    """All of them: those of other classes would be wasted."""
    config = QuantizeConfig(samples=40, method="uniform", classes=classes, activation_bits=0)
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, config)
    labels = scene.work.samples.labels[scene.drawn.indices]
    expected = np.zeros(10, int)
    expected[[int(name) for name in classes or map(str, range(10))]] = each
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), expected)


@pytest.mark.parametrize(
    "changes", [{"classes": ("3", "8")}, {"class_weights": (("3", 20.0), ("8", 20.0))}], ids=["classes", "weights"]
)
def test_classes_that_matter_keep_their_accuracy_at_the_same_bits(changes: dict[str, Any]) -> None:
    """At half a bit per weight not all can."""
    config = QuantizeConfig(
        bits=0.5,
        samples=60,
        search=RateDistortionConfig(exchanges=4),
        compensation=RoundingConfig(refits=0, sweeps=0, rows=2000),
    )
    plain, chosen = (quantize(DIGITS_MODEL, DIGITS_CARD, used) for used in (config, replace(config, **changes)))
    accuracies = [np.mean([r.quantized.per_class[m] or 0 for m in (3, 8)]) for r in (plain, chosen)]
    assert accuracies[1] >= accuracies[0] + 2
    assert chosen.quantized.top1 < plain.quantized.top1
    assert chosen.average_bits <= 0.5
