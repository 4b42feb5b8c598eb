"""The file as a whole: operator set, sizes, attributes."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.rules.finding import Finding
from onnx_cbq.targets.target import Target

_CONV_ATTRIBUTES = ("dilations", "group", "kernel_shape", "pads", "strides")


def opset(file: QdqFile, target: Target) -> Iterator[Finding]:
    """An operator set that the runtime knows."""
    found = file.source.opset
    if found > target.highest_opset:
        yield Finding("opset", "the file", "opset", f"{target.highest_opset} or earlier", str(found))


def ir_version(file: QdqFile, target: Target) -> Iterator[Finding]:
    """A version of the format that the runtime knows."""
    found = file.source.skeleton.ir_version
    if found > target.highest_ir:
        yield Finding("ir", "the file", "IR version", f"{target.highest_ir} or earlier", str(found))


def sizes(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """Every size of every input is a number."""
    for spec in file.model.inputs:
        if spec.shape is None or None in spec.shape:
            found = "no shape" if spec.shape is None else " x ".join("any" if s is None else str(s) for s in spec.shape)
            yield Finding("sizes", "the file", spec.name, "fixed sizes", found)


def samples(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """One sample at a time."""
    for spec in file.model.inputs:
        if spec.shape and spec.shape[0] not in (None, 1):
            yield Finding("samples", "the file", spec.name, "1 sample", f"{spec.shape[0]}")


def attributes(file: QdqFile, _target: Target) -> Iterator[Finding]:
    """A Conv writes out all its attributes."""
    for node in file.of_type("Conv"):
        missing = sorted(set(_CONV_ATTRIBUTES) - {attribute.name for attribute in node.attribute})
        if missing:
            name = node.name or node.output[0]
            yield Finding("attributes", name, node.output[0], "all attributes written", f"no {', '.join(missing)}")
