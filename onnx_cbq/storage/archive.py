"""A model that `quantize` made as a small file, and back, bit for bit.

The codes of the weights, which take a byte each in the model, are coded close to their entropy; `coding` says how, and
`coding.container` has the layout. The model is cut into its frame, its codes and its other numbers by position in the
file, so what comes back is the same file whatever protobuf would write today, and SHA-256 proves it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnx_cbq.errors import ArchiveError, ConfigError, ModelError
from onnx_cbq.graph.reading import read_file
from onnx_cbq.model import Array
from onnx_cbq.records.figures import to_json_text
from onnx_cbq.storage.coding import ans, huffman
from onnx_cbq.storage.coding.ans import CodedLayer
from onnx_cbq.storage.coding.container import CODERS, Packed, Sections, pack, unpack
from onnx_cbq.storage.coding.context import Predictor
from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.fitting import StoredCodes, fit
from onnx_cbq.storage.coding.numbers import read_numbers, write_numbers
from onnx_cbq.storage.coding.parameters import read_parameters, write_parameters
from onnx_cbq.storage.coding.wire import Anatomy, Gap, assemble, dissect, examine
from onnx_cbq.storage.files import write_bytes
from onnx_cbq.storage.metadata import KEY, StoredPlan, parse_plan
from onnx_cbq.system.allowance import advice, allowed

_CODING = {"ans": ans, "huffman": huffman}
_MOST_LAYERS = 4096
# What decoding may take: codes cost up to half a microsecond each, and pieces, of a group at a position, a tenth of a
# millisecond. At least so many of either, or so many for each byte of the archive.
_LEAST_CODES, _CODES_PER_BYTE = 4 << 20, 32
_LEAST_PIECES, _BYTES_PER_PIECE = 1 << 15, 16


@dataclass(frozen=True)
class Archive:
    """An archive of a model, and what its parts take.

    Attributes:
        content: the archive itself.
        coder: what codes the weights, ans or huffman.
        model_bytes: of the ONNX file.
        frame_bytes: what nodes and names take in the archive.
        parameter_bytes: what describes the grids and predicts the codes.
        number_bytes: scales, biases and other numbers that are no codes.
        code_bytes: the codes.
        weights: how many codes there are.
        entropy: of the codes, by the frequencies of each width and grid, in bits per weight.
    """

    content: bytes
    coder: str
    model_bytes: int
    frame_bytes: int
    parameter_bytes: int
    number_bytes: int
    code_bytes: int
    weights: int
    entropy: float

    @property
    def ideal_bytes(self) -> float:
        """What the codes would take at that entropy."""
        return self.weights * self.entropy / 8

    def save(self, path: str | Path) -> int:
        """Write the archive whole or not at all; returns its bytes.

        Raises:
            OutputError: it cannot be written.
        """
        write_bytes(Path(path), self.content)
        return len(self.content)

    def to_json(self) -> str:
        """Everything but the content, as JSON."""
        figures = {key: value for key, value in asdict(self).items() if key != "content"}
        figures |= {"archive_bytes": len(self.content), "ideal_bytes": self.ideal_bytes}
        return to_json_text("archive", figures)


def archive(model: str | Path | ModelProto, coder: str = "ans") -> Archive:
    """A quantized model as an archive that `restore` turns into the same bytes again.

    Args:
        model: path of an ONNX file that onnx-cbq made, or a `ModelProto`, which stands for the file it would become.
        coder: ans, or huffman to compare.

    Raises:
        OnnxCbqError: the file cannot be read, or onnx-cbq did not make it, or its weights lie in another file.
    """
    if coder not in CODERS:
        raise ConfigError(f"--coder: expected {' or '.join(CODERS)}, got {coder!r}")
    label = "the model" if isinstance(model, ModelProto) else str(model)
    content = model.SerializeToString() if isinstance(model, ModelProto) else _read(Path(model))
    try:
        frame, contents, anatomy = dissect(content)
        plan = _plan(anatomy, label)
    except Damaged as error:
        raise ModelError(f"{label}: not an ONNX model ({error}); export or copy it again") from None
    if anatomy.has_external_data:
        raise ModelError(f"{label}: has its weights in another file; archive takes a model that is one file")
    layers = _layers(anatomy, plan)
    if not layers and _is_packed(content):
        raise ModelError(
            f"{label}: was written with --storage packed; archive takes the file of --storage int8: quantize again "
            "with --storage int8, or with --storage archive"
        )
    if not layers or len(layers) > _MOST_LAYERS:
        raise ModelError(
            f"{label}: its weights are not those of the plan in its metadata; archive the file that quantize wrote"
        )
    stored = [StoredCodes(_codes(anatomy.gaps[i], contents[i]), bits) for i, bits in layers.items()]
    coded, groups = fit(stored)
    if not _CODING[coder].PREDICTS:
        coded = [replace(layer, predictor=Predictor.empty(layer.geometry)) for layer in coded]
    words = _CODING[coder].encode(coded, [entry.codes for entry in stored], groups)
    sections = Sections(
        coder=coder,
        size=len(content),
        digest=hashlib.sha256(content).digest(),
        frame=frame,
        parameters=write_parameters(coded, groups),
        numbers=write_numbers(_others(anatomy, layers), contents),
        words=words,
    )
    try:
        packed = pack(sections)
        _check_work(coded, len(packed.content))
    except Damaged as error:
        raise ModelError(f"{label}: cannot be archived: {error}; keep the ONNX file") from None
    return _described(packed, sections, coded, stored)


def restore(source: str | Path | bytes) -> bytes:
    """The ONNX file that an archive holds, bit for bit.

    Args:
        source: path of an archive, or its content.

    Raises:
        OnnxCbqError: it cannot be read, is no archive, or is damaged.
    """
    label = "the archive" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else _read(Path(source))
    try:
        return _restore(unpack(content), len(content), label)
    except (Damaged, ModelError) as error:
        raise ArchiveError(f"{label}: cannot be restored: {error}; copy it again, or make it again") from None


def coded_bits(weights: Sequence[tuple[Array, Array]], coder: str = "ans") -> int:
    """What codes would take in an archive, in bits, each layer's in the shape of its weight with its channels' bits."""
    stored = [StoredCodes(codes, bits) for codes, bits in weights]
    coded, groups = fit(stored)
    return 8 * len(_CODING[coder].encode(coded, [entry.codes for entry in stored], groups))


def _restore(sections: Sections, stored_bytes: int, label: str) -> bytes:
    anatomy = examine(sections.frame, sections.size)
    layers = _layers(anatomy, _plan(anatomy, label))
    if not layers or len(layers) > _MOST_LAYERS:
        raise Damaged("its weights are not those of its plan")
    shapes = [anatomy.gaps[i].shape for i in layers]
    coded, groups = read_parameters(sections.parameters, shapes, list(layers.values()))
    _check_work(coded, stored_bytes)
    contents = read_numbers(_others(anatomy, layers), sections.numbers)
    for i, codes in zip(layers, _CODING[sections.coder].decode(coded, groups, sections.words), strict=True):
        narrow = codes.astype(np.int8 if anatomy.gaps[i].data_type == TensorProto.INT8 else np.uint8)
        contents[i] = narrow.tobytes()
    restored = assemble(sections.frame, anatomy.gaps, [contents[i] for i in range(len(anatomy.gaps))])
    if hashlib.sha256(restored).digest() != sections.digest:
        raise Damaged("what it restores to is not what was archived (SHA-256 differs)")
    return restored


def _check_work(layers: Sequence[CodedLayer], size: int) -> None:
    """Hold what decoding takes against the size of the archive, before it begins."""
    codes, pieces = sum(layer.codes for layer in layers), sum(layer.pieces for layer in layers)
    for found, limit, what in (
        (codes, allowed(max(_LEAST_CODES, _CODES_PER_BYTE * size)), "codes"),
        (pieces, allowed(max(_LEAST_PIECES, size // _BYTES_PER_PIECE)), "pieces of codes"),
    ):
        if found > limit:
            raise Damaged(f"it has {found} {what}, more than {limit} in {size} bytes; {advice(found, limit)}")


def _read(path: Path) -> bytes:
    return read_file(path, "a file")


def _plan(anatomy: Anatomy, label: str) -> StoredPlan:
    text = anatomy.metadata.get(KEY.encode())
    if text is None:
        raise ModelError(f"{label}: onnx-cbq did not make this model; archive takes what onnx-cbq quantize wrote")
    return parse_plan(text)


def _is_packed(content: bytes) -> bool:
    """Whether a tensor is brought into shape in the graph, from nothing but constants."""
    try:
        graph = ModelProto.FromString(content).graph
    except DecodeError:
        return False
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if fixed.issuperset(node.input):
            if node.op_type == "Reshape":
                return True
            fixed.update(node.output)
    return False


def _layers(anatomy: Anatomy, plan: StoredPlan) -> dict[int, Array] | None:
    """Index of the gap and bits of the channels, for each layer of the plan; None if they do not fit."""
    narrow = iter([(i, gap) for i, gap in enumerate(anatomy.gaps) if gap.is_narrow])
    found: dict[int, Array] = {}
    for layer in plan.layers.values():
        index = next(
            (i for i, gap in narrow if gap.shape == layer.shape and len(layer.written_bits) in gap.shape), None
        )
        if index is None:
            return None
        found[index] = layer.written_bits
    return found


def _others(anatomy: Anatomy, layers: Mapping[int, Array]) -> dict[int, Gap]:
    return {i: gap for i, gap in enumerate(anatomy.gaps) if i not in layers}


def _codes(gap: Gap, content: bytes) -> Array:
    dtype = np.int8 if gap.data_type == TensorProto.INT8 else np.uint8
    return np.frombuffer(content, dtype).reshape(gap.shape)


def _described(
    packed: Packed, sections: Sections, layers: Sequence[CodedLayer], stored: Sequence[StoredCodes]
) -> Archive:
    weights = sum(entry.codes.size for entry in stored)
    return Archive(
        content=packed.content,
        coder=sections.coder,
        model_bytes=sections.size,
        frame_bytes=packed.frame,
        parameter_bytes=packed.parameters,
        number_bytes=packed.numbers,
        code_bytes=packed.words,
        weights=weights,
        entropy=_entropy(layers, stored) / weights,
    )


def _entropy(layers: Sequence[CodedLayer], stored: Sequence[StoredCodes]) -> float:
    """Bits of all codes by how often each occurs in its group; a channel of zeros has none."""
    counts: defaultdict[int, Array] = defaultdict(lambda: np.zeros(512, np.int64))
    for layer, entry in zip(layers, stored, strict=True):
        rows = layer.geometry.rows(entry.codes).astype(np.int16) + 256
        for index in np.unique(layer.groups[layer.groups >= 0]).tolist():
            counts[index] += np.bincount(rows[layer.groups == index].reshape(-1), minlength=512)
    seen = [count[count > 0] for count in counts.values()]
    return float(sum((count * np.log2(count.sum() / count)).sum() for count in seen))
