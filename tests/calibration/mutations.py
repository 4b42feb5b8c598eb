"""Cards, `.npz` files and images as an enemy, or a bad disk, would make them: valid ones, changed at random."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

Random = np.random.Generator

CARDS = (
    """source = "a.npz"
layout = "NHWC"
scale = 0.0625
""",
    """source = "a.npz"
layout = "NHWC"
scale = 0.0625
mean = [0.5]
std = [0.25]
limit = 3
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
""",
    """# A folder
source = "images"
layout = "NHWC"
resize = 9
crop = [8, 8]
scale = 0.00392156862745098
mean = 0.485
std = 0.229
classes = ["cat", "dog", "2", "3", "4", "5", "6", "7", "8", "9"]
""",
    """source = './images'
classes = ['cat', "d\\u006fg", "2", "3", "4", "5", "6", "7", "8", "9"] # a comment
""",
)
VALUES = (
    *("0", "-1", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "9223372036854775807", "9223372036854775808"),
    *("1" + "0" * 400, "1" + "0" * 5000, "0x" + "f" * 5000, "1e400", "true", "1979-05-27T07:32:00Z", "00:00:00.99"),
    *('""', '"NHWC"', '"NCHW"', '"\\u0000"', '"a\\nb"', '"' + "x" * 5000 + '"', '"/dev/zero"', '"/dev/tty"', '"pipe"'),
    *('"."', '".."', '"/"', '"loop"', '"images/cat"', '"images/cat/0.png"', '"a.npz/b"', '"card.toml"', '"""\na"""'),
    *(
        "[]",
        "[[]]",
        "[" * 2000,
        "[" * 90 + "]" * 90,
        "[0.5]",
        "[0.1, 0.2, 0.3]",
        "[1, 1]",
        "[100000, 1]",
        "[1, 100000]",
    ),
    *("2147483647", "[2147483647, 2147483647]", "{a = 1}", "{" + "a." * 3000 + "a = 1}", '["cat"]', '["dog", "cat"]'),
    *('["a", 1]', '["\\u0000"]', "[" + "0.5, " * 9000 + "1]", "3.4e38", "-3.4e38", "1.2e-38", "1e30", "1e-30"),
)
_NUMBERS = (
    *("0", "1", "-1", "255", "0.5", "3e38", "-3e38", "1e-37", "2e-38", "[0.5]", "[0.5, 0.5, 0.5]", "1e30", "-1e30"),
    *("[1e38]", "1e20", "1e-20", "+1.5", "0x10", "1_000.5"),
)
_SIZES = ("1", "8", "9", "[8, 8]", "[8, 9]", "[1, 8]", "40000", "2147483647", "[8, 100000]", "[100000, 8]", "7")
FITTING = {
    "scale": _NUMBERS,
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "resize": _SIZES,
    "crop": _SIZES,
    "limit": ("1", "2", "3", "40", "2147483647"),
    "layout": ('"NHWC"', '"NCHW"', "'NHWC'", '"""NHWC"""'),
    "source": ('"a.npz"', '"./images"', '"images/"', '"images/../a.npz"', '"b.npz"', '"images/cat"'),
    "classes": (
        *('["cat", "dog"]', '["dog", "cat", "2", "3", "4", "5", "6", "7", "8", "9"]', '["cat", "cow"]'),
        '["a", "b", "c", "d", "e", "f", "g", "h", "i", "[bold]j"]',
    ),
}
KEYS = ("source", "layout", "scale", "mean", "std", "resize", "crop", "classes", "limit", "a.b", "[table]", "x" * 300)
_KNOWN = 9


def changed_bytes(content: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """The content with bits turned, bytes set, cut out, doubled, or put in from elsewhere."""
    found = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        if not found:
            break
        at, kind = int(random.integers(len(found))), int(random.integers(6))
        length = int(random.integers(1, max(len(found) // 4, 2)))
        if kind == 0:
            found[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            found[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length]
        elif kind == 4:
            del found[at:]
        else:
            other = bytes(others[int(random.integers(len(others)))]) if others else bytes(found)
            start = int(random.integers(max(len(other), 1)))
            found[at : at + length] = other[start : start + length]
    return bytes(found)


def card(random: Random) -> bytes:
    """A changed card."""
    bases = [base.encode() for base in CARDS]
    content = bases[int(random.integers(len(bases)))]
    kind = int(random.integers(4))
    if kind == 0:
        return changed_bytes(content, random, bases)
    lines = content.decode().splitlines()
    for _ in range(int(random.integers(1, 3))):
        key = KEYS[int(random.integers(len(KEYS) if random.integers(8) == 0 else _KNOWN))]
        values = VALUES if random.integers(3) == 0 else FITTING.get(key, VALUES)
        line = f"{key} = {values[int(random.integers(len(values)))]}"
        same = [i for i, old in enumerate(lines) if old.split("=")[0] == line.split("=", maxsplit=1)[0]]
        if same:
            lines[same[0]] = line
        else:
            lines.append(line)
    changed = "\n".join(lines).encode()
    mark = (b"", b"\xef\xbb\xbf", b"\xff\xfe")[int(random.choice(3, p=[0.7, 0.25, 0.05]))]
    return mark + changed if kind < 3 else changed_bytes(changed, random, bases)


SHAPES = (
    *("(40, 8, 8, 1)", "(40,)", "(40, -8, -8, 1)", "(18446744073709551696, 8, 8, 1)", "(40, 9223372036854775808)"),
    *("(True, 40)", "()", "(0,)", "(40, 0)", "(1099511627776,)", "(4611686018427387904, 0)", "(40.0, 64)", "('a',)"),
    *(
        "[40, 64]",
        "None",
        "(" * 300,
        "(40, 64), 'x': (1,)",
        "-" * 5000 + "1",
        "(1, 40, 64)",
        "(40, 8, 8)",
        "(40, 3, 8, 8)",
    ),
)
TYPES = (
    *("'|u1'", "'<f4'", "'<f8'", "'<f2'", "'>i8'", "'<u8'", "'|b1'", "'|S0'", "'<U0'", "'|S64'", "'<U16'", "'|O'"),
    *("('<f4', (2,))", "[('a', '<f4')]", "[('a', '|O')]", "'<c8'", "'<M8[s]'", "'|V8'", "'<f16'", "'nonsense'", "3"),
    *("'<i4'", "'<m8[7D]'", "[('', '<f4')]", "''", "'\\d'", "[('a', '<f4', (9999999999,))]"),
)


def _npy(descr: str, shape: str, data: bytes, random: Random) -> bytes:
    order = "True" if random.integers(20) == 0 else "False"
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    if random.integers(20) == 0:
        header += b" " * int(random.choice([10_000, 70_000]))
    version = (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09")[int(random.choice(4, p=[0.7, 0.2, 0.05, 0.05]))]
    size = 2 if version == b"\x01\x00" else 4
    length = len(header) if random.integers(20) else int(random.integers(1 << 31))
    return b"\x93NUMPY" + version + (length % (1 << 8 * size)).to_bytes(size, "little") + header + data


def npz_base(random: Random, *, small: bool = False) -> bytes:
    """A valid file of 40 digits, stored or compressed."""
    out = io.BytesIO()
    x = random.integers(0, 17, (40, 8, 8, 1)).astype(random.choice(["u1", "f4", "f8", "i2"]))
    names: dict[str, Any] = {"class_names": np.array([f"name {m}" for m in range(10)])} if random.integers(2) else {}
    (np.savez if small or random.integers(2) else np.savez_compressed)(out, x=x, y=np.arange(40) % 10, **names)
    return out.getvalue()


def npz(random: Random) -> bytes:
    """A changed `.npz`: bytes of the file, headers of its arrays, or fields of its directory."""
    base = npz_base(random)
    kind = int(random.integers(4))
    if kind == 0:
        return changed_bytes(base, random)
    with zipfile.ZipFile(io.BytesIO(base)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if kind == 1:
        for name in random.choice(list(members), int(random.integers(1, 3))):
            descr, shape = (options[int(random.integers(len(options)))] for options in (TYPES, SHAPES))
            usual = ("'|u1'", "(40, 8, 8, 1)") if name == "x.npy" else ("'<i8'", "(40,)")
            descr, shape = (descr, usual[1]) if random.integers(2) else (usual[0], shape)
            members[name] = _npy(descr, shape, members[name][128:], random)
    elif kind == 2:
        name = str(random.choice(list(members)))
        members[name] = changed_bytes(members[name], random, list(members.values()))
    out = io.BytesIO()
    method = random.choice(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], p=[0.4, 0.4, 0.1, 0.1]
    )
    with zipfile.ZipFile(out, "w", int(method)) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue() if kind < 3 else _directory_changed(out.getvalue(), random)


def _directory_changed(content: bytes, random: Random) -> bytes:
    """A field of the central directory, a local header or the end record set to something else."""
    found = bytearray(content)
    marks = [i for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for i in _places(content, mark)]
    for _ in range(int(random.integers(1, 4))):
        at = int(random.choice(marks)) + int(random.integers(4, 46))
        width = int(random.choice([1, 2, 4]))
        old = int.from_bytes(found[at : at + width], "little")
        nasty = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, old + 1, max(old - 1, 0), 2 * old]
        value = int(random.choice(np.array(nasty, np.int64))) % (1 << 8 * width)
        found[at : at + width] = value.to_bytes(width, "little")
    return bytes(found)


def _places(content: bytes, mark: bytes) -> list[int]:
    places, at = [], content.find(mark)
    while at >= 0:
        places.append(at)
        at = content.find(mark, at + 1)
    return places


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def image_bases() -> list[tuple[str, bytes]]:
    """Valid images of many kinds, and files of other kinds that are named like images."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    colour = Image.fromarray(pixels)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a picture " * 20, zip=True)
    texts.add_itxt("Comment", "a picture", "en", "Comment", zip=True)
    pngs = [
        _saved(colour, "PNG"),
        _saved(colour.convert("L"), "PNG"),
        _saved(colour.convert("P"), "PNG", transparency=3),
        _saved(colour.convert("1"), "PNG"),
        _saved(colour.convert("RGBA"), "PNG", pnginfo=texts, dpi=(72, 72)),
        _saved(Image.fromarray((pixels[:, :, 0].astype(np.uint16) << 8) + 5), "PNG"),
        _saved(colour, "PNG", icc_profile=b"profile" * 100, exif=colour.getexif()),
    ]
    jpegs = [
        _saved(colour, "JPEG", quality=80),
        _saved(colour.convert("L"), "JPEG"),
        _saved(colour.convert("CMYK"), "JPEG"),
        _saved(colour, "JPEG", progressive=True, icc_profile=b"profile" * 100, comment=b"a picture"),
    ]
    others = [_saved(colour, kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "WEBP")]
    others.append(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    return [("png", content) for content in (*pngs, *others)] + [("jpg", content) for content in jpegs]


def image(random: Random, bases: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A changed image and the ending of its name."""
    suffix, content = bases[int(random.integers(len(bases)))]
    if random.integers(2) or not content.startswith(b"\x89PNG"):
        return suffix, changed_bytes(content, random, [other for _, other in bases])
    return suffix, _chunks_changed(content, random)


def _chunks_changed(content: bytes, random: Random) -> bytes:
    """Chunks of a PNG changed, doubled or put in, their checksums right, so that decoders go on."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = int(random.integers(len(chunks)))
    name, data = chunks[number]
    kind = int(random.integers(4))
    if kind == 0:
        chunks[number] = name, changed_bytes(data, random) if data else data
    elif kind == 1:
        size = (int(random.choice([0, 1, 9, 60_000, 1 << 20, (1 << 31) - 1])) for _ in range(2))
        depth, colour = int(random.choice([1, 2, 4, 8, 16, 3])), int(random.choice([0, 2, 3, 4, 6, 1]))
        chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, int(random.integers(3)))
    elif kind == 2:
        bomb = zlib.compress(bytes(int(random.choice([100, 3 << 20]))))
        extra = [(b"iCCP", b"x\0\0" + bomb), (b"zTXt", b"x\0\0" + bomb), (b"iTXt", b"x\0\1\0\0\0" + bomb)]
        chunks.insert(
            1, (*extra, (b"tRNS", bytes(300)), (b"PLTE", bytes(7)), (b"acTL", bytes(8)))[int(random.integers(6))]
        )
    else:
        chunks.insert(int(random.integers(len(chunks))), chunks[number])
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
