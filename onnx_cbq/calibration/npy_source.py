"""Samples in one `.npy`, their labels in another. Rows are read from the file as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.npy import Rows, checked_header, read_array
from onnx_cbq.calibration.files import reason
from onnx_cbq.calibration.places import Place
from onnx_cbq.calibration.remote import inside
from onnx_cbq.calibration.sources import PlacedSource, checked_labels
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array
from onnx_cbq.system.allowance import allowed

# Labels are held in memory: those of a segmentation of some thousand images fit in.
_LARGEST_LABELS = 256 << 20


class NpySource(PlacedSource):
    """An `.npy` with the samples [n, ...], and one with the labels [n, ...] that the card names under `labels`."""

    endings: ClassVar[tuple[str, ...]] = (".npy",)

    @classmethod
    def reads(cls, place: Place, card: Card) -> Iterator[Place]:
        """The samples and the labels."""
        yield place
        if card.labels is not None:
            yield inside(place.parent, card.labels)

    def __init__(self, places: Sequence[Place], card: Card, *, skip_unreadable: bool) -> None:
        del skip_unreadable
        (place,) = places
        self.label, self.inputs = place.label, ("x",)
        if card.labels is None:
            raise CalibrationError(
                f'{place.label}: no labels; name the .npy with them in the card: labels = "y.npy", beside the samples'
            )
        other = inside(place.parent, card.labels)
        try:
            with other.open() as stream:
                labels = read_array(stream, other.label, allowed(_LARGEST_LABELS))
            file = place.open()
        except OSError as error:
            where = other.label if error.filename in (None, other.label) else place.label
            raise CalibrationError(f"{where}: cannot be read: {error.strerror or reason(error)}") from error
        try:
            header = checked_header(file, place.label)
            self.labels = checked_labels(labels, {"x": header.shape}, f"{place.label} and {other.label}")
        except BaseException:
            file.close()
            raise
        self._rows = Rows(file, header, header.start, place.label)

    def read(self, name: str, indices: Sequence[int]) -> Array:
        """Samples `indices`."""
        del name
        return self._rows.read(indices)
