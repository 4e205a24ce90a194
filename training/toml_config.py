"""Building a tree of frozen dataclasses from TOML; unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from training.errors import ConfigError

Config = TypeVar("Config")


def load_toml(kind: type[Config], path: Path, overrides: Iterable[str] = ()) -> Config:
    """Return the configuration of a file.

    Args:
        kind: A frozen dataclass whose fields are values, dataclasses, or tuples or mappings of either.
        path: TOML file.
        overrides: `dotted.key=value`, later ones win; values are TOML, plain words are strings.

    Raises:
        ConfigError: The file is missing or not TOML, or a key is unknown, of the wrong type or out of bounds.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    apply_overrides(table, overrides)
    return from_table(kind, table, str(path))


def from_table(kind: type[Config], table: dict[str, Any], where: str) -> Config:
    """Return a dataclass built from a parsed TOML table.

    Args:
        kind: See `load_toml`.
        table: Its values.
        where: What messages name the table by.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of bounds.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; valid keys: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")
        values[key] = _value(hints[key], value, f"{where}: {key}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def apply_overrides(table: dict[str, Any], overrides: Iterable[str]) -> None:
    """Put `dotted.key=value` overrides into a parsed TOML table, later ones win; raises ConfigError."""
    for override in overrides:
        _override(table, override)


def fingerprint(config: Any) -> str:
    """Return 16 hex digits of a hash over every field of a dataclass."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value == "none" and len(options) < len(typing.get_args(hint)):
            return None
        return _value(options[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a table, got {value!r}")
        return from_table(hint, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"{where} must be one of {choices}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is a list, got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], item, where) for item in value)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a table, got {value!r}")
        inner = typing.get_args(hint)[1]
        return {key: _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    is_bool_elsewhere = isinstance(value, bool) and hint is not bool
    if origin is None and isinstance(hint, type) and (not isinstance(value, hint) or is_bool_elsewhere):
        raise ConfigError(f"{where}={value!r} is not of type {hint.__name__}")
    return value


def _override(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"an override is key=value, got {override!r}; for example optim.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, name = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {parent} is no table")
    table[name] = value
