"""The bytes of an archive: a header, four sections, two checks.

    4   "CBQZ"
    1   version, 1
    1   coder: 0 ANS, 1 Huffman
    -   three varints: size of the ONNX file, of the frame, of the parameters
    -   three varints: size of each section but the last as it is stored
    -   frame        the ONNX file without its gaps (`wire`), by zstandard with the dictionary of `vocabulary`
    -   parameters   of the codes (`parameters`), by zstandard
    -   numbers      the contents of the gaps that are no codes (`numbers`)
    -   words        the codes (`ans` or `huffman`)
    32  SHA-256 of the ONNX file
    4   CRC-32 of all before it, little-endian

A varint has seven bits a byte, the lowest first, as in protobuf. zstandard frames have neither magic number nor content
size. Every size is held against its limit before anything of that size is made: a file of n bytes may restore to 1 MiB
and 256 n bytes, and no section may be larger than that.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import zstandard

from onnx_cbq.storage.coding.damage import Damaged
from onnx_cbq.storage.coding.vocabulary import VOCABULARY

MAGIC = b"CBQZ"
VERSION = 1
DIGEST = 32
_CHECK = 4
_LEVEL = 22
_ALLOWANCE = 1 << 20
_LARGEST_RATIO = 1 << 8
_LARGEST_FILE = (1 << 31) - 1  # protobuf's
# What an archive calls its coder. A number that was given stays for good.
CODER_NUMBERS: Mapping[str, int] = {"ans": 0, "huffman": 1}
CODERS = tuple(CODER_NUMBERS)


@dataclass(frozen=True)
class Sections:
    """What an archive consists of, each section unpacked; `words` and `numbers` have their own coding."""

    coder: str
    size: int  # of the ONNX file
    digest: bytes
    frame: bytes
    parameters: bytes
    numbers: bytes
    words: bytes


@dataclass(frozen=True)
class Packed:
    """The bytes of an archive, and those of its sections."""

    content: bytes
    frame: int
    parameters: int
    numbers: int
    words: int


def pack(sections: Sections) -> Packed:
    """The bytes of an archive."""
    stored = (compress(sections.frame, VOCABULARY), compress(sections.parameters), sections.numbers)
    sizes = (sections.size, len(sections.frame), len(sections.parameters), *map(len, stored))
    head = MAGIC + bytes([VERSION, CODER_NUMBERS[sections.coder]]) + write_varints(sizes)
    body = b"".join((head, *stored, sections.words, sections.digest))
    content = body + zlib.crc32(body).to_bytes(_CHECK, "little")
    if sections.size > largest_file(len(content)):
        raise Damaged("the model is so repetitive that its archive would pass for a hostile one")
    frame, parameters, numbers = map(len, stored)
    return Packed(content, frame, parameters, numbers, len(sections.words))


def unpack(content: bytes) -> Sections:
    """The sections of an archive.

    Raises:
        Damaged: it is none, or of another version, or damaged, or has a size beyond its limits.
    """
    if len(content) < len(MAGIC) or content[: len(MAGIC)] != MAGIC:
        raise Damaged("it does not begin with CBQZ")
    cursor = Cursor(content[: -DIGEST - _CHECK], len(MAGIC))
    version, coder = cursor.byte(), cursor.byte()
    if version != VERSION:
        raise Damaged(f"it has format version {version}, and this onnx-cbq reads {VERSION}")
    if zlib.crc32(content[:-_CHECK]) != int.from_bytes(content[-_CHECK:], "little"):
        raise Damaged("its checksum is wrong")
    coders = {number: name for name, number in CODER_NUMBERS.items()}
    if coder not in coders:
        raise Damaged(f"it names coder {coder}, expected 0 to {len(coders) - 1}")
    size, *unpacked = (cursor.varint() for _ in range(3))
    stored = [cursor.varint() for _ in range(3)]
    limit = min(largest_file(len(content)), _LARGEST_FILE)
    if size > limit:
        raise Damaged(f"it claims to restore to {size} bytes, which {len(content)} bytes cannot hold")
    if max(unpacked) > size + _ALLOWANCE:
        raise Damaged(f"it claims a section of {max(unpacked)} bytes for a file of {size}")
    frame, parameters, numbers = (cursor.take(length) for length in stored)
    return Sections(
        coder=coders[coder],
        size=size,
        digest=content[-DIGEST - _CHECK : -_CHECK],
        frame=expand(frame, unpacked[0], VOCABULARY),
        parameters=expand(parameters, unpacked[1]),
        numbers=numbers,
        words=cursor.rest(),
    )


def largest_file(archive_size: int) -> int:
    """What an archive of so many bytes may restore to, in bytes."""
    return _ALLOWANCE + _LARGEST_RATIO * archive_size


def compress(content: bytes, dictionary: bytes = b"") -> bytes:
    """A zstandard frame without magic number, content size and checksum."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(content),
        dict_size=len(dictionary),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=0,
        write_checksum=0,
        write_dict_id=0,
    )
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(content)


def expand(content: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """What `compress` was given: exactly `size` bytes, which the caller has held against a limit.

    Raises:
        Damaged: it is something else.
    """
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    decompressor = zstandard.ZstdDecompressor(dict_data=known, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    try:
        # A size that the frame itself claims would be allocated, whatever the limit.
        claimed = zstandard.get_frame_parameters(content, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
        if claimed != zstandard.CONTENTSIZE_UNKNOWN:
            raise Damaged("a section claims a size of its own")
        # 0 would mean no limit.
        expanded = decompressor.decompress(content, max_output_size=max(size, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a section cannot be decompressed ({error})") from None
    if len(expanded) != size:
        raise Damaged(f"a section has {len(expanded)} bytes, expected {size}")
    return expanded


def write_varints(values: Iterable[int]) -> bytes:
    """Numbers of seven bits a byte, the lowest first."""
    written = bytearray()
    for number in values:
        rest = number
        while rest > 0x7F:
            written.append(rest & 0x7F | 0x80)
            rest >>= 7
        written.append(rest)
    return bytes(written)


class Cursor:
    """Reads bytes one after the other; never beyond their end."""

    def __init__(self, content: bytes, start: int = 0) -> None:
        self._content = content
        self._at = start

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            Damaged: there are fewer.
        """
        if count > len(self._content) - self._at:
            raise Damaged("it is cut short")
        self._at += count
        return self._content[self._at - count : self._at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def integer(self, length: int, *, signed: bool) -> int:
        """The next number of `length` bytes, little-endian."""
        return int.from_bytes(self.take(length), "little", signed=signed)

    def varint(self) -> int:
        """The next number of up to five bytes."""
        value = 0
        for i in range(5):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * i)
            if byte <= 0x7F:
                return value
        raise Damaged("a size is too large")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._content) - self._at)

    def end(self) -> None:
        """Make sure that nothing is left.

        Raises:
            Damaged: something is.
        """
        if self._at != len(self._content):
            raise Damaged("bytes are left over")
