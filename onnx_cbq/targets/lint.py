"""Hold a file against a target: every rule looks at it, and the target says what comes of what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_cbq.model import Model
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.rules import files, grids, units, weights
from onnx_cbq.targets.rules.finding import Finding, Rule
from onnx_cbq.targets.running import Run
from onnx_cbq.targets.target import Demand, Effect, Target

RULES: tuple[Rule, ...] = (
    files.opset,
    files.ir_version,
    files.sizes,
    files.samples,
    files.attributes,
    grids.domains,
    weights.pairs,
    weights.lowest_code,
    weights.types,
    weights.scales,
    units.biases,
    grids.activations,
    grids.written_zero_points,
    units.saturations,
    grids.equal_grids,
    grids.alike,
    grids.requantization,
    units.on_integers,
    units.operands,
    units.outputs,
    units.residuals,
)


@dataclass(frozen=True)
class Violation:
    """What a file does that its target cannot take, and what comes of it."""

    finding: Finding
    demand: Demand

    @property
    def effect(self) -> Effect:
        """What comes of it."""
        return self.demand.effect

    def __str__(self) -> str:
        at = self.finding
        what = f"{at.node}: {at.tensor}: expected {at.expected}, found {at.found}"
        return f"{self.effect}: {what} [{self.demand.source}]"


def lint(model: Model | QdqFile, target: Target, run: Run | None = None) -> tuple[Violation, ...]:
    """All violations: those that the runtime refuses first, then those that give wrong numbers.

    With `run`, what onnxruntime makes of the file is looked at as well. Cost: a few passes over the weights.
    """
    file = model if isinstance(model, QdqFile) else QdqFile(model)
    found = [finding for rule in RULES for finding in rule(file, target)]
    found += () if run is None else _found_running(run, target, {f.node for f in found if f.fact == "pairs"})
    kept = [Violation(f, target.demands[f.fact]) for f in dict.fromkeys(found) if f.fact in target.demands]
    order: tuple[Effect, ...] = ("refused", "wrong", "slow")
    return tuple(sorted(kept, key=lambda violation: order.index(violation.effect)))


def _found_running(run: Run, target: Target, known: set[str]) -> Iterator[Finding]:
    if run.refusal:
        yield Finding("loads", "the file", "as a whole", "what onnxruntime opens", run.refusal)
    for name, (largest, limit) in run.sums(target).items():
        if largest > limit and name not in known:
            expected = f"codes that meet in 16 bits to add up to {limit} at most"
            yield Finding("pairs", name, "the weight that onnxruntime makes", expected, f"{largest}")
