"""Everything that decides the result of `quantize`, as a user writes it down; `choice` makes objects of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from onnx_cbq import methods as method_room
from onnx_cbq import storage as storage_room
from onnx_cbq import targets as target_room
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence import EvidenceSettings
from onnx_cbq.evidence.clusters import read_groups
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.goals import Accuracy, Bits, Bytes, Goal
from onnx_cbq.jobs.choice import UNIFORM, Choice, Given, check_together, fields_of, make_goal, make_method, make_storage
from onnx_cbq.learned.settings import LearnedConfig
from onnx_cbq.methods import Entropy, Method, SharedValues
from onnx_cbq.quantize.activations import RANGES
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.records.names import split_names
from onnx_cbq.search.cbq import CbqConfig
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.settings import (
    ACTIVATIONS,
    CHOOSE,
    CLASSES,
    FIRST,
    MOST_BITS,
    SAMPLES,
    check,
    check_kinds,
    either,
    option,
)
from onnx_cbq.stages import rounding as rounding_room
from onnx_cbq.stages.activations import ActivationSettings, AutoBits, read_bits
from onnx_cbq.stages.rounding import find_rounding
from onnx_cbq.stages.samples import SampleSettings
from onnx_cbq.stages.scene import SceneSettings
from onnx_cbq.storage import Archived, Storage
from onnx_cbq.storage.coding.container import CODERS
from onnx_cbq.targets import find_target
from onnx_cbq.targets.target import Target
from onnx_cbq.training.settings import RefineConfig

# Averages of bits of the trade-off curve.
CURVE = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)

_N = TypeVar("_N", int, float)


def named_number(option_: str, entry: str, kind: Callable[[str], _N]) -> tuple[str, _N]:
    """NAME=NUMBER as a pair; the name itself may hold an equals sign.

    Raises:
        ConfigError: it is something else.
    """
    name, _, number = entry.rpartition("=")
    try:
        value = kind(number)
    except ValueError:
        name = ""
    if not name:
        raise ConfigError(f"{option_} {entry}: expected NAME=NUMBER")
    return name, value


def _kept(entries: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple(named_number("--keep", entry, int) for entry in entries)


def _weights(entries: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple(named_number("--class-weight", entry, float) for entry in entries)


def _pairs(pairs: Sequence[tuple[str, float]]) -> list[str]:
    return [f"{name}={number!r}" for name, number in pairs]


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for text in texts for name in split_names(text, "--classes"))


def _quoted(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' if "," in name or '"' in name else name for name in names]


def _count(samples: int) -> int | None:
    """0 stands for all."""
    return samples or None


def _counted(samples: int | str | None) -> int | str:
    return 0 if samples is None else samples


def _auto_as_text(bits: int | AutoBits) -> int | str:
    return str(bits) if isinstance(bits, AutoBits) else bits


def read_clusters(text: str | int) -> int | tuple[tuple[str, ...], ...]:
    """A number of groups, or those of a file.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    return int(text) if str(text).isdecimal() else read_groups(Path(str(text)))


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that decides the result of `quantize`.

    A method, storage, target or goal may be given by its name or as a member of its table with settings of its own:
    `onnx_cbq.methods.METHODS`, `onnx_cbq.storage.STORAGES`, `onnx_cbq.targets.TARGETS`, `onnx_cbq.goals.GOALS`. What
    the command line takes as NAME=NUMBER is a tuple of (name, number) pairs here.

    Attributes:
        bits: average bits per weight over all layers.
        method: how bits are chosen.
        rounding: how weights become codes.
        keep: layers whose names match a pattern, as in a shell, keep that width; repeatable.
        keep_quantized: leave layers that are quantized already as they are, with the grids of what they read; without
            that they are taken as float layers of the same values. Not with --refine or training.
        activation_bits: 2 to 8, or 0 to leave activations float; auto:6 gives each the width that it needs, 6 bits on
            average of what is multiplied (auto:6:4,8 only 4 or 8).
        target: the runtime and the processor that the file is for; cpu is onnxruntime on any.
        run_check: run the integer kernels of the result here, and hold what they give against the file; without that
            the figures are those of the plain graph, as kernels that never saturate compute it.
        activation_range: "mse" (least squared error), "percentile" (99.99 % of the values) or "minmax".
        equalize: make the channels of an activation alike in size where the divergence from the float model, measured,
            is lower for it; nothing is tried where activations stay float.
        classes: names of the only classes that matter, the rest may degrade; repeatable; names with commas in double
            quotes.
        class_weights: what the samples of a class count beside those of others; repeatable.
        clusters: tell only groups of classes apart: so many by confusion, or those of a file with a line per group (in
            Python the groups themselves).
        goal: how far to go, by one of `onnx_cbq.goals.GOALS`; None for what `bits` and the limits below say.
        bytes: size that the file may have; the most bits that fit are found, whatever `bits` says.
        max_drop: points of accuracy that may be lost; the fewest bits that keep it are found, whatever `bits`
            says.
        max_class_drop: points of accuracy that any class may lose.
        storage: what bytes a weight takes.
        coder: of an archive: "ans", or "huffman" to compare.
        codebook: which values weights may take: uniform spacings, or values that weights share.
        codebook_scope: the weights of a "layer" share values, or those of the whole "net".
        curve: further averages of bits to find plans for and to evaluate, from the same statistics.
        samples: how many calibration samples are drawn, evenly from the classes that have any; 0, in Python None, takes
            all.
        seed: decides which samples are drawn.
        logits: name of the output that holds the class scores.
        ignore_outputs: outputs that may be lost; all others count beside the class scores; repeatable.
        refine: train weights, scales and biases once the plan is fixed; None for no training.
        scoring, compensation: settings of the stages.
        learned: settings of `rounding` "learned".
        cbq, search, differentiable: settings of the methods, where `method` is a name.
    """

    bits: float = option(Bits.average, FIRST, "B")
    method: str | Method = option("rate-distortion", FIRST, members=lambda: method_room.METHODS)
    rounding: str = option("compensate", CHOOSE, members=lambda: rounding_room.ROUNDINGS)
    keep: tuple[tuple[str, int], ...] = option((), CHOOSE, "NAME=BITS", read=_kept, written=_pairs)
    keep_quantized: bool = option(default=False, panel=CHOOSE, shown="quantized again")
    activation_bits: int | AutoBits = option(
        ActivationSettings.bits, ACTIVATIONS, "2..8|0|auto:A", read=read_bits, written=_auto_as_text
    )
    target: str | Target = option("cpu", FIRST, members=lambda: target_room.TARGETS)
    run_check: bool = option(default=True, panel=ACTIVATIONS, shown="the result is run as it will run")
    activation_range: str = option(ActivationSettings.range, ACTIVATIONS, "|".join(RANGES))
    equalize: bool = option(default=True, panel=ACTIVATIONS, shown="measured for each pair of layers")
    classes: tuple[str, ...] | None = option(None, CLASSES, "A,B,C", read=_names, written=_quoted, shown="all")
    class_weights: tuple[tuple[str, float], ...] = option(
        (), CLASSES, "NAME=W", flag="class-weight", read=_weights, written=_pairs, shown="1 each"
    )
    clusters: int | tuple[tuple[str, ...], ...] | None = option(
        None, CLASSES, "K|FILE", read=read_clusters, shown="each class by itself"
    )
    goal: Goal | None = None
    bytes: int | None = None
    max_drop: float | None = None
    max_class_drop: float | None = None
    curve: tuple[float, ...] = ()
    storage: str | Storage = option("int8", FIRST, members=lambda: storage_room.STORAGES)
    coder: str = Archived.coder
    codebook: str = option(UNIFORM, CHOOSE, members=lambda: method_room.CODEBOOKS)
    codebook_scope: str = SharedValues.scope
    samples: int | Literal["auto"] | None = option(
        SampleSettings.samples,
        SAMPLES,
        "N",
        read=_count,
        written=_counted,
        shown="1000, or 2 of each class if that is more",
    )
    seed: int = option(SampleSettings.seed, SAMPLES, "N")
    logits: str | None = option(None, SAMPLES, "NAME", shown="the only one of shape (samples, classes)")
    ignore_outputs: tuple[str, ...] = option((), SAMPLES, "NAME", flag="ignore-output", shown="all outputs count")
    refine: RefineConfig | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cbq: CbqConfig = field(default_factory=CbqConfig)
    search: RateDistortionConfig = field(default_factory=RateDistortionConfig)
    differentiable: DifferentiableConfig = field(default_factory=DifferentiableConfig)
    compensation: RoundingConfig = field(default_factory=RoundingConfig)
    learned: LearnedConfig = field(default_factory=LearnedConfig)

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, bits in (("--bits", self.bits), *(("curve", bits) for bits in self.curve)):
            check(0 < bits <= MOST_BITS, name, f"a number above 0 and up to {MOST_BITS}", bits)
        for pattern, width in self.keep:
            check(width in range(MOST_BITS + 1), f"--keep {pattern}", f"0 to {MOST_BITS} bits", width)
        counted = not isinstance(self.clusters, int) or self.clusters >= 2
        check(counted, "--clusters", "at least 2 groups", self.clusters)
        object.__setattr__(self, "_choice", _choose(self))
        trains = self.refine is not None or self.choice.method.learning is not None
        trains = trains or self.choice.scene.rounding.learns
        check(not (self.keep_quantized and trains), "--keep-quantized", "nothing that trains beside it", "training")

    @property
    def choice(self) -> Choice:
        """The objects that the settings stand for."""
        found: Choice = self.__dict__["_choice"]
        return found


def _choose(config: QuantizeConfig) -> Choice:
    """The objects that `config` stands for.

    Raises:
        ConfigError: there is no such member, or some do not go together.
    """
    given = _given(config)
    storage = make_storage(config.storage, given)
    method = make_method(config.method, (config.codebook, config.codebook_scope), storage, given)
    scene = SceneSettings(
        rounding=find_rounding(config.rounding, lambda kind: fields_of(kind, given)),
        storage=storage,
        samples=SampleSettings(config.classes, config.class_weights, config.samples, config.seed, method.held_back),
        activations=ActivationSettings.of(config.activation_bits, config.activation_range),
        evidence=EvidenceSettings(config.scoring, config.compensation, config.seed),
        keep=config.keep,
        clusters=config.clusters,
        spared=config.refine.held_back if config.refine else 0.0,
    )
    target = config.target if isinstance(config.target, Target) else find_target(config.target)
    limits = [name for name in ("bytes", "max_drop", "max_class_drop") if getattr(config, name) is not None]
    check(config.goal is None or not limits, "goal", "no other limit beside it", " and ".join(limits))
    coded = config.coder == QuantizeConfig.coder or isinstance(config.storage, str)
    check(coded, "coder", "a storage by its name beside it", config.storage)
    goal = config.goal or make_goal(config.bits, given)
    choice = Choice(method, goal, target, scene, config.equalize, config.run_check)
    check_together(choice, (goal.bits, *config.curve))
    return choice


def _given(config: QuantizeConfig) -> Given:
    """What the flat settings say of each member's fields."""
    check(config.coder in CODERS, "--coder", either(CODERS), config.coder)
    held_back = config.search.held_back
    return {
        Archived: {"coder": config.coder},
        Entropy: {"held_back": held_back},
        SharedValues: {"scope": config.codebook_scope, "held_back": held_back},
        RateDistortionConfig: asdict(config.search),
        CbqConfig: asdict(config.cbq),
        DifferentiableConfig: asdict(config.differentiable),
        LearnedConfig: asdict(config.learned),
        Bytes: {"limit": config.bytes},
        Accuracy: {"max_drop": config.max_drop, "max_class_drop": config.max_class_drop},
    }
