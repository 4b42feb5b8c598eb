"""Whether a target can express what is asked for, found out before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx_cbq.errors import ConfigError, ModelError
from onnx_cbq.graph.shapes import fixed_batch
from onnx_cbq.model import Model
from onnx_cbq.targets import TARGETS
from onnx_cbq.targets.target import Target


def check_target(target: Target, activations: tuple[int, ...], storage: str, sharing: str = "") -> None:
    """Make sure that a target can express settings.

    `activations` are the widths that these may have, `sharing` is the option that makes weights share values, if any.

    Raises:
        ConfigError: it cannot express a setting; the message says which can.
    """
    for option, can, why in _demands(activations, storage, sharing):
        if not can(target):
            others = ", ".join(other.name for other in TARGETS if can(other))
            raise ConfigError(
                f"{option} cannot be had with --target {target.name}: {why(target)}; targets that can: {others}"
            )


def check_model(model: Model, target: Target) -> None:
    """Make sure that the target reads the model's operator set, and as many samples as it insists on.

    Raises:
        ModelError: it does not.
    """
    if "samples" in target.demands and fixed_batch(model) not in (None, 1):
        raise ModelError(
            f"the model takes {fixed_batch(model)} samples at a time, expected 1 or any number for --target "
            f"{target.name}; export it again with a batch of 1"
        )
    if model.opset > target.highest_opset:
        raise ModelError(
            f"the model has opset {model.opset}, expected {target.highest_opset} or earlier for "
            f"--target {target.name}; export it again with opset {target.highest_opset}"
        )


def _demands(
    widths: tuple[int, ...], storage: str, sharing: str
) -> Iterator[tuple[str, Callable[[Target], bool], Callable[[Target], str]]]:
    """What settings ask of a target: the option, whether a target can, and why one cannot."""
    yield (
        f"--activation-bits {widths[0] if len(widths) == 1 else 'auto:A:' + ','.join(map(str, widths))}",
        lambda target: set(widths) <= set(target.activation_bits),
        lambda target: (
            "activations there have " + " or ".join(f"{b}" if b else "float" for b in target.activation_bits) + " bits"
        ),
    )
    yield (
        f"--storage {storage}",
        lambda target: storage in target.storages or not target.storages,
        lambda target: f"its weights are stored as {' or '.join(target.storages)}",
    )
    if sharing:
        yield (
            sharing,
            lambda target: target.shared_values,
            lambda _: "weights cannot share values there",
        )
