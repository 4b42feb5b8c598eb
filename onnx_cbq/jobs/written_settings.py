"""Settings as options and their values: what `--json` writes and `--config` takes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from onnx_cbq import methods
from onnx_cbq.errors import ConfigError
from onnx_cbq.evidence.settings import ScoringConfig
from onnx_cbq.jobs.choice import UNIFORM
from onnx_cbq.jobs.settings import QuantizeConfig
from onnx_cbq.learned.settings import LearnedConfig
from onnx_cbq.methods import Entropy, SharedValues
from onnx_cbq.quantize.settings import RoundingConfig
from onnx_cbq.search.cbq import CbqConfig
from onnx_cbq.search.rate_distortion import RateDistortionConfig
from onnx_cbq.search.widths import DifferentiableConfig
from onnx_cbq.settings import as_json, changed_options, check, either, settings_of
from onnx_cbq.training.settings import RefineConfig

# Settings that are no options stand in tables.
TABLES: Mapping[str, type] = {
    "scoring": ScoringConfig,
    "compensation": RoundingConfig,
    "search": RateDistortionConfig,
    "cbq": CbqConfig,
    "differentiable": DifferentiableConfig,
    "learned": LearnedConfig,
    "refinement": RefineConfig,
}


def as_options(config: QuantizeConfig) -> dict[str, Any]:
    """Option -> value, for all that differ from their defaults; a table for settings that are no options."""
    choice = config.choice
    method, storage = choice.method, choice.scene.storage
    # An archive has a method of its own in place of the default, which is not asked for by name.
    instead = isinstance(method, (Entropy, SharedValues))
    named = methods.METHODS[0].name if instead else method.name
    codebook = method.name if method.shares_values else UNIFORM
    bits = QuantizeConfig.bits if choice.goal.finds_bits else choice.goal.bits
    found = changed_options(
        config, bits=bits, target=choice.target.name, storage=storage.name, method=named, codebook=codebook
    )
    learning = [config.learned] if choice.scene.rounding.learns else []
    for part in (method, storage, choice.goal, *learning, *([config.refine] if config.refine else [])):
        found |= changed_options(part)
    found |= {"refine": True} if config.refine else {}
    found |= {"curve": True} if config.curve else {}
    parts = {
        "scoring": config.scoring,
        "compensation": config.compensation,
        **{name: method for name in ("search", "cbq", "differentiable") if isinstance(method, TABLES[name])},
        **({"learned": config.learned} if learning else {}),
        **({"refinement": config.refine} if config.refine else {}),
    }
    if isinstance(method, (Entropy, SharedValues)):
        parts["search"] = RateDistortionConfig(held_back=method.held_back)
    tables = {name: _beyond_options(TABLES[name], part) for name, part in parts.items()}
    return found | {name: table for name, table in tables.items() if table}


def as_table(name: str, raw: object, where: str) -> dict[str, Any]:
    """What a table of a file says of the settings that `TABLES` calls `name`.

    Raises:
        ConfigError: it is no table, or names a setting that there is not.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: {name}: expected a table of settings, got {raw!r:.80}")
    known = {field.name: field for field in fields(TABLES[name])}
    for key, value in raw.items():
        check(key in known, f"{where}: {name}", f"settings {either(tuple(known))}", repr(key)[:80])
        default = known[key].default
        if isinstance(default, (bool, int, float, str)):
            numbers = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
            expected = type(default).__name__
            check(numbers or type(value) is type(default), f"{where}: {name}.{key}", expected, repr(value)[:80])
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def _beyond_options(kind: type, part: object) -> dict[str, Any]:
    """The settings of `kind` that are no options, where they differ from their defaults."""
    options = {setting.name for setting in settings_of(kind)}
    found = {field.name: getattr(part, field.name) for field in fields(kind) if field.name not in options}
    defaults = {field.name: field.default for field in fields(kind)}
    return {name: as_json(value) for name, value in found.items() if value != defaults[name]}
