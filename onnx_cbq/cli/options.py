"""Options of the command line, made of the fields of settings: same names, same words, same defaults."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from onnx_cbq.calibration.files import shown
from onnx_cbq.errors import ConfigError
from onnx_cbq.settings import PANELS, Setting, check, settings_of

# In front of the parameter that says the opposite of a switch.
_OPPOSITE = "opposite_of_"
_TYPES = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Owner:
    """A class of settings and the option without which its fields mean nothing, "" for none."""

    kind: type
    option: str = ""


@dataclass(frozen=True)
class Flag:
    """An option of a command, and what it sets: a field of one class of settings, or of several.

    Attributes:
        name: without the dashes.
        settings: the fields, each with the owner that it belongs to.
    """

    name: str
    settings: tuple[tuple[Setting, Owner], ...]

    @property
    def parameter(self) -> str:
        """What Python calls it."""
        return self.name.replace("-", "_")

    @property
    def setting(self) -> Setting:
        """The field that says what it is."""
        return self.settings[0][0]

    @property
    def negates(self) -> bool:
        """Whether giving it switches something off."""
        return self.setting.default is True

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--no-{self.name}" if self.negates else f"--{self.name}"

    def annotation(self) -> Any:
        """What typer is told of it."""
        kind, panel = _typed(self.setting.kind), self.setting.option.panel
        told: dict[str, Any] = {"help": self.help, "rich_help_panel": panel, "show_default": False}
        if kind is not bool:
            told["metavar"] = self.setting.metavar or None
        return Annotated[kind | None, typer.Option(self.option, **told)]

    @property
    def help(self) -> str:
        """The words of the docstring, who owns the option in front of them, and the default behind."""
        setting = self.setting
        options = [owner.option for _, owner in self.settings]
        owners = _joined(options) if all(options) else ""
        text = f"Do not {setting.about.rstrip('.')}." if self.negates else setting.help
        text = f"For {owners}: {text[:1].lower()}{text[1:]}" if owners else text
        written = "none" if setting.default in (None, ()) else setting.option.written(setting.default)
        plain = ",".join(written) if isinstance(written, list) else str(written)
        return f"{text} (default: {setting.option.shown or ('no' if setting.default is False else plain)})"

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called in a file: a switch by itself, or by what switches it off."""
        return (self.name, f"no-{self.name}") if self.negates else (self.name,)

    def value(self, raw: Any) -> object:
        """What the fields get for what was typed.

        Raises:
            ConfigError: it means nothing.
        """
        read = self.setting.option.read
        return _frozen(raw) if read is None else read(raw)

    def stored_value(self, name: str, raw: Any) -> object:
        """What the fields get for what stands in a file under one of the names.

        Raises:
            ConfigError: it means nothing.
        """
        wanted, where = _typed(self.setting.kind), f"--config: {name}"
        if wanted is bool:
            check(isinstance(raw, bool), where, "true or false", shown(raw))
            return raw is not (name != self.name)
        if wanted is list or get_origin(wanted) is list:
            listed = [raw] if isinstance(raw, str) else raw
            check(isinstance(listed, list), where, "a list of texts", shown(raw))
            check(all(isinstance(entry, str) for entry in listed), where, "a list of texts", shown(raw))
            return self.value(listed)
        if isinstance(raw, list) and get_origin(wanted) is None and wanted is str:
            return _frozen(raw)
        numbers = wanted in (int, float) and isinstance(raw, (int, float)) and not isinstance(raw, bool)
        fits = numbers and (wanted is float or isinstance(raw, int))
        check(fits or (wanted is str and isinstance(raw, (str, int))), where, _TYPES[wanted], shown(raw))
        return self.value(wanted(raw))


def flags_of(owners: Iterable[Owner]) -> tuple[Flag, ...]:
    """The options of some classes of settings, panel after panel; fields of the same flag are set together."""
    found: dict[str, list[tuple[Setting, Owner]]] = {}
    for owner in owners:
        for setting in settings_of(owner.kind):
            known = found.setdefault(setting.flag, [])
            if all(setting.owner is not other.owner for other, _ in known):
                known.append((setting, owner))
    flags = [Flag(name, tuple(settings)) for name, settings in found.items()]
    return tuple(sorted(flags, key=lambda flag: PANELS.index(flag.setting.option.panel)))


def command(
    function: Callable[..., None], flags: Sequence[Flag], fixed: Mapping[str, Any], about: str
) -> Callable[..., None]:
    """A function for typer: parameters `fixed` (name -> annotation), then an option per flag, given by name.

    What switches something on or off has a hidden opposite, so that the command line wins over any file.
    """
    kinds = {**fixed, **{flag.parameter: flag.annotation() for flag in flags}}
    negated = {flag.parameter for flag in flags if flag.negates}
    switches = {name for name, kind in kinds.items() if bool in get_args(get_args(kind)[0])}

    def run(**given: Any) -> None:
        for name in switches:
            other = given.pop(f"{_OPPOSITE}{name}")
            if other and given[name]:
                raise typer.BadParameter(f"expected one of them, got both --{name} and --no-{name}".replace("_", "-"))
            if other or given[name]:
                given[name] = bool(given[name]) is not (name in negated)
        function(**given)

    for name in switches:
        other = f"--{name}" if name in negated else f"--no-{name}"
        hidden = typer.Option(other.replace("_", "-"), hidden=True)
        kinds[f"{_OPPOSITE}{name}"] = Annotated[bool | None, hidden]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(kind), annotation=kind)
        for name, kind in sorted(kinds.items(), key=lambda entry: _panel(entry[1]))
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = about
    return run


