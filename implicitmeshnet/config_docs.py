"""The manual of all config keys, made from the dataclasses of implicitmeshnet.config.

`python -m implicitmeshnet.config_docs > docs/configs.md` makes it anew.
"""

import ast
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from implicitmeshnet import config
from implicitmeshnet.config_fields import UNIONS, describe, limited_types, permits

INTRODUCTION = """\
# Config keys

Made by `python -m implicitmeshnet.config_docs > docs/configs.md` from `implicitmeshnet/config.py`: change it there.

A config is one JSON object with the sections below and the key `snapshot`. A key that is left out takes its default;
an unknown key is an error. On the command line `--section.key=value` overrides a key, for example
`--training.epochs=10` or `--data.shape=[64,64,64]`: the value is JSON, or text where it is none. Relative paths in a
JSON file are relative to the repository's root, those on the command line to the current folder.

"Normalised" lengths are half sides of the network's grid: along each axis -1 is the first voxel's centre and 1 the
last one's."""

KINDS = {
    config.Config: "ImplicitMeshNet: `implicitmeshnet_train.py`, `implicitmeshnet_eval.py`",
    config.DrnConfig: "DeepRepresentationNetwork: `pretrain_drn.py`",
}
PLAIN_TYPES = {
    bool: ("true or false", "true or false"),
    float: ("number", "numbers"),
    int: ("whole number", "whole numbers"),
    str: ("text", "texts"),
}
"""The singular and the plural of the types that JSON values of a config have."""


def manual() -> str:
    """All of docs/configs.md."""
    parts = [INTRODUCTION]
    for kind, title in KINDS.items():
        parts.append(f"## {title}")
        parts += _sections(kind(), "")
        parts.append("### What spans several keys")
        parts.append("\n".join(f"- {_rule(rule)}" for rule in config.RULES[kind]))
    return "\n\n".join(parts) + "\n"


def _sections(section: Any, prefix: str) -> Iterator[str]:
    """Heading, purpose and table of a dataclass, then those of the dataclasses that it holds."""
    if prefix:
        yield f"### {prefix[:-1]}"
    yield _one_line(inspect.getdoc(type(section)) or "")
    meanings = field_meanings(type(section))
    rows: list[str] = []
    inner: list[str] = []
    for name, kind in limited_types(type(section)).items():
        held = _dataclass_in(kind)
        default = getattr(section, name)
        if held is not None:
            inner += _sections(default or held(), f"{prefix}{name}.")
        if not dataclasses.is_dataclass(default):
            rows.append(_row(f"{prefix}{name}", kind, default, meanings[name]))
    yield "\n".join(["| Key | Type | Default | Permitted | Meaning |", "|---|---|---|---|---|", *rows])
    yield from inner


def _dataclass_in(kind: Any) -> type | None:
    """The dataclass that a field holds, always or where it is not None; None for other fields."""
    first = typing.get_args(kind)[0] if typing.get_origin(kind) in UNIONS else kind
    return first if isinstance(first, type) and dataclasses.is_dataclass(first) else None


def field_meanings(section: type) -> dict[str, str]:
    """What the text below each field of a dataclass says, on one line; '' for a field without any."""
    definition = ast.parse(inspect.getsource(section)).body[0]
    meanings = {}
    field = ""
    for statement in getattr(definition, "body", []):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            field = statement.target.id
            meanings[field] = ""
        elif field and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            meanings[field] = _one_line(str(statement.value.value))
    return meanings


def _row(key: str, kind: Any, default: Any, meaning: str) -> str:
    """A field's line of the table."""
    type_name = _json_type(kind)
    if key in config.PATH_KEYS:
        type_name = type_name.replace("text", "path")
    # Where the default is itself outside the limits the key may not be left out.
    default_text = f"`{json.dumps(default)}`" if permits(default, kind) else "must be given"
    cells = (f"`{key}`", type_name, default_text, describe(kind) or "any", meaning)
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _json_type(kind: Any, plural: bool = False) -> str:
    """The name of a type as JSON has it: tuple[int, ...] is a list of whole numbers."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        return _json_type(arguments[0], plural)
    if origin in UNIONS:
        names = ["null" if argument is types.NoneType else _json_type(argument, plural) for argument in arguments]
        return ", or ".join(names)
    if origin is dict:
        return f"object of {_json_type(arguments[1], plural=True)}"
    if origin in (list, tuple):
        items = _json_type(arguments[0], plural=True)
        is_fixed = origin is tuple and arguments[-1] is not Ellipsis
        count = f"{len(arguments)} " if is_fixed else ""
        return f"{'lists' if plural else 'list'} of {count}{items}"
    if dataclasses.is_dataclass(kind):
        return "objects" if plural else "object"
    singular, several = PLAIN_TYPES[str if origin is typing.Literal else kind]
    return several if plural else singular


def _rule(rule: Callable[[Any], None]) -> str:
    """What a rule's docstring says, which begins with its key."""
    key, _, text = _one_line(inspect.getdoc(rule) or "").partition(": ")
    return f"`{key}`: {text}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(manual(), end="")
