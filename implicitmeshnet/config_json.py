"""JSON <-> the dataclasses of a config, and command-line overrides put into JSON."""

import dataclasses
import json
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from implicitmeshnet.config_fields import UNIONS, alternative, describe
from implicitmeshnet.script import InputError, parse_json, shorten

MOST_INTEGER = 2**63 - 1
"""The largest integer that is read from JSON; numpy and torch hold no larger ones."""
MOST_FLOAT = 1e30
"""The largest number that is read from JSON; its square still fits into float64."""


def from_json(value: Any, wanted: Any, key: str, source: str) -> Any:
    """A value from JSON as the type `wanted`, a dataclass with all that it holds or the type of a field.

    `key` names the value in messages and ends in a dot where it is not empty; `source` is the file that it comes from.
    Raises InputError for a value of another type, an unknown key and numbers too large to calculate with.
    """
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return _section_from_json(value, wanted, key, source)
    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)
    if origin in UNIONS:
        if value is None and types.NoneType in arguments:
            return None
        return from_json(value, alternative(wanted, value), key, source)
    if origin in (tuple, list) and isinstance(value, list):
        if origin is tuple and arguments[-1] is not Ellipsis and len(arguments) != len(value):
            _refuse_type(value, wanted, key, source)
        return origin(from_json(item, arguments[0], key, source) for item in value)
    if origin is dict and isinstance(value, dict):
        return {name: from_json(item, arguments[1], f"{key}{name}.", source) for name, item in value.items()}
    if origin is typing.Literal and isinstance(value, str):
        return value  # whether it is one of the choices is a limit, checked with the others
    if not _is_plain(value, wanted):
        _refuse_type(value, wanted, key, source)
    return float(value) if wanted is float else value


def _section_from_json(tree: dict[str, Any], section: type, key: str, source: str) -> Any:
    """The dataclass `section` with the fields that stand in the JSON object, the others at their defaults."""
    kinds = typing.get_type_hints(section)  # without limits
    values = {}
    for name, item in tree.items():
        if name not in kinds:
            raise InputError(f"{source}: unknown key {shorten(key + name)}, known here: {', '.join(kinds)}")
        values[name] = from_json(item, kinds[name], f"{key}{name}.", source)
    return section(**values)


def _is_plain(value: Any, wanted: Any) -> bool:
    """Whether a value from JSON is a number, a truth value or text of the type `wanted`."""
    if wanted is float:  # the comparison is false for NaN and the infinities
        return type(value) in (int, float) and abs(value) <= MOST_FLOAT
    if wanted is int:  # True is an int to Python, not to us
        return type(value) is int and abs(value) <= MOST_INTEGER
    return wanted in (bool, str) and type(value) is wanted


def _refuse_type(value: Any, wanted: Any, key: str, source: str) -> typing.NoReturn:
    """Raise the InputError of a value whose type is not the one wanted."""
    is_plain = typing.get_origin(wanted) is None
    name = wanted.__name__ if is_plain else describe(wanted) or wanted
    shown = shorten(key[:-1]) or "config"
    raise InputError(f"{source}: {shown}: wanted {name}, found {_quote(value)}")


def _quote(value: Any) -> str:
    """A value as JSON, for a message."""
    try:
        return shorten(json.dumps(value))
    except RecursionError:
        return "lists or objects nested too deep to quote"


def to_text(value: Any, indent: str = "") -> str:
    """A value as JSON, an item a line; lists of plain values, such as a shape, on one line."""
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(name)}: {to_text(item, inner)}" for name, item in value.items()]
        return "\n".join(["{", ",\n".join(lines), f"{indent}}}"])
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        lines = [f"{inner}{to_text(item, inner)}" for item in value]
        return "\n".join(["[", ",\n".join(lines), f"{indent}]"])
    return json.dumps(value)


def apply_override(tree: dict[str, Any], override: str, path_keys: Collection[str]) -> None:
    """Put the value of `--section.key=value` into the JSON object; that of a path relative to the current folder.

    The value is JSON, or text where it is none. Raises InputError where the override has another form, or its section
    is none.
    """
    key, equals, text = override.removeprefix("--").partition("=")
    if not (override.startswith("--") and equals):
        raise InputError(f"{shorten(override)}: wanted an override of the form --section.key=value")
    value = _override_value(key, text, override, path_keys)
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise InputError(f"--{shorten(key)}: {shorten(section)} is not a section of the config")
    tree[name] = value


def _override_value(key: str, text: str, override: str, path_keys: Collection[str]) -> Any:
    """The value that an override's text gives its key."""
    try:
        value = parse_json(text)
    except json.JSONDecodeError:
        value = text
    except ValueError as error:
        raise InputError(f"{shorten(override)}: wanted a value that can be used, found an error: {error}") from error
    if key not in path_keys or value is None:
        return value
    name = value if isinstance(value, str) else text  # a folder may be called 2024
    return str(Path(name).absolute())
