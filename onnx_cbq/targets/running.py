"""What onnxruntime makes of a file: it fuses more, and quantizes more, than the file itself says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from onnx_cbq.errors import ModelError
from onnx_cbq.model import Model
from onnx_cbq.runtime import optimized
from onnx_cbq.targets.reading import Product, QdqFile
from onnx_cbq.targets.rules.weights import largest_sums
from onnx_cbq.targets.target import Target


class Run:
    """A file as it says, and as onnxruntime runs it.

    Attributes:
        said: the file.
        fused: the graph after onnxruntime's own optimizations but those of the layout; None where it refuses the file.
        refusal: why it does, "" where it does not.
    """

    def __init__(self, said: QdqFile, source: Path | bytes) -> None:
        self.said, self.refusal = said, ""
        self.fused: QdqFile | None = None
        try:
            self.fused = QdqFile(Model.from_proto(optimized(source, "extended")))
        except ModelError as error:
            self.refusal = str(error)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What a file that onnxruntime refuses can have wrong is anything: that it cannot be read either says no more.

        Raises:
            ModelError: onnxruntime's reason, where the file could not be read.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if not self.refusal:
                raise
            raise ModelError(self.refusal) from error

    @property
    def products(self) -> tuple[Product, ...]:
        """All products: those of the file, and those that only onnxruntime makes integers of."""
        return tuple(product for _, product in self._found)

    @cached_property
    def _found(self) -> list[tuple[QdqFile, Product]]:
        """Each product with the graph that it stands in."""
        known = {p.name for p in self.said.products if p.codes is not None and p.activation_type is not None}
        fused = self.fused
        more = (
            [] if fused is None else [(fused, p) for p in fused.products if p.codes is not None and p.name not in known]
        )
        names = {product.name for _, product in more}
        return [(self.said, product) for product in self.said.products if product.name not in names] + more

    def sums(self, target: Target) -> Mapping[str, tuple[int, int]]:
        """Products whose pairs may meet in 16 bits, by name: the largest sum of two codes, and the limit."""
        found = {}
        for file, product in self._found:
            sums = largest_sums(file, product, target)
            if sums is not None:
                found[product.name] = int(sums[0].max(initial=0)), sums[1]
        return found

    def unsafe(self, target: Target) -> dict[str, int]:
        """The products whose pairs may overflow, by name, and the largest sum of each."""
        return {name: largest for name, (largest, limit) in self.sums(target).items() if largest > limit}
