"""Bring a model into the form that the analysis works on, without changing what it computes.

After every pass the model is run beside the one before it. A pass that changes an output is not applied, and the
report says so: the check decides, not the belief that the rewrite is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_cbq.errors import ModelError
from onnx_cbq.graph.passes.branches import take_branches
from onnx_cbq.graph.passes.cleanup import remove_idle_nodes
from onnx_cbq.graph.passes.constants import QUANTIZING, fold_constants, freeze_shapes
from onnx_cbq.graph.passes.contrib import expand_contrib
from onnx_cbq.graph.passes.declare import declare_interface
from onnx_cbq.graph.passes.defaults import state_defaults
from onnx_cbq.graph.passes.interface import own_outputs
from onnx_cbq.graph.passes.kernels import matmul_to_gemm, mean_to_pool
from onnx_cbq.graph.passes.linear import fold_affine, fold_gemm_factors, own_biases, split_infinite_biases
from onnx_cbq.graph.passes.products import products_to_matmul
from onnx_cbq.graph.passes.rows import lay_rows
from onnx_cbq.graph.passes.widen import widen_floats, widening_tolerance
from onnx_cbq.graph.shapes import Example
from onnx_cbq.model import Array, Model
from onnx_cbq.runtime import Optimization, Session, trial_seconds

Pass = Callable[[Model, Example], Model]

PASSES: tuple[Pass, ...] = (
    own_outputs,
    state_defaults,
    fold_constants,
    widen_floats,
    expand_contrib,
    fold_constants,
    freeze_shapes,
    take_branches,
    fold_constants,
    freeze_shapes,
    remove_idle_nodes,
    products_to_matmul,
    matmul_to_gemm,
    mean_to_pool,
    fold_gemm_factors,
    fold_affine,
    own_biases,
    split_infinite_biases,
    lay_rows,
    declare_interface,
)


def fold_all_but_grids(model: Model, example: Example) -> Model:
    """`fold_constants`, but for weights that are made of stored codes."""
    return fold_constants(model, example, QUANTIZING)


# Layers that are quantized already stay so: their weights are no constants to any pass.
KEEPING_PASSES: tuple[Pass, ...] = tuple(fold_all_but_grids if one is fold_constants else one for one in PASSES)

# Folding rounds each weight once more (2^-24 relative); a deep net adds that up to about 1e-5 of its largest output.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Normalised:
    """The rewritten model, and one line for every pass that was refused."""

    model: Model
    notes: tuple[str, ...]


def normalise(model: Model, example: Example, passes: tuple[Pass, ...] = PASSES) -> Normalised:
    """Apply `passes` in order, each checked on `example` at every batch size that it allows.

    Raises:
        ModelError: onnxruntime cannot load or run the model as it came.
    """
    elsewhere = example.at_another_size(model)
    reference = outputs_of(model, example, elsewhere=elsewhere)
    notes: list[str] = []
    for rewrite in passes:
        candidate = rewrite(model, example)
        if candidate is model:
            continue
        outputs = _outputs_at(candidate, example, elsewhere)
        error = relative_error(outputs, reference) if outputs else float("inf")
        if error <= (widening_tolerance(model) if rewrite is widen_floats else 0) + TOLERANCE:
            # What comes after is held against the model in float32: its own rounding is no longer that of the types.
            reference = outputs if rewrite is widen_floats else reference
            model = candidate
        else:
            notes.append(f"{rewrite.__name__} not applied: it changes an output by {error:.1e} of its largest value")
    return Normalised(model, tuple(notes))


def _outputs_at(model: Model, example: Example, elsewhere: Mapping[str, Array] | None) -> list[Array]:
    """`outputs_of`; nothing where the model does not run at another size."""
    try:
        return outputs_of(model, example, elsewhere=elsewhere)
    except ModelError:
        if elsewhere is None:
            raise
        return []


def outputs_of(
    model: Model,
    example: Example,
    optimization: Optimization = "off",
    elsewhere: Mapping[str, Array] | None = None,
) -> list[Array]:
    """All outputs, at every batch size that the model allows, and for `elsewhere`, samples of another size.

    Optimized, onnxruntime would compute some products of small weights with rounded activations.
    """
    session, seconds = Session(model, optimization), trial_seconds(model, example.feeds)
    runs = [*example.runs(model), *([] if elsewhere is None else [elsewhere])]
    return [value for feeds in runs for value in session.run(feeds, seconds=seconds).values()]


def relative_error(values: list[Array], reference: list[Array]) -> float:
    """Largest deviation of any output, relative to the largest magnitude in that output; infinite if shapes differ."""
    worst = 0.0
    for value, expected in zip(values, reference, strict=True):
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            continue
        if value.shape != expected.shape:
            return float("inf")
        # Equal infinities, and NaN on both sides, are no difference; NaN on one side only is as large as any.
        differs = ~np.isclose(value, expected, rtol=0, atol=0, equal_nan=True)
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)) or 1.0
        difference = np.nan_to_num(np.abs(value[differs] - expected[differs]), nan=np.inf)
        worst = max(worst, float(difference.max(initial=0.0)) / scale)
    return worst
