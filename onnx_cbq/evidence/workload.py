"""A model and samples, loaded, fitted to each other and ready to be analysed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnx_cbq.calibration.labels import is_one_hot
from onnx_cbq.calibration.samples import CalibrationSet, Samples
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.evidence.cache import NO_CACHE, Cache
from onnx_cbq.execution import IN_PROCESS, Engine
from onnx_cbq.gradient.further import NO_FURTHER, FurtherOutputs, find_further
from onnx_cbq.graph.layers import find_layers
from onnx_cbq.graph.leftover import float_weights
from onnx_cbq.graph.load import data_files, inputs_with_defaults, load
from onnx_cbq.graph.logits import Logits, find_logits
from onnx_cbq.graph.normalise import KEEPING_PASSES, PASSES, normalise
from onnx_cbq.graph.placement import NO_ACTIVATIONS, Placement, place_activations
from onnx_cbq.graph.quantized import as_float, quantized_layers
from onnx_cbq.graph.randomness import check_repeatable
from onnx_cbq.graph.shapes import EXAMPLE_BATCH, Example, Shapes
from onnx_cbq.model import Model
from onnx_cbq.records import Layer, Layers, WeightRules
from onnx_cbq.runtime import CPU as CPU_PROVIDER
from onnx_cbq.runtime import placed
from onnx_cbq.settings import MOST_BITS, check
from onnx_cbq.targets.fit import check_model
from onnx_cbq.targets.onnxruntime import CPU
from onnx_cbq.targets.target import Target

ModelSource = str | Path | ModelProto
# Operators that a note names.
_NAMED = 8
DataSource = str | Path | CalibrationSet


@dataclass(frozen=True)
class Workload:
    """A model and samples, ready to be analysed.

    Attributes:
        source: the model as it came; `source_bytes` is its size.
        model: the normalised model, which every stage works on; `shapes` are those of its tensors.
        example: a few samples to measure shapes on.
        further: the outputs that count beside the class scores.
        target: what the file is for, and `placement` the activations that are quantized for it.
        chosen_widths: of some of these, in place of the one for all.
        cache: where evidence is looked for, and kept.
        engine: who runs models over samples.
    """

    source: Model
    source_bytes: int
    model: Model
    shapes: Shapes
    layers: Layers
    logits: Logits
    samples: Samples
    example: Example
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    further: FurtherOutputs = NO_FURTHER
    target: Target = CPU
    placement: Placement = NO_ACTIVATIONS
    chosen_widths: Mapping[str, int] = field(default_factory=dict)
    cache: Cache = NO_CACHE
    engine: Engine = IN_PROCESS

    @property
    def left_float(self) -> float:
        """Share of the model's weights that are in no layer, in percent; everything but whole numbers counts."""
        total = float_weights(self.model)
        return 100 * max(total - self.layers.size, 0) / max(total, 1)

    def widths(self, activation_bits: int) -> Mapping[str, int]:
        """The width of every activation that has a grid.

        What layers multiply has `activation_bits`, or what was chosen; the model's own inputs and what is only added
        stay at 8 bits.
        """
        narrow = self.narrow
        return {
            name: self.chosen_widths.get(name, activation_bits) if name in narrow else MOST_BITS
            for name in self.placement.measured
        }

    @property
    def narrow(self) -> frozenset[str]:
        """The activations whose width is free: what layers multiply, but for the model's own inputs."""
        multiplied = {self.placement.grid_of(use.activation) for layer in self.layers.products for use in layer.uses}
        return frozenset(multiplied & set(self.placement.measured)) - {spec.name for spec in self.model.inputs}

    def with_widths(self, widths: Mapping[str, int], activation_bits: int) -> Workload:
        """The same with widths of some activations chosen, and layers that follow what these demand."""
        return _ruled(replace(self, chosen_widths=widths), activation_bits)


def aimed_at(work: Workload, target: Target, activation_bits: int) -> Workload:
    """`work` for a target: which activations are quantized, to `activation_bits`, and what holds for the weights.

    Raises:
        ModelError: the target does not read the model's operator set.
    """
    check_model(work.model, target)
    if activation_bits:
        work = replace(work, placement=place_activations(work.model, work.layers, target.placement))
    return _ruled(replace(work, target=target), activation_bits)


