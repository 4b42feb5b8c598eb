"""Settings: frozen, checked when they are made, each with a default that is documented here."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from onnx_cbq.errors import ConfigError

METHODS = ("rate-distortion", "cbq", "differentiable", "uniform")
GRANULARITIES = ("channel", "layer")
ROUNDINGS = ("compensate", "nearest")
# Averages of bits of the trade-off curve.
CURVE = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
RANGES = ("mse", "percentile", "minmax")
STORAGES = ("int8", "packed", "archive")
CODERS = ("ans", "huffman")
CODEBOOKS = ("uniform", "kmeans", "hessian-kmeans", "ecsq")
SCOPES = ("layer", "net")
AUGMENTATIONS = ("flip", "shift", "mix")
MOST_BITS = 8


@dataclass(frozen=True)
class ScoringConfig:
    """When a neuron counts as critical.

    Attributes:
        epsilon: a neuron is critical for a sample if |z dPhi/dz| exceeds it. The paper's 1e-50 lies below the smallest
            float32, so it means "not zero".
        relative: compare with epsilon times the layer's mean |z dPhi/dz| for the sample instead, which tells channels
            apart where the paper's threshold calls nearly all of them critical.
    """

    epsilon: float = 1e-50
    relative: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.epsilon < float("inf"), "epsilon", "a number of at least 0", self.epsilon)


@dataclass(frozen=True)
class CbqConfig:
    """Constants of the threshold search that the paper leaves open; the README gives the reasons.

    Attributes:
        most_bits: N, the width that every channel starts with; None for one more than the budget, rounded up.
        step: how far a threshold moves at a time, as a share of the largest importance.
        first_target: T_1 as a share of the accuracy with N bits everywhere.
        ratio: R, by which each further threshold's target is lower; also applied to all when all have stopped.
        pin_ends: keep the first and the last layer at 8 bits, as the paper does. They count in the average.
        held_back: share of the calibration samples of each class that accuracy is measured on, and nothing else.
    """

    most_bits: int | None = None
    step: float = 0.02
    first_target: float = 0.99
    ratio: float = 0.98
    pin_ends: bool = True
    held_back: float = 0.25

    def __post_init__(self) -> None:
        _check(self.most_bits in (None, *range(1, MOST_BITS + 1)), "most_bits", f"1 to {MOST_BITS}", self.most_bits)
        for name in ("step", "first_target", "ratio", "held_back"):
            value = getattr(self, name)
            _check(0 < value < 1, name, "a number between 0 and 1", value)


@dataclass(frozen=True)
class RateDistortionConfig:
    """How much the rate-distortion search measures.

    Attributes:
        held_back: share of the calibration samples of each class that plans are measured on, and nothing else.
        exchanges: at most so many plans are measured while layers trade bits.
        certainty: standard errors by which a trade must lower the measured loss.
        strengths: a trade multiplies the predicted losses of one layer by this, or divides them; one round for each.
    """

    held_back: float = 0.25
    exchanges: int = 60
    strengths: tuple[float, ...] = (2.0, 1.4)
    certainty: float = 2.0

    def __post_init__(self) -> None:
        _check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        _check(self.exchanges >= 0, "exchanges", "a number of at least 0", self.exchanges)
        _check(self.certainty >= 0, "certainty", "a number of at least 0", self.certainty)
        _check(all(s > 1 for s in self.strengths), "strengths", "numbers above 1", self.strengths)


@dataclass(frozen=True)
class DifferentiableConfig:
    """How real-valued widths descend; they take the samples of the whole card.

    Attributes:
        granularity: a width for every "channel", or for every "layer".
        steps: of the descent at most.
        minutes: of the descent at most; where they run out first, a repeated run may give another file.
        rate: bits that a width moves in a step, about.
        headroom: bits above the budget that all widths start at.
        falling: share of the descent over which the average allowed falls to the budget.
        batch: samples per step.
        alpha, augment: as in `RefineConfig`.
        bfloat16: compute gradients in bfloat16 where the processor has it.
    """

    granularity: str = "channel"
    steps: int = 200
    minutes: float = 15.0
    rate: float = 0.03
    headroom: float = 1.0
    falling: float = 0.6
    batch: int = 128
    alpha: float = 0.0
    augment: tuple[str, ...] = ()
    bfloat16: bool = True

    def __post_init__(self) -> None:
        _check(self.granularity in GRANULARITIES, "--granularity", _either(GRANULARITIES), self.granularity)
        _check(self.steps > 0, "--width-steps", "a number above 0", self.steps)
        _check(0 < self.minutes < float("inf"), "--width-minutes", "a number above 0", self.minutes)
        _check(self.batch > 0, "batch", "a number above 0", self.batch)
        _check(0 <= self.headroom <= MOST_BITS, "headroom", f"0 to {MOST_BITS} bits", self.headroom)
        for name in ("rate", "falling"):
            _check(0 < getattr(self, name) < 1, name, "a number between 0 and 1", getattr(self, name))
        _check(0 <= self.alpha <= 1, "alpha", "a number from 0 to 1", self.alpha)
        for name in self.augment:
            _check(name in AUGMENTATIONS, "augment", _either(AUGMENTATIONS), name)


@dataclass(frozen=True)
class RoundingConfig:
    """How rounding compensates for its errors.

    Attributes:
        damping: what is added to the diagonal of the inputs' second moment, as a share of its mean; more where it
            cannot be factorised otherwise.
        order: columns by "falling" second moment, or in the order of the "file".
        refits: how often scales are fitted to the codes and the codes to the scales after compensation.
        sweeps: passes of coordinate descent per refit.
        rows: layer inputs that moments are taken over; with fewer samples than that, several positions of each.
        passes: at most so many times the float and the quantized model are run side by side, so that layers see what
            the quantized layers in front of them give; deeper models share passes.
    """

    damping: float = 0.005
    order: str = "falling"
    refits: int = 3
    sweeps: int = 3
    rows: int = 24_000
    passes: int = 32

    def __post_init__(self) -> None:
        _check(0 < self.damping < 1, "damping", "a number between 0 and 1", self.damping)
        _check(self.order in ("falling", "file"), "order", '"falling" or "file"', self.order)
        for name in ("refits", "sweeps"):
            _check(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("rows", "passes"):
            _check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))


@dataclass(frozen=True)
class RefineConfig:
    """How weights, scales and biases are trained once the plan is fixed.

    Attributes:
        steps: updates at most.
        minutes: of training at most; where they run out first, the learning rate falls by the time, and a repeated run
            may give another file.
        batch: samples per update.
        weight_rate: learning rate of latent weights, in steps of their layer's grid.
        rate: learning rate of biases and of logarithms of scales. Both rise where training starts far from the float
            model (`training.records.Schedule`).
        alpha: share of the cross-entropy with the labels in the loss; the rest is the divergence from the float model.
        augment: "flip", "shift" and "mix", for images.
        held_back: share of each class that no update sees, by which the best state is chosen.
        check_every: steps between two looks at the samples held back.
        bfloat16: compute updates in bfloat16 where the processor has it.
    """

    steps: int = 1200
    minutes: float = 15.0
    batch: int = 128
    weight_rate: float = 4e-3
    rate: float = 5e-4
    alpha: float = 0.0
    augment: tuple[str, ...] = ()
    held_back: float = 0.1
    check_every: int = 100
    bfloat16: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "check_every"):
            _check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _check(0 < self.minutes < float("inf"), "--refine-minutes", "a number above 0", self.minutes)
        for name in ("weight_rate", "rate"):
            _check(0 <= getattr(self, name) < 1, name, "a number from 0 to 1", getattr(self, name))
        _check(0 <= self.alpha <= 1, "--alpha", "a number from 0 to 1", self.alpha)
        for name in self.augment:
            _check(name in AUGMENTATIONS, "--augment", _either(AUGMENTATIONS), name)
        _check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)


@dataclass(frozen=True)
class StepConfig:
    """How nested subnets are found and trained (Sun et al., SteppingNet, DATE 2023).

    Attributes:
        macs: share of the model's multiplications that each subnet may have, rising.
        steps: updates at most, those between moves included.
        minutes: of training at most; where they run out first, a repeated run may give other files.
        batch: samples per update.
        rate: learning rate at its highest.
        beta: what a subnet changes in the weights of one j subnets smaller counts beta^j.
        alpha: share of the cross-entropy with the labels in the loss; the rest is the divergence from the model.
        augment: "flip", "shift" and "mix", for images.
        held_back: share of each class that no update sees, by which the best state is chosen.
        check_every: steps between two looks at the samples held back.
        rounds: how often units are moved until every subnet is within its limit; `round_steps` are between two moves,
            or fewer if that is more than a third of all steps.
        bfloat16: compute updates in bfloat16 where the processor has it.
        seed: decides the order of the samples.
        logits: name of the output that holds the class scores; None if only one can be meant.
        bits: width that the weights of every step are quantized to, without samples; None leaves them float.
    """

    macs: tuple[float, ...] = (0.1, 0.3, 0.5, 0.85)
    steps: int = 10_000
    minutes: float = 20.0
    batch: int = 128
    rate: float = 3e-3
    beta: float = 0.9
    alpha: float = 0.0
    augment: tuple[str, ...] = ()
    held_back: float = 0.1
    check_every: int = 100
    rounds: int = 20
    round_steps: int = 25
    bfloat16: bool = True
    seed: int = 0
    logits: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0.0, *self.macs)))
        _check(bool(self.macs) and rising and self.macs[-1] <= 1, "--macs", "rising shares up to 1", self.macs)
        for name in ("steps", "batch", "check_every", "rounds"):
            _check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _check(self.round_steps >= 0, "round_steps", "a number of at least 0", self.round_steps)
        _check(0 < self.minutes < float("inf"), "--minutes", "a number above 0", self.minutes)
        _check(0 < self.rate < 1, "--rate", "a number between 0 and 1", self.rate)
        _check(0 < self.beta <= 1, "--beta", "a number above 0, up to 1", self.beta)
        _check(0 <= self.alpha <= 1, "--alpha", "a number from 0 to 1", self.alpha)
        for name in self.augment:
            _check(name in AUGMENTATIONS, "--augment", _either(AUGMENTATIONS), name)
        _check(0 < self.held_back < 1, "held_back", "a number between 0 and 1", self.held_back)
        possible = self.bits is None or 2 <= self.bits <= MOST_BITS
        _check(possible, "--quantize", f"2 to {MOST_BITS}", self.bits)


@dataclass(frozen=True)
class DataFreeConfig:
    """How weights are quantized without samples.

    Attributes:
        bits: average bits per weight, 2 to 8; where it is no whole number, widths follow the weights' distortion.
        scheme: one of `SCHEMES`.
        per_tensor: one scale for a whole layer, instead of one per channel.
        storage: as in `QuantizeConfig`.
    """

    SCHEMES: ClassVar[tuple[str, ...]] = ("mse", "symmetric", "asymmetric", "power-of-two", "log")

    bits: float = 8.0
    scheme: str = "mse"
    per_tensor: bool = False
    storage: str = "int8"

    def __post_init__(self) -> None:
        _check(self.storage in STORAGES[:2], "--storage", f"{_either(STORAGES[:2])} with --data-free", self.storage)
        _check(self.scheme in self.SCHEMES, "--scheme", _either(self.SCHEMES), self.scheme)
        _check(2 <= self.bits <= MOST_BITS, "--bits", f"2 to {MOST_BITS} with --data-free", self.bits)


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that decides the result of `quantize`.

    Attributes:
        bits: average bits per weight over all layers; whole for `uniform`.
        method: "rate-distortion" (bits where they lower the predicted loss most), "cbq" (thresholds on class
            importance), "differentiable" (real-valued widths by gradient descent; needs torch) or "uniform" (every
            channel the same).
        rounding: "compensate" (weights make up for each other's errors) or "nearest".
        keep: (pattern, bits) pairs: layers whose names match a pattern keep that width, as in a shell.
        activation_bits: 2 to 8, or 0 to leave activations float.
        activation_range: "mse" (least squared error), "percentile" (99.99 % of the values) or "minmax".
        equalize: make the channels of an activation alike in size where the divergence from the float model, measured,
            is lower for it; nothing is tried where activations stay float.
        classes: names of the only classes that matter; None for all.
        class_weights: (name, weight) pairs: what the samples of a class count beside those of others.
        clusters: how many groups to join the classes to by confusion, or the groups; None for each class by itself.
        bytes: size that the file may have; the most bits that fit are found, and `bits` is ignored.
        max_drop: points of accuracy that may be lost; the fewest bits that keep it are found, and `bits` is ignored.
        max_class_drop: points of accuracy that any class may lose.
        storage: "int8" (a byte per weight), "packed" (its bits, unpacked when a session is opened) or "archive" (codes
            chosen by what they cost once entropy-coded; `bits` are those of the coder, and an archive is saved).
        coder: of an archive: "ans", or "huffman" to compare.
        codebook: which values weights may take: "uniform" steps, or values that weights share, chosen by "kmeans",
            "hessian-kmeans" (errors count by the diagonal of the loss's Hessian) or "ecsq" (entropy-constrained, for an
            archive). Plans of bits per channel are for uniform steps only.
        codebook_scope: the weights of a "layer" share values, or those of the whole "net".
        curve: further averages of bits to find plans for and to evaluate, from the same statistics.
        samples: how many calibration samples are drawn, evenly from the classes; None for all.
        seed: decides which samples are drawn.
        logits: name of the output that holds the class scores; None if only one can be meant.
        refine: train weights, scales and biases once the plan is fixed; None for no training.
        scoring, cbq, search, differentiable, compensation: settings of the stages.
    """

    bits: float = 4.0
    method: str = "rate-distortion"
    rounding: str = "compensate"
    keep: tuple[tuple[str, int], ...] = ()
    activation_bits: int = MOST_BITS
    activation_range: str = "mse"
    equalize: bool = True
    classes: tuple[str, ...] | None = None
    class_weights: tuple[tuple[str, float], ...] = ()
    clusters: int | tuple[tuple[str, ...], ...] | None = None
    bytes: int | None = None
    max_drop: float | None = None
    max_class_drop: float | None = None
    curve: tuple[float, ...] = ()
    storage: str = "int8"
    coder: str = "ans"
    codebook: str = "uniform"
    codebook_scope: str = "layer"
    samples: int | None = 1000
    seed: int = 0
    logits: str | None = None
    refine: RefineConfig | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cbq: CbqConfig = field(default_factory=CbqConfig)
    search: RateDistortionConfig = field(default_factory=RateDistortionConfig)
    differentiable: DifferentiableConfig = field(default_factory=DifferentiableConfig)
    compensation: RoundingConfig = field(default_factory=RoundingConfig)

    def __post_init__(self) -> None:
        _check(self.method in METHODS, "--method", _either(METHODS), self.method)
        _check(self.rounding in ROUNDINGS, "--rounding", _either(ROUNDINGS), self.rounding)
        for option, bits in (("--bits", self.bits), *(("curve", bits) for bits in self.curve)):
            _check(0 < bits <= MOST_BITS, option, f"a number above 0 and up to {MOST_BITS}", bits)
            whole = float(bits).is_integer() or self.method != "uniform"
            _check(whole, option, "a whole number with --method uniform", bits)
        for pattern, width in self.keep:
            _check(width in range(MOST_BITS + 1), f"--keep {pattern}", f"0 to {MOST_BITS} bits", width)
        widths = (0, *range(2, MOST_BITS + 1))
        _check(self.activation_bits in widths, "--activation-bits", "2 to 8, or 0 for float", self.activation_bits)
        _check(self.activation_range in RANGES, "--activation-range", _either(RANGES), self.activation_range)
        _check(self.storage in STORAGES, "--storage", _either(STORAGES), self.storage)
        counted = not isinstance(self.clusters, int) or self.clusters >= 2
        _check(counted, "--clusters", "at least 2 groups", self.clusters)
        for name, weight in self.class_weights:
            _check(0 <= weight < float("inf"), f"--class-weight {name}", "a number of at least 0", weight)
        _check(self.bytes is None or self.bytes > 0, "--bytes", "a number above 0", self.bytes)
        _check(self.coder in CODERS, "--coder", _either(CODERS), self.coder)
        self._check_codebook()
        if self.storage == "archive":
            _check(self.method == "rate-distortion", "--storage archive", "--method rate-distortion", self.method)
            rounded = self.rounding == "compensate" or self.shares_values
            _check(rounded, "--storage archive", "--rounding compensate", self.rounding)
            _check(not self.keep, "--storage archive", "no --keep beside it", self.keep)
        if self.bytes is not None:
            _check(self.storage != "int8", "--bytes", "--storage packed or archive beside it", "--storage int8")
            _check(self.method == "rate-distortion", "--bytes", "--method rate-distortion beside it", self.method)
            limited = self.max_drop is not None or self.max_class_drop is not None
            _check(not limited, "--bytes", "no limit on accuracy beside it", "both")
        for option, limit in (("--max-drop", self.max_drop), ("--max-class-drop", self.max_class_drop)):
            _check(limit is None or 0 <= limit <= 100, option, "points of accuracy, 0 to 100", limit)
            searched = limit is None or self.method == "rate-distortion"
            _check(searched, option, "--method rate-distortion beside it", self.method)
        _check(self.samples is None or self.samples > 0, "--samples", "a number above 0", self.samples)
        _check(self.seed >= 0, "--seed", "a number of at least 0", self.seed)

    def _check_codebook(self) -> None:
        _check(self.codebook in CODEBOOKS, "--codebook", _either(CODEBOOKS), self.codebook)
        _check(self.codebook_scope in SCOPES, "--codebook-scope", _either(SCOPES), self.codebook_scope)
        if not self.shares_values:
            _check(self.codebook_scope == "layer", "--codebook-scope", "another --codebook beside it", self.codebook)
            return
        option = f"--codebook {self.codebook}"
        _check(self.method == "rate-distortion", option, "no --method beside it", self.method)
        _check(not self.keep, option, "no --keep beside it", self.keep)
        if self.storage == "archive":
            return
        _check(self.codebook != "ecsq", option, "--storage archive beside it", f"--storage {self.storage}")
        for bits in (self.bits, *self.curve):
            _check(float(bits).is_integer(), "--bits", f"a whole number with {option}, or --storage archive", bits)
        limited = any(limit is not None for limit in (self.bytes, self.max_drop, self.max_class_drop))
        _check(not limited, option, "--bits or --storage archive beside it", "a limit on bytes or accuracy")

    @property
    def shares_values(self) -> bool:
        """Whether weights take the values of a codebook, and no plan of bits is searched."""
        return self.codebook != "uniform"

    @property
    def held_back(self) -> float:
        """Share of the samples that plans are measured on; 0 for a method that measures none."""
        return {"cbq": self.cbq.held_back, "rate-distortion": self.search.held_back}.get(self.method, 0.0)


def _check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value}")


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
