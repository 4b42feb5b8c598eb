"""What a model answers to the same samples under several cards: the right ones, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.samples import CalibrationSet, Indices, Samples
from onnx_cbq.errors import CalibrationError, ModelError
from onnx_cbq.graph.logits import Logits
from onnx_cbq.model import Array, Model
from onnx_cbq.records import Grouping
from onnx_cbq.records.answers import Kind
from onnx_cbq.runtime import Session
from onnx_cbq.search.racing import not_behind
from onnx_cbq.system.progress import Progress, silent

# A race: after these shares of the samples, who is behind at this level drops out.
ROUNDS, DROPPED = (0.2, 0.5, 1.0), 0.01
# Inputs of one batch, so that their activations fit as well.
_BATCH_BYTES, _LARGEST_BATCH = 16 << 20, 100
# What decides how raw samples are read: cards that agree in these share what was read.
_READ_BY = ("resize", "resize_side", "interpolation", "antialias", "crop", "crop_share", "pad", "sample_rate", "length")


@dataclass(frozen=True)
class Outcome:
    """What came of a card, for the samples so far, in the order that they are tried in.

    Attributes:
        right: share of a sample's answers that are right, [samples].
        confidence: the greatest probability of a sample, the mean of its answers, [samples].
        loss: less the logarithm of the right answer's probability, in nats, the mean of its answers, [samples].
        predicted: the class, -1 where a sample has several answers, [samples].
        failure: why the model cannot be run with it, or None.
    """

    right: Array
    confidence: Array
    loss: Array
    predicted: Array
    failure: str | None = None

    @property
    def samples(self) -> int:
        """How many were tried."""
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float(self.right.mean()) if self.samples else 0.0


NOTHING = Outcome(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


class Trials:
    """Runs a model on samples as cards prepare them; nothing is run twice, and what was read serves several cards."""

    def __init__(self, model: Model, data: CalibrationSet, logits: Logits, known: Samples) -> None:
        """`known` are the samples with their labels, under any card that fits."""
        self._inputs, self._data, self._logits, self._known = model.inputs, data, logits, known
        self._session = Session(model.with_graph(outputs=dict.fromkeys(logits.tensors)))
        self.outcomes: dict[Card, Outcome] = {}
        self._fitted: dict[Card, Samples] = {}

    def race(self, cards: Sequence[Card], order: Indices, stage: str, progress: Progress = silent) -> list[Card]:
        """Try cards on ever more of the samples `order`; who is plainly behind drops out, the others are returned.

        Raises:
            CalibrationError, ModelError: every card fails.
        """
        alive = list(dict.fromkeys(cards))
        for share in ROUNDS:
            upto = max(round(share * len(order)), 1)
            self._extend(alive, order[:upto], f"{stage}, {len(alive)} left", progress)
            running = [card for card in alive if self.outcomes[card].failure is None]
            if not running:
                raise ModelError(str(self.outcomes[alive[0]].failure))
            best = max(running, key=lambda card: self.outcomes[card].accuracy)
            rights = [self.outcomes[card].right[:upto] for card in running]
            stays = not_behind(self.outcomes[best].right[:upto], rights, DROPPED)
            alive = [card for card, stay in zip(running, stays, strict=True) if stay]
        return alive

    def run(self, card: Card, order: Indices) -> Outcome:
        """A card on samples of its own, apart from what is kept."""
        found = NOTHING
        for part in self._batches(self._fitting([card]), order):
            found = _joined(found, part[card])
        return found

    def _extend(self, cards: Sequence[Card], order: Indices, stage: str, progress: Progress) -> None:
        """Bring every card up to the samples `order`."""
        done, total = 0, len(cards) * len(order)
        for group in _read_alike(cards, self.outcomes):
            fitting = self._fitting(group)
            start = self.outcomes[group[0]].samples if group[0] in self.outcomes else 0
            try:
                for part in self._batches(fitting, order[start:]):
                    for card, found in part.items():
                        self.outcomes[card] = _joined(self.outcomes.get(card, NOTHING), found)
                    done += sum(found.samples for found in part.values())
                    progress(stage, min(done, total), total)
            except CalibrationError as error:  # samples of different sizes, or smaller than the crop
                for card in fitting:
                    self.outcomes[card] = replace(NOTHING, failure=str(error))
        progress(stage, total, total)

    def _fitting(self, cards: Iterable[Card]) -> dict[Card, Samples]:
        """The samples under each card that fits the model; others fail."""
        found = {}
        for card in cards:
            if card in self.outcomes and self.outcomes[card].failure is not None:
                continue
            try:
                if card not in self._fitted:
                    fitted = self._data.with_card(card).for_model(self._inputs)
                    self._fitted[card] = replace(fitted, known=self._known.known)
            except CalibrationError as error:
                self.outcomes[card] = replace(NOTHING, failure=str(error))
            else:
                found[card] = self._fitted[card]
        return found

    def _batches(self, fitting: dict[Card, Samples], order: Indices) -> Iterable[Mapping[Card, Outcome]]:
        """What comes of each batch under each card; a card that the model cannot be run with leaves `fitting`."""
        if not fitting or not len(order):
            return
        first = next(iter(fitting.values()))
        for chunk, raw in first.raw_batches(order, _batch_size(first, order)):
            if not fitting:
                return
            found = {}
            for card, samples in list(fitting.items()):
                try:
                    values = self._session.run(samples.prepare(raw, np.resize(chunk, len(next(iter(raw.values()))))))
                except (ModelError, CalibrationError) as error:  # numbers beyond what the model takes, as prepared
                    found[card] = replace(NOTHING, failure=str(error))
                    del fitting[card]
                else:
                    found[card] = self._judged(values, self._known.truth[chunk])
            yield found

    def _judged(self, values: Mapping[str, Any], labels: Array) -> Outcome:
        logits, count = self._logits, len(labels)
        tensor, scores = (values[name] for name in logits.tensors)
        reading = replace(logits.reading, keys=())
        return judged(logits.kind, logits.phi.rows(tensor)[:count], reading.rows(scores)[:count], labels)


def judged(kind: Kind, logits: Array, scores: Array, labels: Array) -> Outcome:
    """Answers [samples, positions, classes] held against labels as `Kind` takes them.

    A sample whose scores hold NaN is wrong, of no confidence, and as unlikely as numbers go.
    """
    broken = np.asarray(np.isnan(logits).any(axis=(1, 2)))
    shares = kind.log_shares(np.where(broken[:, None, None], 0, logits), Grouping.single(("",) * kind.classes))
    predicted = kind.predictions(scores)
    if kind.several:
        truth, known = labels, np.ones(labels.shape, bool)
        likely = np.take_along_axis(shares[:, 0], truth[..., None], axis=-1)[..., 0]
        sure = np.exp(shares[:, 0]).max(axis=-1)
    else:
        truth = labels.reshape(len(labels), -1)
        known = truth >= 0
        each = shares[..., 1] if kind.independent else shares
        likely = np.take_along_axis(each, np.maximum(truth, 0)[..., None], axis=-1)[..., 0]
        sure = np.exp(each).max(axis=-1)
    counts = np.maximum(known.sum(axis=1), 1)
    right, confidence, loss = (
        np.asarray((part * known).sum(axis=1) / counts) for part in (predicted == truth, sure, -likely)
    )
    single = predicted.shape[1] == 1 and not kind.several
    return Outcome(
        np.where(broken, 0.0, right),
        np.where(broken, 0.0, confidence),
        np.where(broken, -float(np.log(np.finfo(np.float64).tiny)), loss),
        predicted[:, 0] if single else np.full(len(labels), -1),
    )


def _joined(first: Outcome, second: Outcome) -> Outcome:
    if second.failure is not None:
        return second
    return Outcome(
        np.concatenate([first.right, second.right]),
        np.concatenate([first.confidence, second.confidence]),
        np.concatenate([first.loss, second.loss]),
        np.concatenate([first.predicted, second.predicted]),
    )


def _read_alike(cards: Sequence[Card], outcomes: Mapping[Card, Outcome]) -> list[list[Card]]:
    """Cards for which the same is to be read: of one framing and colour, and tried on as many samples."""
    groups: dict[tuple[Any, ...], list[Card]] = {}
    for card in cards:
        done = outcomes[card].samples if card in outcomes else 0
        key = (*(getattr(card, name) for name in _READ_BY), card.channels == "grey", done)
        groups.setdefault(key, []).append(card)
    return list(groups.values())


def _batch_size(samples: Samples, order: Indices) -> int:
    one = samples.read(order[:1] if samples.fixed_batch is None else np.resize(order[:1], samples.fixed_batch))
    bytes_each = sum(value.nbytes for value in one.values()) // max(samples.fixed_batch or 1, 1)
    return max(min(_BATCH_BYTES // max(bytes_each, 1), _LARGEST_BATCH), 1)
