"""What bytes a weight takes. A storage is a class in a file of this folder, listed here."""

from __future__ import annotations

from onnx_cbq.settings import check, either
from onnx_cbq.storage.archived import Archived
from onnx_cbq.storage.int8 import Int8
from onnx_cbq.storage.packed import Packed
from onnx_cbq.storage.storage import Dump, Storage

__all__ = ["STORAGES", "Archived", "Dump", "Int8", "Packed", "Storage", "find_storage"]

STORAGES: tuple[type[Storage], ...] = (Int8, Packed, Archived)


def find_storage(name: str) -> type[Storage]:
    """The storage of that name.

    Raises:
        ConfigError: there is none.
    """
    found = {storage.name: storage for storage in STORAGES}
    check(name in found, "--storage", either(tuple(found)), name)
    return found[name]
