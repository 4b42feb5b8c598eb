"""Samples from WAV files; soundfile decodes them, the mean of their channels is taken, scipy resamples it.

A file may be anything, whatever its name says. It is decoded only as WAV, and how much it claims to hold is looked at
before anything is decoded; of a long one only the beginning is read, as far as the card's `length` goes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, BinaryIO, ClassVar

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.stores import File
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array, InputSpec
from onnx_cbq.system.allowance import advice, allowed
from onnx_cbq.system.extras import extra

_STARTS = (b"RIFF", b"RF64")
# Numbers of one file, of all its channels: an hour of speech.
_MOST_NUMBERS = 1 << 26
# scipy's filter has ten zeros on each side, at the lower of the two rates.
_FILTER = 10
# Its length follows from the larger part of the ratio of two rates, once what they have in common is out.
_LARGEST_RATIO = 400_000


class Audio(Decoder):
    """Decodes WAV files to one channel, float32 [length], or [1, length] and [length, 1] for a model that wants them.

    They have the card's sampling rate, or all the same; longer ones are cut behind their first `length` numbers,
    shorter ones end with zeros.
    """

    what: ClassVar[str] = "sounds"
    suffixes: ClassVar[tuple[str, ...]] = (".wav",)
    starts: ClassVar[tuple[bytes, ...]] = _STARTS
    advice: ClassVar[str] = "set length in the card"

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self._library = extra("soundfile", "audio", "WAV files")
        # Where an axis of one channel is put.
        self.channel_axis: int | None = None

    def begin(self, files: Sequence[File]) -> None:
        """Without a sampling rate in the card, all files must have that of the first one."""
        if self.card.sample_rate is None and len(files):
            self.rate = self._decoded(files[0])[1]

    def framed(self, card: Card) -> Decoder:
        """Decodes at the rate and length of another card."""
        other = copy.copy(self)
        other.card = card
        return other

    def fitted_to(self, inputs: Sequence[InputSpec]) -> Decoder:
        """Decodes with an axis of one channel for a model that wants it."""
        other = copy.copy(self)
        shape = next((spec.shape for spec in inputs if spec.shape is not None), ())
        if len(shape) == 3:
            other.channel_axis = 1 if shape[2] == 1 and shape[1] != 1 else 0
        return other

    def decode(self, file: File) -> Array:
        """One channel, resampled, cut or padded."""
        values, rate = self._decoded(file)
        if self.card.sample_rate is None and self.rate is not None and rate != self.rate:
            raise CalibrationError(
                f"{file}: has {rate} numbers a second, the first file {self.rate}; set sample_rate in the card"
            )
        return values if self.channel_axis is None else np.expand_dims(values, self.channel_axis)

    def shape_text(self, sample: Array) -> str:
        """How many numbers."""
        return f"{sample.size:,}"

    def _decoded(self, file: File) -> tuple[Array, int]:
        """Numbers [length] and the file's own sampling rate.

        Raises:
            CalibrationError: it cannot be read.
        """
        try:
            with file.open() as stream:
                _check_start(stream)
                with self._library.SoundFile(stream) as sound:
                    return self._prepared(sound), int(sound.samplerate)
        except Exception as error:  # whatever a decoder makes of damaged data
            what = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            raise CalibrationError(
                f"{file}: cannot be read as sound ({what}); replace it, or leave such files out with --skip-unreadable"
            ) from error

    def _prepared(self, sound: Any) -> Array:
        rate, length = int(sound.samplerate), self.card.length
        up, down = _ratio(rate, self.card.sample_rate or rate)
        frames = int(sound.frames)
        if length is not None:
            frames = min(frames, math.ceil(length * down / up) + _FILTER * math.ceil(max(up, down) / up) + 1)
        numbers = max(frames * max(int(sound.channels), math.ceil(up / down)), length or 0)
        if numbers > allowed(_MOST_NUMBERS):
            raise ValueError(f"{numbers:,} numbers; {advice(numbers, allowed(_MOST_NUMBERS))}")
        values = sound.read(frames, dtype="float32", always_2d=True).mean(axis=1, dtype=np.float32)
        if not values.size:
            raise ValueError("nothing is to be heard")
        if up != down:
            # Imported here: it takes long, and few need it.
            values = np.asarray(import_module("scipy.signal").resample_poly(values, up, down), np.float32)
        return values if length is None else _to_length(values, length)


def _check_start(stream: BinaryIO) -> None:
    """Refuse what is no WAV before a decoder of something else sees it."""
    if stream.read(4) not in _STARTS:
        raise ValueError("no WAV")
    stream.seek(0)


def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    """By what a signal is brought from one sampling rate to another: times the first, by the second.

    Raises:
        ValueError: no filter of a reasonable length does that.
    """
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if not rate or max(up, down) > _LARGEST_RATIO:
        raise ValueError(f"{rate:,} numbers a second, which cannot be brought to {wanted:,}")
    return up, down


def _to_length(values: Array, length: int) -> Array:
    """The first `length` numbers, with zeros behind them where there are fewer."""
    return np.pad(values[:length], (0, max(length - len(values), 0)))
