"""How files say which class they are of: the folder that they lie in, or a file of the same name beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_cbq.calibration.card import Card
from onnx_cbq.calibration.decoding.decoders import Decoder
from onnx_cbq.calibration.decoding.kinds import DECODERS
from onnx_cbq.calibration.files import named, reason, shown
from onnx_cbq.calibration.places import FOLDER, is_hidden
from onnx_cbq.calibration.stores import File, Files, Store
from onnx_cbq.errors import CalibrationError
from onnx_cbq.model import Array

# Keys of a .json beside a sample that may hold its label, the first that is there.
LABEL_KEYS = ("label", "cls", "class")
_LABEL_SUFFIXES = ("cls", "json")
_LARGEST_LABEL_FILE = 1 << 20
_LONGEST_LABEL = 200
_LARGEST_NUMBER = 1 << 53


@dataclass(frozen=True)
class Listing:
    """All samples of a source.

    Attributes:
        files: one for each sample.
        labels: numbers, or names of classes, [n].
        decoder: makes samples of the files.
        class_names: in the order of the labels, if the layout knows them.
    """

    files: Files
    labels: Array
    decoder: Decoder
    class_names: tuple[str, ...] | None = None


def found(stores: Sequence[Store], card: Card, layouts: Sequence[Layout] | None = None) -> Listing:
    """The samples of some stores, in the first layout that is theirs.

    Raises:
        CalibrationError: there are none, or their labels are missing.
    """
    for layout in LAYOUTS if layouts is None else layouts:
        listing = layout(stores, card)
        if listing is not None:
            return listing
    raise AssertionError("class_folders takes whatever there is")


def web_dataset(stores: Sequence[Store], card: Card) -> Listing | None:
    """`KEY.jpg` with `KEY.cls` or `KEY.json`; the key is the path up to the first dot of the file's name.

    Returns None if no sample has a label beside it.

    Raises:
        CalibrationError: another sample has none, or it is not one.
    """
    kind = kind_of(name for store in stores for name in store.names)
    pairs = [(s, *pair) for s, store in enumerate(stores) for pair in _pairs(store.names, kind)]
    if all(label is None for _, _, label in pairs):
        return None
    values = []
    for s, sample, label in pairs:
        if label is None:
            raise CalibrationError(f"{stores[s].file(sample)}: no .cls or .json beside it that says its class")
        values.append(_read_label(stores[s].file(label), json_keys=stores[s].names[label].lower().endswith(".json")))
    files = Files(stores, ((s, sample) for s, sample, _ in pairs))
    return Listing(files, as_labels(values, card, stores[0].label), kind(card))


def _pairs(names: Sequence[str], kind: type[Decoder]) -> Iterator[tuple[int, int | None]]:
    """The numbers of a sample and of the file that holds its label, in the order of the samples."""
    samples: dict[str, int] = {}
    labels: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(names):
        folder, _, last = name.rpartition(FOLDER)
        key, _, suffix = last.partition(".")
        suffix = suffix.lower()
        if f".{suffix}" in kind.suffixes and key:
            samples[f"{folder}{FOLDER}{key}"] = number
        elif suffix in _LABEL_SUFFIXES:
            rank = _LABEL_SUFFIXES.index(suffix)
            path = f"{folder}{FOLDER}{key}"
            if path not in labels or labels[path][0] >= rank:
                labels[path] = rank, number
    for key, number in samples.items():
        yield number, labels[key][1] if key in labels else None


def _read_label(file: File, *, json_keys: bool) -> int | str:
    """What a file beside a sample says of its class.

    Raises:
        CalibrationError: nothing that could be a label.
    """
    try:
        with file.open() as stream:
            content = stream.read(_LARGEST_LABEL_FILE)
        text = content.decode("utf-8-sig").strip()
        value = _of_json(json.loads(text)) if json_keys else text
    except Exception as error:  # noqa: BLE001, whatever an archive, a decoder and Python's parser make of damaged bytes
        raise CalibrationError(f"{file}: cannot be read as a label ({reason(error)})") from None
    return checked(value, str(file))


def _of_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    key = next((key for key in LABEL_KEYS if key in value), None)
    if key is None:
        raise ValueError(
            f"expected a key {', '.join(LABEL_KEYS[:-1])} or {LABEL_KEYS[-1]}; it has {shown(list(value))}"
        )
    return value[key]


def checked(value: object, where: str) -> int | str:
    """A label as someone wrote it: a whole number, or the name of a class; a number in text is a number.

    Raises:
        CalibrationError: it is neither.
    """
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_LABEL:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER:
        return value
    raise CalibrationError(f"{where}: label {shown(value)}; expected a whole number or the name of a class")


def as_labels(values: Sequence[int | str], card: Card, where: str) -> Array:
    """Labels as numbers [n] if all are, and as names otherwise; what the card lists as a name is one.

    Raises:
        CalibrationError: some are numbers and others names.
    """
    texts = [str(value) for value in values]
    if card.classes and set(texts) <= set(card.classes):
        place = {name: m for m, name in enumerate(card.classes)}
        return np.array([place[text] for text in texts], np.int64)
    whole = [text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() for text in texts]
    if all(whole):
        return np.array([int(text) for text in texts], np.int64)
    if any(whole):
        number, name = texts[whole.index(True)], texts[whole.index(False)]
        raise CalibrationError(
            f"{where}: labels are numbers ({number}) and names ({shown(name)}); expected one or the other, or all of "
            f"them under classes in the card"
        )
    return np.array(texts, np.str_)


def class_folders(stores: Sequence[Store], card: Card) -> Listing:
    """A folder for each class, perhaps inside others that all files share.

    Classes that the card names may have no folder, as they have no sample: unless there are others that it does not
    name, which would be a misspelling.

    Raises:
        CalibrationError: there are no folders, or not those that the card names.
    """
    where = stores[0].label if len(stores) == 1 else f"{stores[0].label} and {len(stores) - 1} more"
    kind = kind_of(name for store in stores for name in store.names)
    folders: set[str] = set()
    members: list[tuple[str, str, int, int]] = []
    for s, store in enumerate(stores):
        for number, folder, name in _in_folders(store, kind, card.classes or ()):
            folders.add(folder)
            if name:
                members.append((folder, name, s, number))
    if not folders:
        raise CalibrationError(f"{where}: no sub-folders; expected one folder of {kind.what} per class")
    names = card.classes or tuple(sorted(folders))
    place = {name: m for m, name in enumerate(names)}
    missing = next((name for name in names if name not in folders), None)
    if missing is not None and (not folders & place.keys() or folders - place.keys()):
        held = ", ".join(map(named, sorted(folders)[:10])) + (", ..." if len(folders) > 10 else "")
        raise CalibrationError(f"{where}: no folder for class {shown(missing)}; it holds: {held}")
    kept = sorted((place[folder], name, s, number) for folder, name, s, number in members if folder in place)
    files = Files(stores, ((s, number) for _, _, s, number in kept))
    return Listing(files, np.array([m for m, *_ in kept], np.int64), kind(card), names)


def _in_folders(store: Store, kind: type[Decoder], known: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Number, class and file's name of all samples in folders, and of folders themselves with an empty name.

    Raises:
        CalibrationError: a sample lies deeper.
    """
    paths = [(number, parts, is_file) for number, parts, is_file in _parts(store.names, known)]
    samples = [parts for _, parts, is_file in paths if is_file and parts[-1].lower().endswith(kind.suffixes)]
    shared = _shared(samples)
    top = samples[0][:shared] if samples else ()
    for number, parts, is_file in paths:
        if len(parts) < shared + 1 + is_file or parts[:shared] != top:
            continue
        if not is_file:
            if len(parts) == shared + 1:
                yield number, parts[shared], ""
        elif parts[-1].lower().endswith(kind.suffixes):
            if len(parts) > shared + 2:
                raise CalibrationError(
                    f"{store.file(number)}: lies in a folder of a folder; expected one folder per class, all of them "
                    f"in one folder"
                )
            yield number, parts[shared], parts[-1]


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many folders all files have in common above the one that is their class."""
    if not paths:
        return 0
    low, high = min(paths), max(paths)
    most = max(min(map(len, paths)) - 2, 0)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b or i == most), most)


def _parts(names: Iterable[str], known: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Number, parts of the path, and whether it is a file, of what is not hidden."""
    for number, name in enumerate(names):
        parts = tuple(part for part in name.split(FOLDER) if part not in ("", "."))
        if parts and not any(is_hidden(part) and part not in known for part in parts):
            yield number, parts, not name.endswith(FOLDER)


def kind_of(names: Iterable[str]) -> type[Decoder]:
    """What files hold: the first kind of which there is one; images if there is none."""
    held = {suffix for name in names for suffix in (_suffix(name),) if suffix}
    return next((kind for kind in DECODERS if held.intersection(kind.suffixes)), DECODERS[0])


def _suffix(name: str) -> str:
    last = name.rpartition(FOLDER)[2]
    return last[last.rfind(".") :].lower() if "." in last and not is_hidden(last) else ""


Layout = Callable[[Sequence[Store], Card], Listing | None]
# The first that finds something is taken.
LAYOUTS: tuple[Layout, ...] = (web_dataset, class_folders)
