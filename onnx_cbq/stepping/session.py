"""Run a folder of steps: an answer early, a better one if there is time.

>>> session = SteppingSession("steps")  # doctest: +SKIP
>>> for step in session.steps(x):  # doctest: +SKIP
...     if step.confidence.min() > 0.9:
...         break
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import softmax

from onnx_cbq.errors import CalibrationError, ModelError
from onnx_cbq.model import Array
from onnx_cbq.runtime import Session, median_latency
from onnx_cbq.stepping.record import SteppingRecord, read_record, read_step


@dataclass(frozen=True)
class Step:
    """What one step found.

    Attributes:
        number: 1 for the first.
        logits: class scores [samples, classes].
        output: what the model gives: the same, or what a softmax makes of them.
        macs: multiplications of this step for one sample; `total_macs` of all steps so far.
        seconds: that this step took.
    """

    number: int
    logits: Array
    output: Array
    macs: int
    total_macs: int
    seconds: float

    @cached_property
    def confidence(self) -> Array:
        """The largest class probability of each sample, [samples]."""
        return np.asarray(softmax(self.logits.astype(np.float64), axis=1).max(axis=1))

    @cached_property
    def classes(self) -> Array:
        """The class of the highest score of each sample, [samples]."""
        return np.asarray(self.logits.argmax(axis=1))


class StepRunner:
    """Steps ready to run on the CPU: their record and their files.

    Raises:
        ModelError: onnxruntime cannot load a file, or it has other inputs or outputs than the record says.
    """

    def __init__(self, record: SteppingRecord, contents: Sequence[bytes], threads: int = 0) -> None:
        self.record = record
        self._sessions = [Session(content, float_weights=True, threads=threads) for content in contents]
        for step, session in zip(record.steps, self._sessions, strict=True):
            if set(session.inputs) != set(step.inputs) or set(session.outputs) != set(step.outputs):
                raise ModelError(f"{step.file}: has other inputs or outputs than its record says")

    def steps(self, x: Array | Mapping[str, Array]) -> Iterator[Step]:
        """Run step by step; a step that nobody asks for is not run.

        Args:
            x: the input of the model, or its inputs by name; prepared as for the model.

        Raises:
            CalibrationError: an input is missing.
            ModelError: onnxruntime cannot run a step with them.
        """
        values = self._feeds(x)
        total = 0
        for number, (step, session) in enumerate(zip(self.record.steps, self._sessions, strict=True), start=1):
            begun = time.perf_counter()
            found = session.run({name: values[name] for name in step.inputs})
            seconds = time.perf_counter() - begun
            needed = {name for later in self.record.steps[number:] for name in later.inputs}
            values = {name: value for name, value in (values | found).items() if name in needed}
            logits, total = found[self.record.logits], total + step.macs
            flat = logits.reshape(len(logits), -1)
            yield Step(number, flat, found[self.record.output], step.macs, total, seconds)

    def latencies(self, x: Mapping[str, Array], seconds: float = 0.5) -> list[float]:
        """Median milliseconds of each step by itself; each is run for so many seconds."""
        values, found = dict(x), []
        for step, session in zip(self.record.steps, self._sessions, strict=True):
            feeds = {name: values[name] for name in step.inputs}
            found.append(1e3 * median_latency([session], feeds, seconds)[0])
            values |= session.run(feeds)
        return found

    def _feeds(self, x: Array | Mapping[str, Array]) -> dict[str, Array]:
        expected = self.record.inputs
        feeds = dict(x) if isinstance(x, Mapping) else {expected[0]: np.asarray(x)}
        if set(feeds) != set(expected):
            raise CalibrationError(f"expected the inputs {', '.join(expected)}, got {', '.join(feeds) or 'none'}")
        return feeds


class SteppingSession(StepRunner):
    """The steps of a folder that `onnx-cbq step` wrote, ready to run on the CPU.

    Attributes:
        record: what `stepping.json` says.

    Raises:
        ModelError: a file is missing, damaged, or not the one that was written.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        record = read_record(path)
        super().__init__(record, [read_step(path, step) for step in record.steps])


class FirstSteps:
    """The first steps of a folder as one model, which runs like a `Session` and answers what the last of them does.

    Attributes:
        record: of these steps alone.
    """

    def __init__(self, folder: str | Path, number: int, threads: int = 0) -> None:
        path = Path(folder)
        whole = read_record(path)
        self.record = replace(whole, steps=whole.steps[:number])
        self._runner = StepRunner(self.record, [read_step(path, step) for step in self.record.steps], threads)
        self.inputs, self.outputs = self.record.inputs, (self.record.output,)
        self.samples: int | None = None

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The model's output, by its name."""
        del outputs
        *_, last = self._runner.steps(feeds)
        return {self.record.output: last.output}