def _ruled(work: Workload, activation_bits: int) -> Workload:
    """`work` with what its target and its activations demand of the weights."""
    target, widths = work.target, work.widths(activation_bits)

    def rules(layer: Layer) -> WeightRules:
        grids = [work.placement.grid_of(use.activation) for use in layer.uses if layer.kind == "product"]
        bits = max((widths[name] for name in grids if name in widths), default=0)
        top = (1 << bits) - 1 if target.lanes else 0
        return WeightRules(top, layer.operator in target.per_tensor, target.power_of_two)

    layers = tuple(replace(layer, rules=rules(layer)) for layer in work.layers)
    return replace(work, layers=replace(work.layers, layers=layers))


def prepare(
    model: ModelSource,
    data: DataSource,
    logits: str | None = None,
    ignored: Sequence[str] = (),
    *,
    keep_quantized: bool = False,
) -> Workload:
    """Load and normalise a model, fit the samples to it, find its layers and its class scores.

    Outputs beside the class scores count too, but for those that are `ignored`. Layers that are quantized already are
    taken as float ones, or with `keep_quantized` left as they are.

    Raises:
        OnnxCbqError: model or samples cannot be used.
    """
    source, grids = taken(load(model), keep_quantized=keep_quantized)
    samples = as_set(data).for_model(source.inputs)
    example = make_example(samples)
    check_repeatable(source, example)
    normalised = normalise(source, example, KEEPING_PASSES if keep_quantized else PASSES)
    shapes = example.shapes(normalised.model)
    layers = find_layers(normalised.model, shapes)
    found, samples = judge(normalised.model, shapes, samples, logits)
    names = samples.check_labels(found.classes)
    further = find_further(normalised.model, shapes, layers, found, ignored)
    size = size_of(model)
    notes = (
        *source_notes(model),
        *grids,
        *kept_notes(layers),
        *normalised.notes,
        *left_out(samples),
        *without_samples(samples, names),
        *scores_notes(found),
        *further_notes(further),
    )
    if len(names) - len(samples.empty_classes(names)) < (1 if found.kind.several else 2):
        raise CalibrationError(
            f"{samples.data.source.label}: all samples are of class {names[samples.labels[0]]!r}; expected samples of "
            f"at least two classes"
        )
    return Workload(source, size, normalised.model, shapes, layers, found, samples, example, names, notes, further)


def run_by(work: Workload, engine: Engine) -> Workload:
    """`work` run by an engine, with a note of what its provider leaves to the CPU."""
    work, provider = replace(work, engine=engine), engine.place.provider
    if provider == CPU_PROVIDER:
        return work
    nodes = placed(work.model, work.example.feeds, provider)
    if not nodes:
        return work
    left = Counter({operator: count for (operator, where), count in nodes.items() if where == CPU_PROVIDER})
    listed = ", ".join(f"{operator} ({count})" for operator, count in left.most_common(_NAMED))
    more = ", ..." if len(left) > _NAMED else ""
    note = f"--provider {provider}: it runs all nodes of the float model"
    if left:
        note = f"--provider {provider}: {left.total()} of {nodes.total()} nodes run on the CPU: {listed}{more}"
    return replace(work, notes=(*work.notes, note))


def judge(model: Model, shapes: Shapes, samples: Samples, logits: str | None) -> tuple[Logits, Samples]:
    """The class scores of a model, and the samples with labels that answers can be held against.

    Raises:
        OnnxCbqError: no output fits the labels, or several do, or a label is no class.
    """
    found = find_logits(model, shapes, logits, samples.label_shape)
    if found.kind.several and found.squashed != "Sigmoid" and is_one_hot(samples.data.labels):
        found = find_logits(model, shapes, logits)
        samples = samples.with_labels(samples.data.labels.argmax(axis=1))
    return found, samples.labelled(found.kind, found.names)


def check_moved_labels(work: Workload, augment: Sequence[str], alpha: float) -> None:
    """Refuse to learn labels of positions from images whose positions are changed.

    Raises:
        ConfigError: that was asked for.
    """
    if augment and alpha and work.samples.label_shape and not work.logits.kind.several:
        raise ConfigError(
            f"--augment {augment[0]} moves the positions that labels belong to; leave it out, or learn from the float "
            f"model alone with --alpha 0"
        )


