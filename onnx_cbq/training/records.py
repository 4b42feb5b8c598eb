"""What training takes and gives; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_cbq.calibration.samples import Indices
from onnx_cbq.evidence.workload import Workload
from onnx_cbq.learned.pace import rise
from onnx_cbq.model import Array
from onnx_cbq.quantize.grid import quantize_rows
from onnx_cbq.quantize.table import WIDTHS, Table
from onnx_cbq.records import FREE, ActivationGrid, Grouping, Layer, LayerWeights
from onnx_cbq.stages.compensation import Rounded


@dataclass(frozen=True)
class Rate:
    """What the coder of an archive may spend on all codes together.

    Attributes:
        bits: at most so many.
        spent: what weights take, in bits.
        storage: whose coder that is.
    """

    bits: int
    spent: Callable[[Sequence[LayerWeights]], int]
    storage: object = None


@dataclass(frozen=True)
class Quantized:
    """What is trained, as integers.

    Attributes:
        rounded: weights and biases.
        grids: of activations, by tensor.
        integer_biases: biases that are written as integers: name -> layer, and tensor whose grid the layer reads; the
            scale of a bias is the product of theirs.
        rate: weights may take any code, but all together no more than this; None if each channel keeps its width.
    """

    rounded: Rounded
    grids: Mapping[str, ActivationGrid]
    integer_biases: Mapping[str, tuple[str, str]]
    rate: Rate | None = None


@dataclass(frozen=True)
class Task:
    """What training works on.

    Attributes:
        work: the model, its layers and the samples.
        learned: samples to learn from; `held` those that decide what is kept.
        class_weights: what a sample counts, by its class, [classes].
        groups: classes that are taken together.
        seed: decides the order of the samples.
    """

    work: Workload
    learned: Indices
    held: Indices
    class_weights: Array
    groups: Grouping
    seed: int


@dataclass(frozen=True)
class Schedule:
    """How long a training goes on.

    Attributes:
        updates, minutes: at most; whichever is over first.
        check_every: updates between two looks at the samples held back, or a fiftieth of the training if that is more.
        seed: decides the order of the samples.
        title: what the user sees.
        usual_loss: at which the learning rates are meant; with more they rise (see `learned.pace`), since there is
            further to go. None for the same rates whatever the loss.
    """

    updates: int
    minutes: float
    check_every: int
    seed: int
    title: str
    usual_loss: float | None = None

    def rise(self, loss: float) -> float:
        """What learning rates are multiplied by, at a loss before training."""
        return 1.0 if self.usual_loss is None else rise(loss, self.usual_loss)


@dataclass(frozen=True)
class Held:
    """What held-back samples say of a net: mean loss, and top-1 in percent."""

    loss: float
    top1: float


@dataclass
class Course:
    """How a training went so far.

    Attributes:
        start: the held-back samples before it; `best` those of what is kept.
        best_update: updates after which that was; 0 as long as training has made nothing better.
        updates: updates done; `stopped` says what ended them: "updates", "time" or "Ctrl-C".
        seconds: spent, those before a resumption included.
        losses: of the held-back samples at every look.
        looks: that are due so far; the number of `losses` may be smaller.
    """

    start: Held
    best: Held
    best_update: int = 0
    updates: int = 0
    stopped: str = "updates"
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    looks: int = 0


@dataclass(frozen=True)
class Levels:
    """The weights of a layer at every width 0 .. 8, a byte per weight and width.

    Attributes:
        codes: int8 [widths, channels, n].
        scale: float32 [widths, channels].
        shifts: for each use of the layer, what its bias takes up, [widths, channels]; may be empty.
    """

    codes: Array
    scale: Array
    shifts: tuple[Array, ...] = ()

    @staticmethod
    def of(table: Table) -> Levels:
        """Compensated."""
        return Levels(table.codes, table.scale, table.shifts)

    @staticmethod
    def nearest(rows: Array, layer: Layer | None = None) -> Levels:
        """Rows [channels, n] rounded to nearest; `layer` is whose they are."""
        rules, lanes = (layer.rules, layer.lanes) if layer else (FREE, None)
        widths = (np.full(len(rows), width, np.int8) for width in range(WIDTHS))
        found = [quantize_rows(rows, width, rules, lanes) for width in widths]
        return Levels(np.stack([f.codes for f in found]), np.stack([f.scale for f in found]))
