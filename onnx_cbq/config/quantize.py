"""Settings of a whole run, with samples and without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from onnx_cbq.config.checks import (
    CODEBOOKS,
    CODERS,
    METHODS,
    MOST_BITS,
    RANGES,
    ROUNDINGS,
    SCOPES,
    STORAGES,
    check,
    either,
)
from onnx_cbq.config.planning import CbqConfig, RateDistortionConfig, RoundingConfig, ScoringConfig
from onnx_cbq.config.training import DifferentiableConfig, RefineConfig


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
        check(self.storage in STORAGES[:2], "--storage", f"{either(STORAGES[:2])} with --data-free", self.storage)
        check(self.scheme in self.SCHEMES, "--scheme", either(self.SCHEMES), self.scheme)
        check(2 <= self.bits <= MOST_BITS, "--bits", f"2 to {MOST_BITS} with --data-free", self.bits)


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
        target: the runtime and the processor that the file is for: "cpu" (onnxruntime on any), "vnni", "arm64",
            "openvino", "tensorrt", "qnn", "xnnpack" or "vitis"; see `onnx_cbq.targets`.
        run_check: run the result as it will run, and refuse it if its integer kernels give something else than the file
            says. Without it the figures are those of the plain graph, as kernels that never saturate compute it.
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
        samples: how many calibration samples are drawn, evenly from the classes that have any; None for all, "auto" for
            1,000, or two of each class if that is more.
        seed: decides which samples are drawn.
        logits: name of the output that holds the class scores; None if only one can be meant.
        ignore_outputs: outputs that may be lost; all others count beside the class scores.
        refine: train weights, scales and biases once the plan is fixed; None for no training.
        scoring, cbq, search, differentiable, compensation: settings of the stages.
    """

    bits: float = 4.0
    method: str = "rate-distortion"
    rounding: str = "compensate"
    keep: tuple[tuple[str, int], ...] = ()
    activation_bits: int = MOST_BITS
    target: str = "cpu"
    run_check: bool = True
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
    samples: int | Literal["auto"] | None = "auto"
    seed: int = 0
    logits: str | None = None
    ignore_outputs: tuple[str, ...] = ()
    refine: RefineConfig | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cbq: CbqConfig = field(default_factory=CbqConfig)
    search: RateDistortionConfig = field(default_factory=RateDistortionConfig)
    differentiable: DifferentiableConfig = field(default_factory=DifferentiableConfig)
    compensation: RoundingConfig = field(default_factory=RoundingConfig)

    def __post_init__(self) -> None:
        check(self.method in METHODS, "--method", either(METHODS), self.method)
        check(self.rounding in ROUNDINGS, "--rounding", either(ROUNDINGS), self.rounding)
        for option, bits in (("--bits", self.bits), *(("curve", bits) for bits in self.curve)):
            check(0 < bits <= MOST_BITS, option, f"a number above 0 and up to {MOST_BITS}", bits)
            whole = float(bits).is_integer() or self.method != "uniform"
            check(whole, option, "a whole number with --method uniform", bits)
        for pattern, width in self.keep:
            check(width in range(MOST_BITS + 1), f"--keep {pattern}", f"0 to {MOST_BITS} bits", width)
        widths = (0, *range(2, MOST_BITS + 1))
        check(self.activation_bits in widths, "--activation-bits", "2 to 8, or 0 for float", self.activation_bits)
        check(self.activation_range in RANGES, "--activation-range", either(RANGES), self.activation_range)
        check(self.storage in STORAGES, "--storage", either(STORAGES), self.storage)
        counted = not isinstance(self.clusters, int) or self.clusters >= 2
        check(counted, "--clusters", "at least 2 groups", self.clusters)
        for name, weight in self.class_weights:
            check(0 <= weight < float("inf"), f"--class-weight {name}", "a number of at least 0", weight)
        check(self.bytes is None or self.bytes > 0, "--bytes", "a number above 0", self.bytes)
        check(self.coder in CODERS, "--coder", either(CODERS), self.coder)
        self._check_codebook()
        if self.storage == "archive":
            check(self.method == "rate-distortion", "--storage archive", "--method rate-distortion", self.method)
            rounded = self.rounding == "compensate" or self.shares_values
            check(rounded, "--storage archive", "--rounding compensate", self.rounding)
            check(not self.keep, "--storage archive", "no --keep beside it", self.keep)
        if self.bytes is not None:
            check(self.storage != "int8", "--bytes", "--storage packed or archive beside it", "--storage int8")
            check(self.method == "rate-distortion", "--bytes", "--method rate-distortion beside it", self.method)
            limited = self.max_drop is not None or self.max_class_drop is not None
            check(not limited, "--bytes", "no limit on accuracy beside it", "both")
        for option, limit in (("--max-drop", self.max_drop), ("--max-class-drop", self.max_class_drop)):
            check(limit is None or 0 <= limit <= 100, option, "points of accuracy, 0 to 100", limit)
            searched = limit is None or self.method == "rate-distortion"
            check(searched, option, "--method rate-distortion beside it", self.method)
        counted = self.samples is None or self.samples == "auto" or self.samples > 0
        check(counted, "--samples", "a number above 0", self.samples)
        check(self.seed >= 0, "--seed", "a number of at least 0", self.seed)

    def _check_codebook(self) -> None:
        check(self.codebook in CODEBOOKS, "--codebook", either(CODEBOOKS), self.codebook)
        check(self.codebook_scope in SCOPES, "--codebook-scope", either(SCOPES), self.codebook_scope)
        if not self.shares_values:
            check(self.codebook_scope == "layer", "--codebook-scope", "another --codebook beside it", self.codebook)
            return
        option = f"--codebook {self.codebook}"
        check(self.method == "rate-distortion", option, "no --method beside it", self.method)
        check(not self.keep, option, "no --keep beside it", self.keep)
        if self.storage == "archive":
            return
        check(self.codebook != "ecsq", option, "--storage archive beside it", f"--storage {self.storage}")
        for bits in (self.bits, *self.curve):
            check(float(bits).is_integer(), "--bits", f"a whole number with {option}, or --storage archive", bits)
        limited = any(limit is not None for limit in (self.bytes, self.max_drop, self.max_class_drop))
        check(not limited, option, "--bits or --storage archive beside it", "a limit on bytes or accuracy")

    @property
    def shares_values(self) -> bool:
        """Whether weights take the values of a codebook, and no plan of bits is searched."""
        return self.codebook != "uniform"

    @property
    def gathers(self) -> bool:
        """Whether anything is estimated from samples; else they only show what the result does."""
        return self.method != "uniform" or self.rounding != "nearest" or self.activation_bits > 0

    @property
    def held_back(self) -> float:
        """Share of the samples that plans are measured on; 0 for a method that measures none."""
        return {"cbq": self.cbq.held_back, "rate-distortion": self.search.held_back}.get(self.method, 0.0)