def with_settings(
    function: Callable[..., None], name: str, kind: type, without: Sequence[str] = ()
) -> Callable[..., None]:
    """A function for typer that has an option for each field of a class of settings in place of a parameter `name`.

    Fields of `without` are left at their defaults.
    """
    flags = [flag for flag in flags_of([Owner(kind)]) if flag.name not in without]
    hints = get_type_hints(function, include_extras=True)

    def run(**given: Any) -> None:
        typed = {flag.parameter: given.pop(flag.parameter) for flag in flags}
        function(**given, **{name: kind(**fields_for(kind, flags, given_values(flags, typed, {})))})

    own = inspect.signature(function).parameters.values()
    parameters = [
        *(one.replace(annotation=hints[one.name], kind=one.KEYWORD_ONLY) for one in own if one.name != name),
        *(
            inspect.Parameter(
                flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag.annotation()
            )
            for flag in flags
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = function.__doc__
    return run


def given_values(flags: Sequence[Flag], typed: Mapping[str, object], stored: Mapping[str, object]) -> dict[str, object]:
    """Flag -> value, for what was typed or else stands in a file."""
    by_name = {name: flag for flag in flags for name in flag.names}
    for name in stored:
        twice = sum(other in stored for other in by_name[name].names) > 1
        check(not twice, f"--config: {name}", "one value", "two")
    found = {by_name[name].name: by_name[name].stored_value(name, raw) for name, raw in stored.items()}
    raws = {flag: typed.get(flag.parameter) for flag in flags}
    return {**found, **{flag.name: flag.value(raw) for flag, raw in raws.items() if raw is not None and raw != []}}


def fields_for(kind: type, flags: Sequence[Flag], values: Mapping[str, object]) -> dict[str, Any]:
    """What the fields of a class of settings, or of one that it inherits from, were given."""
    return {
        setting.name: values[flag.name]
        for flag in flags
        if flag.name in values
        for setting, _ in flag.settings
        if issubclass(kind, setting.owner)
    }


def refuse_unused(flags: Sequence[Flag], values: Mapping[str, object], active: Callable[[Owner], bool]) -> None:
    """An option that changes nothing is a mistake of whoever gave it.

    Raises:
        ConfigError: nothing that an option belongs to was asked for.
    """
    for flag in flags:
        owners = [owner for _, owner in flag.settings]
        if flag.name in values and not any(active(owner) for owner in owners):
            wanted = _joined(owner.option for owner in owners)
            raise typer.BadParameter(f"only for {wanted}; leave out {flag.option}")


def _typed(kind: Any) -> Any:
    """The type that the command line reads: texts for what takes more than a word, lists for what repeats."""
    parts = [part for part in (get_args(kind) if _is_union(kind) else (kind,)) if part is not type(None)]
    if any(get_origin(part) is tuple for part in parts):
        return list[str] if len(parts) == 1 else str
    if len(parts) == 1 and parts[0] in (bool, int, float, str):
        return parts[0]
    numbers = [part for part in parts if part in (int, float)]
    return numbers[0] if numbers and all(part in (int, float) or get_origin(part) is Literal for part in parts) else str


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _panel(kind: Any) -> int:
    """Where a parameter stands in the help: arguments first, then panel after panel."""
    declared = next(part for part in get_args(kind)[1:] if hasattr(part, "rich_help_panel"))
    return PANELS.index(declared.rich_help_panel) if declared.rich_help_panel in PANELS else -1


def _default(kind: Any) -> Any:
    """No value for what may be left out."""
    inner = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return None if type(None) in get_args(inner) else inspect.Parameter.empty


def _joined(options: Iterable[str]) -> str:
    """Options that bring others in, those of one name together: `--codebook kmeans|ecsq or --refine`."""
    found: dict[str, list[str]] = {}
    for option in dict.fromkeys(options):
        name, _, value = option.partition(" ")
        found.setdefault(name, []).append(value)
    return " or ".join(f"{name} {'|'.join(values)}".strip() for name, values in found.items())


def _frozen(raw: object) -> object:
    """Lists of a file as tuples."""
    return tuple(_frozen(entry) for entry in raw) if isinstance(raw, list) else raw


def refuse_unknown(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse names in a file that no option has.

    Raises:
        ConfigError: with the nearest that there is.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: there is no option {shown(name)}{hint}")
