"""What predicts the loss of a width: losses of every channel, by the definitions, of the classes that count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_cbq import CalibrationSet, QuantizeConfig, quantize
from onnx_cbq.evidence import Evidence, class_scores, sensitivity, width_tables
from onnx_cbq.methods.criteria import CRITERIA, predicted_losses, usable
from onnx_cbq.model import Array
from onnx_cbq.records import Layers
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node
from tests.scenes import gather

CLASSES = 10
EVERYTHING = np.ones(CLASSES)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    scene, _ = gather(DIGITS_MODEL, DIGITS_CARD, QuantizeConfig(activation_bits=0))
    return scene.evidence


def predicted(layers: Layers, evidence: Evidence, weights: Array) -> dict[str, Array]:
    return {criterion.name: predicted_losses(criterion, layers.layers, evidence, weights) for criterion in CRITERIA}


def test_criteria_are_losses_of_every_channel_at_every_width(evidence: Evidence) -> None:
    layers = evidence.work.layers
    found = predicted(layers, evidence, EVERYTHING)
    assert list(found) == ["sensitivity", "noise", "saliency", "importance"]
    for losses in found.values():
        assert losses.shape == (sum(layer.channels for layer in layers), 9)
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()
        # More bits lose less, but for the last ones, which are lost in float32.
        assert (losses[:, 1:5].sum(axis=0) < losses[:, :4].sum(axis=0)).all()


def test_criteria_are_what_their_definitions_say(evidence: Evidence) -> None:
    layers, weights = evidence.work.layers, np.arange(1.0, CLASSES + 1)
    found = predicted(layers, evidence, weights)
    tables, gradients, scores = evidence.of(width_tables), evidence.of(sensitivity), evidence.of(class_scores)
    start = 0
    for layer in layers:
        table, score = tables[layer.name], scores.by_layer[layer.name]
        for channel in range(0, layer.channels, 5):
            for bits in (0, 2, 5):
                error = table.error[bits, channel]
                row = {name: losses[start + channel, bits] for name, losses in found.items()}
                share = weights / weights.sum()
                power = table.power[channel]
                wanted = {
                    "sensitivity": error / 2 * sum(share * gradients[layer.name][:, channel]),
                    "noise": error / table.power.sum(),
                    "saliency": error / power * sum(share * score.saliency[:, channel]),
                    "importance": error / power * sum(share * score.beta[:, channel]),
                }
                assert row == pytest.approx(wanted)
        start += layer.channels


def test_a_class_that_does_not_count_does_not_matter(evidence: Evidence) -> None:
    """Its own scores may be anything."""
    layers = evidence.work.layers
    weights = np.where(np.arange(CLASSES) == 3, 0.0, 1.0)
    before = predicted(layers, evidence, weights)
    wild = {
        name: np.where(np.arange(CLASSES)[:, None] == 3, 1e6, squares)
        for name, squares in evidence.of(sensitivity).items()
    }
    changed = replace(evidence)
    changed._known.update({**evidence._known, sensitivity: wild})
    assert (predicted(layers, changed, EVERYTHING)["sensitivity"] > 2 * before["sensitivity"]).any()
    after = predicted(layers, changed, weights)
    for name, losses in before.items():
        np.testing.assert_array_equal(after[name], losses)


def test_all_are_usable_where_every_operator_has_a_gradient(evidence: Evidence) -> None:
    """A criterion that is left out without a word would make plans worse unseen."""
    found = evidence.of(usable)
    assert found.criteria == CRITERIA
    assert found.notes == ()


def test_an_infinite_gradient_leaves_the_criteria_that_need_none() -> None:
    """That of 1 / x near 0 is, also where a Clip cuts it: the model runs all the same, and can be quantized."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((6, 4)).astype(np.float32),
        "v": rng.standard_normal((6, 3)).astype(np.float32),
    }
    nodes = [
        node("MatMul", "x t", "c"),
        node("Relu", "c", "r"),
        node("Add", "r least", "a"),
        node("Reciprocal", "a", "i"),
        node("Min", "i most", "s"),
        node("MatMul", "s v", "y"),
    ]
    numbers = {"least": np.array(1e-20, np.float32), "most": np.array(4, np.float32)}
    model = make_model(nodes, {"x": ["n", 4]}, ["y"], {"t": constants["w"].T.copy(), "v": constants["v"], **numbers})
    samples = CalibrationSet.from_arrays(rng.standard_normal((60, 4)).astype(np.float32), np.arange(60) % 3)
    result = quantize(model, samples, QuantizeConfig(bits=6, activation_bits=0))
    assert any("holds NaN or infinity" in note and "by the noise that they make alone" in note for note in result.notes)
    assert list(result.method.to_json()["measured"]) == ["noise", "noise, measured per layer"]
