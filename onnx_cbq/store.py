"""Save and load records, so that a stage can be run alone on what earlier ones left.

A file is an `.npz` without pickles: the arrays of the record, and its other fields as JSON, in which an array stands as
its number.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeVar, get_origin

import numpy as np
from cattrs import Converter
from cattrs.errors import ClassValidationError

from onnx_cbq.emit.files import write_arrays
from onnx_cbq.errors import ModelError
from onnx_cbq.model import Array, read_only

_T = TypeVar("_T")
_TREE = "record"
# What numpy and the archive behind it say of a file that is damaged, or no archive; a single array is no context.
_DAMAGED = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or get_origin(kind) is np.ndarray


def save_record(path: Path, record: object) -> None:
    """Write a record whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    arrays: dict[str, Array] = {}
    converter = Converter()

    def number(value: Array) -> str:
        arrays[f"array{len(arrays)}"] = value
        return f"array{len(arrays) - 1}"

    converter.register_unstructure_hook_func(_is_array, number)
    tree = json.dumps(converter.unstructure(record))
    write_arrays(path, {**arrays, _TREE: np.frombuffer(tree.encode(), np.uint8)})


def load_record(path: Path, kind: type[_T]) -> _T:
    """Read a record of type `kind`; its arrays are read-only.

    Raises:
        ModelError: the file is not a record of that type.
    """
    converter = Converter(forbid_extra_keys=True)
    try:
        # Opened here: np.load leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            converter.register_structure_hook_func(_is_array, lambda name, _: read_only(stored[name]))
            return converter.structure(json.loads(bytes(stored[_TREE])), kind)
    except (*_DAMAGED, ClassValidationError) as error:
        raise ModelError(f"{path}: not a saved {kind.__name__}: {type(error).__name__}; make it again") from error
