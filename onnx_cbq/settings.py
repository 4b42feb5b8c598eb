"""Settings: frozen dataclasses beside the code that they steer, each field documented in the class's docstring.

A field made by `option` is an option of the command line too. Its help is what the docstring says under "Attributes:",
its default that of the field: both are written once.
"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import re
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnx_cbq.errors import ConfigError

MOST_BITS = 8

# Panels of the help, in their order; the first holds what most people need.
FIRST = "What most people need"
REACH = "What to reach"
CHOOSE = "How to choose bits"
CLASSES = "Classes"
ACTIVATIONS = "Activations and target"
STORING = "Storage"
TRAINING = "Training"
SAMPLES = "Samples"
OUTPUT = "Output"
MACHINES = "Where it runs"
PANELS = (FIRST, REACH, CHOOSE, CLASSES, ACTIVATIONS, STORING, TRAINING, SAMPLES, MACHINES, OUTPUT)

_KEY = "option"
_NUMBERS: Mapping[Any, type] = {int: numbers.Integral, float: numbers.Real}
_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    types.NoneType: "None",
}
# "name: text" or "name, other: text", in the section of the attributes.
_ATTRIBUTE = re.compile(r"(\w+(?:, \w+)*): (.*)")


@dataclass(frozen=True)
class Option:
    """How a field is called on the command line.

    Attributes:
        panel: of the help.
        metavar: what stands for the value.
        flag: without the dashes; the field's name with dashes if it is empty.
        shown: what stands for the default in the help, where it does not speak for itself.
        read: from a text on the command line to the value; the type's own if left out.
        written: from the value to what stands in a file.
        members: of the table that the value is a name of; those that have an `about` are told of in the help.
    """

    panel: str
    metavar: str = ""
    flag: str = ""
    shown: str = ""
    read: Callable[[str], Any] | None = None
    written: Callable[[Any], Any] = lambda value: value
    members: Callable[[], Sequence[Any]] = tuple


@dataclass(frozen=True)
class Setting:
    """A field that is an option.

    Attributes:
        owner: the class that has the field; `name` is that of the field, `kind` its type, `default` its default.
        about: what the docstring says of it.
        option: how it is called.
    """

    owner: type
    name: str
    kind: Any
    default: Any
    about: str
    option: Option

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        names = [member.name for member in self.option.members()]
        before = [self.default] if names and self.default not in names else []
        return "|".join((*before, *names)) or self.option.metavar

    @property
    def help(self) -> str:
        """What the docstring says, as a sentence, and what each member is."""
        members = [f"{m.name}: {m.about}" for m in self.option.members() if hasattr(m, "about")]
        text = "; ".join((self.about.rstrip("."), *members)) + "."
        return text[:1].upper() + text[1:]

    @property
    def flag(self) -> str:
        """Its name on the command line, without the dashes."""
        return self.option.flag or self.name.replace("_", "-")


def option(default: Any, panel: str, metavar: str = "", **how: Any) -> Any:
    """A field of a settings class that is an option of the command line; `how` as in `Option`."""
    return dataclasses.field(default=default, metadata={_KEY: Option(panel, metavar, **how)})


@cache
def settings_of(owner: Any) -> tuple[Setting, ...]:
    """The fields of a settings class that are options, in their order."""
    return tuple(_settings(owner))


def _settings(owner: Any) -> Iterator[Setting]:
    kinds, words = get_type_hints(owner), described(owner)
    for field in dataclasses.fields(owner):
        if _KEY in field.metadata:
            default = None if field.default is MISSING else field.default
            yield Setting(owner, field.name, kinds[field.name], default, words[field.name], field.metadata[_KEY])


def changed_options(settings: Any, **instead: Any) -> dict[str, Any]:
    """Option -> value for the fields of some settings that differ from their defaults, as JSON has it.

    `instead` are values of fields, where they are written otherwise.
    """
    found = {}
    for setting in settings_of(settings.__class__):
        value = instead.get(setting.name, getattr(settings, setting.name))
        if value != setting.default:
            found[setting.flag] = as_json(setting.option.written(value))
    return found


def as_json(value: Any) -> Any:
    """Tuples as lists, so that JSON gives the same again."""
    return [as_json(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def described(owner: Any) -> Mapping[str, str]:
    """What the docstrings of a class, and of those it inherits from, say of each attribute."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        names: list[str] = []
        _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
        for line in section.split("\n\n")[0].splitlines():
            match = _ATTRIBUTE.match(line.strip()) if line[4:5] != " " else None
            if match:
                names = match[1].split(", ")
                found |= dict.fromkeys(names, match[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def check_kinds(settings: Any) -> None:
    """Refuse settings with a value of another type than its field has; a whole number is a number, a list a tuple.

    Raises:
        ConfigError: with the option or field, the type that was expected and the value.
    """
    kinds, options = _kinds(settings.__class__), {s.name: f"--{s.flag}" for s in settings_of(settings.__class__)}
    for name, kind in kinds.items():
        value = getattr(settings, name)
        if not _is_of(value, kind):
            check(False, options.get(name, name), _in_words(kind), reprlib.repr(value))  # noqa: FBT003


@cache
def _kinds(owner: Any) -> Mapping[str, Any]:
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return any(_is_of(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, (tuple, list)):
            return False
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return len(each) == len(value) and all(map(_is_of, value, each))
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    """A type as a message names it."""
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return either(tuple(dict.fromkeys(map(_in_words, get_args(kind)))))
    if get_origin(kind) is Literal:
        return either(tuple(map(repr, get_args(kind))))
    if get_origin(kind) is tuple:
        parts = [_in_words(part) for part in get_args(kind) if part is not Ellipsis]
        return f"a tuple ({parts[0]}, ...)" if Ellipsis in get_args(kind) else f"({', '.join(parts)})"
    return _WORDS.get(kind) or f"a member of {kind.__name__}"


def check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001
    """Refuse a setting that does not hold.

    Raises:
        ConfigError: with its name, what was expected and what it is.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value}")


def either(names: tuple[str, ...]) -> str:
    """Names that one can choose from, as a message lists them."""
    return " or ".join(names)