def check_single_label(work: Workload) -> None:
    """Refuse class scores that nested subnets do not know.

    Raises:
        ConfigError: they are not one score for each class of a sample that has a single label.
    """
    logits = work.logits
    if logits.kind.several or logits.phi.classes is None or logits.phi.batch or work.samples.label_shape:
        if logits.kind.several:
            found = "several classes for a sample"
        elif logits.phi.classes is None:
            found = "a single number for two classes"
        else:
            found = "several positions, or samples on another axis than the first"
        raise ConfigError(
            f"steps are made of models that give each sample one score per class and one label; output "
            f"{logits.output!r} with these labels has {found}; use quantize for it"
        )


def taken(source: Model, *, keep_quantized: bool) -> tuple[Model, tuple[str, ...]]:
    """The float model behind a quantized one, with a note; the model itself where such layers are kept.

    Raises:
        ConfigError: they are to be kept, and there are none.
    """
    if not keep_quantized:
        return as_float(source)
    found = next(quantized_layers(source), None) is not None
    check(found, "--keep-quantized", "a layer whose weight stands behind a DequantizeLinear", "none")
    return source, ()


def kept_notes(layers: Layers) -> tuple[str, ...]:
    """A note of the layers that are quantized already and stay so."""
    if not layers.kept:
        return ()
    listed = ", ".join(entry.name for entry in layers.kept[:8]) + (", ..." if len(layers.kept) > 8 else "")
    weights = sum(entry.weights for entry in layers.kept)
    return (f"--keep-quantized: {len(layers.kept)} layers with {weights:,} weights stay as they are: {listed}",)


def source_notes(given: ModelSource) -> tuple[str, ...]:
    """What a user should know of the model as it came."""
    notes = []
    fixed = inputs_with_defaults(given)
    if fixed:
        others = f" and {len(fixed) - 1} more" if fixed[1:] else ""
        notes.append(f"input {fixed[0]!r}{others} had a default value, which is a constant of the quantized model")
    return tuple(notes)


def scores_notes(logits: Logits) -> tuple[str, ...]:
    """What a user should know of how the class scores are read."""
    if logits.reading.classes is None and not logits.squashed:
        return (f"output {logits.output!r} is a single number for two classes: above 0 it is taken for class 1",)
    return ()


def further_notes(further: FurtherOutputs) -> tuple[str, ...]:
    """What a user should know of the outputs beside the class scores."""
    counted = ", ".join(dict.fromkeys(repr(one.output) for one in further.counted))
    lost = ", ".join(map(repr, further.ignored))
    return (
        *((f"outputs that count beside the class scores: {counted}",) if counted else ()),
        *((f"--ignore-output: {lost} may be lost",) if lost else ()),
        *(
            f"output {name!r} depends on layers in a way that cannot be differentiated, and does not count"
            for name in further.unknown
        ),
    )


def size_of(model: ModelSource) -> int:
    """Bytes of a model's file, with its external data."""
    if isinstance(model, ModelProto):
        return int(model.ByteSize())
    path = Path(model)
    files = {path.resolve(), *(file.resolve() for file in data_files(path) if file.is_file())}
    return sum(file.stat().st_size for file in files)


def as_set(data: DataSource) -> CalibrationSet:
    """The samples of a card, or the set itself.

    Raises:
        CalibrationError: the card or its source is wrong.
    """
    return data if isinstance(data, CalibrationSet) else CalibrationSet.from_card(data)


def make_example(samples: Samples) -> Example:
    """The first samples, as many as shapes are measured on."""
    count = samples.fixed_batch or EXAMPLE_BATCH
    return Example(samples.read(np.arange(count) % len(samples.labels)))


def without_samples(samples: Samples, names: Sequence[str]) -> tuple[str, ...]:
    """A note about classes that have no samples, which are normal where there are many."""
    empty = samples.empty_classes(names)
    if not len(empty):
        return ()
    return (
        f"no samples of {len(empty):,} classes, the first of them {names[empty[0]]!r}; the model has {len(names):,}",
    )


def left_out(samples: Samples) -> tuple[str, ...]:
    """A note about samples that were skipped."""
    source = samples.data.source
    return (f"{source.skipped} unreadable {source.what} were left out",) if source.skipped else ()
