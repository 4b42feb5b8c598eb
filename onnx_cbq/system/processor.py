"""Which processor this is, in the words that decide how fast integers are and whether they saturate."""

from __future__ import annotations

from functools import cache

import archspec.cpu
from archspec.cpu.detect import detected_info

# From the best to the least: what the feature is called, and what it is called here.
_KINDS = (
    ("amx_int8", "amx"),
    ("avx_vnni_int8", "avx_vnni_int8"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx_vnni", "avx_vnni"),
    ("avx512bw", "avx512"),
    ("avx2", "avx2"),
    ("avx", "avx"),
    ("sse4_1", "sse4_1"),
    ("i8mm", "neon i8mm"),
    ("asimddp", "neon dot"),
    ("asimd", "neon"),
)


def architecture() -> str:
    """The family of this processor: "x86_64", "aarch64" and so on."""
    return str(archspec.cpu.host().family.name)


def microarchitecture() -> str:
    """The name of this processor's design: "icelake", "zen4" and so on."""
    return str(archspec.cpu.host().name)


@cache
def processor_kind() -> str:
    """The kind of this processor: "avx2", "avx512", "avx512_vnni", "neon dot" and so on."""
    host = archspec.cpu.host()
    features = set(host.features) | set(detected_info().features)
    return next((kind for feature, kind in _KINDS if feature in features), host.family.name)
