"""From a plan to integer weights: layer after layer, each towards what repairs the layers in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain

import numpy as np

from onnx_cbq.evidence.cache import Kept
from onnx_cbq.evidence.kept import checked
from onnx_cbq.evidence.relay import constants_of
from onnx_cbq.evidence.statistics import Run, collecting
from onnx_cbq.execution import IN_PROCESS, Engine
from onnx_cbq.model import Array, Model
from onnx_cbq.quantize.digits import largest_steps, on_steps
from onnx_cbq.quantize.fit import fit
from onnx_cbq.quantize.grid import Channels
from onnx_cbq.quantize.moments import mean_shift
from onnx_cbq.quantize.problem import Problem, make_problem
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.quantize.weights import as_weights, quantize_layer
from onnx_cbq.records import ActivationGrid, Layer, Layers, LayerWeights, Plan, Seen
from onnx_cbq.system.progress import Progress, silent
from onnx_cbq.system.store import Entry

# The step of a short bias, as a share of the error that weights leave in the output of its channel (its standard
# deviation): rounding adds less than a hundredth of that to the mean square.
_BIAS_STEP = 0.25


@dataclass(frozen=True)
class Fitting:
    """How the problem of a layer becomes weights, and a bias what is written of it.

    Attributes:
        channels: the weights.
        units: where numbers take the room that they need, what int32 biases count in beside the scale of their weights,
            by name; such biases, and float ones, have no digits far below the error of what their channel gives. None
            for all the digits there are.
    """

    channels: Callable[[Layer, Problem], Channels]
    units: Mapping[str, float] | None = None

    def steps(self, name: str, problem: Problem, channels: Channels) -> Array | None:
        """What a bias is written in multiples of, [channels]; None for all digits, which outputs above 0 need."""
        if self.units is None or problem.positive:
            return None
        units = channels.scale.astype(np.float64) * self.units[name] if name in self.units else None
        return largest_steps(_BIAS_STEP * problem.deviations(channels.values), units)


@dataclass(frozen=True)
class Rounded:
    """Integer weights by layer, corrected biases by name, and what a user should know.

    Attributes:
        grids: of activations, where they are others than those of the scene, by tensor.
        steps: what biases of few digits are multiples of, [channels], 0 for all digits, by name; others are not named.
    """

    weights: Mapping[str, LayerWeights]
    biases: Mapping[str, Array]
    notes: tuple[str, ...]
    grids: Mapping[str, ActivationGrid] = field(default_factory=dict)
    steps: Mapping[str, Array] = field(default_factory=dict)

    def noting(self, note: str) -> Rounded:
        """With one more thing that a user should know."""
        return replace(self, notes=(*self.notes, note))

    def constants(self, layers: Layers) -> dict[str, Array]:
        """The float model's constants with these weights and biases in place of its own."""
        weights = {layer.weight: self.weights[layer.name].values(layer) for layer in layers}
        return {**weights, **self.biases}


def round_in_order(
    model: Model,
    simulated: Seen | None,
    layers: Layers,
    fitting: Fitting,
    run: Run,
    progress: Progress = silent,
    engine: Engine = IN_PROCESS,
) -> Rounded:
    """Round every layer of `model` by `fitting`, with the moments that the already quantized layers leave it.

    `simulated` is the model with its activations on their grids, None if they stay float. Cost: a forward pass of both
    models where what they keep fits (see `evidence.relay`), else up to one for each of `run.config.passes` groups of
    layers, and the solver's.
    """
    weights: dict[str, LayerWeights] = {}
    biases: dict[str, Array] = {}
    steps: dict[str, Array] = {}
    damped: list[str] = []
    with collecting(engine, model, simulated, layers.layers, run) as collector:
        for group in _groups(layers, run.config.passes):
            pending = constants_of(layer for layer in layers if layer.name not in weights)
            moments = collector.collect(group, pending)
            constants: dict[str, Array] = {}
            for layer in group:
                rows = layer.rows(model.weight(layer.weight))
                problem = make_problem(rows, moments[layer.name], run.config, layer)
                channels = fitting.channels(layer, problem)
                if problem.raised_damping is not None:
                    damped.append(f"{layer.name} ({problem.raised_damping:g})")
                weights[layer.name] = as_weights(layer, channels)
                constants[layer.weight] = layer.unrows(channels.values)
                shifts = mean_shift(moments[layer.name], rows, channels.values, layer)
                for use, shift in zip(layer.uses, shifts, strict=False):
                    if use.bias is not None:
                        bias = np.asarray(model.weight(use.bias) + shift, np.float32)
                        step = fitting.steps(use.bias, problem, channels)
                        if step is not None:
                            bias, steps[use.bias] = on_steps(bias, step), step
                        biases[use.bias] = constants[use.bias] = bias
            collector.rounded(constants)
            progress("rounding", len(weights), len(layers))
    notes = [f"damping had to be raised for: {', '.join(damped)}"] if damped else []
    return Rounded(weights, biases, tuple(notes), steps=steps)


def kept_rounded(layers: Layers, name: str = "rounding", version: int = 4) -> Kept[Rounded]:
    """Integers of these layers on uniform grids, and biases."""

    def pack(rounded: Rounded) -> Entry:
        arrays: dict[str, Array] = {}
        for i, layer in enumerate(layers):
            weights = rounded.weights[layer.name]
            arrays |= {f"{i}/{kind}": getattr(weights, kind) for kind in ("codes", "scale", "bits")}
        arrays |= {f"bias/{i}": value for i, value in enumerate(rounded.biases.values())}
        grids = {name: asdict(grid) for name, grid in rounded.grids.items()}
        return Entry(arrays, {"biases": list(rounded.biases), "notes": list(rounded.notes), "grids": grids})

    def unpack(entry: Entry) -> Rounded:
        arrays, weights = entry.arrays, {}
        for i, layer in enumerate(layers):
            codes = checked(arrays[f"{i}/codes"], "i1", layer.weight_shape)
            scale, bits = (
                checked(arrays[f"{i}/{k}"], t, (layer.channels,)) for k, t in (("scale", "f4"), ("bits", "i1"))
            )
            weights[layer.name] = LayerWeights(codes, scale, bits)
        biases = {str(name): arrays[f"bias/{i}"] for i, name in enumerate(entry.facts["biases"])}
        grids = {str(name): ActivationGrid(**grid) for name, grid in entry.facts["grids"].items()}
        return Rounded(weights, biases, tuple(map(str, entry.facts["notes"])), grids)

    return Kept(name, version, pack, unpack)


def fitting_plan(plan: Plan, config: RoundingConfig) -> Callable[[Layer, Problem], Channels]:
    """Channels on the grids of their planned bits."""
    return lambda layer, problem: fit(problem, plan.bits[layer.name], config).channels


def round_to_nearest(model: Model, layers: Layers, plan: Plan) -> Rounded:
    """Round every layer to the nearest levels; biases stay."""
    weights = {layer.name: quantize_layer(layer, model.weight(layer.weight), plan.bits[layer.name]) for layer in layers}
    return Rounded(weights, {}, ())


def _groups(layers: Layers, most: int) -> list[Sequence[Layer]]:
    """The layers in order, those that read the same tensor together, in at most `most` groups."""
    groups: list[list[Layer]] = []
    for layer in layers:
        sources = {use.activation for use in layer.uses}
        if groups and sources == {use.activation for use in groups[-1][0].uses}:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    per_group = -(-len(groups) // most)
    return [list(chain(*groups[start : start + per_group])) for start in range(0, len(groups), per_group)]
