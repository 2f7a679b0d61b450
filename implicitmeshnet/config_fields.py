"""What a field of a config may hold: how its type says so, and how it is checked and described.

The limits of a field stand in its annotation: `Annotated[float, Range(0, 1)]` is a number from 0 to 1, a
`typing.Literal` a choice, and limits of items stand in the items' type: `tuple[Annotated[int, Range(1, 9)], ...]`.
One walk over the annotation checks a value, another puts the same limits into words, for messages and the manual.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Protocol

from implicitmeshnet.script import InputError, shorten

UNIONS = (types.UnionType, typing.Union)
"""The origins of `A | B`, of plain types and of annotated ones."""


class Limit(Protocol):
    """What an annotation may name beside a type."""

    def permits(self, value: Any) -> bool:
        """Whether a value of the annotated type is within the limit."""

    def text(self) -> str:
        """The limit in words, after "wanted"."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `above` and `below` are bounds that are not included."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def permits(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def text(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{_number(self.low)} to {_number(self.high)}"
        bounds = {"of at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        texts = [f"{words} {_number(bound)}" for words, bound in bounds.items() if math.isfinite(bound)]
        return f"a number {' and '.join(texts)}"


@dataclass(frozen=True)
class Length:
    """Lists, tuples or dictionaries of `low` to `high` items, which `items` names in the plural."""

    low: int
    high: float = math.inf
    items: str = "entries"

    def permits(self, value: Sized) -> bool:
        return self.low <= len(value) <= self.high

    def text(self) -> str:
        if self.low == self.high:
            return f"{self.low} {self.items}"
        if math.isinf(self.high):
            return f"{self.low} or more {self.items}"
        return f"{self.low} to {self.high} {self.items}"


@dataclass(frozen=True)
class Rising:
    """Two numbers of which the second is not below the first, or where `strict` is set above the first."""

    strict: bool = False

    def permits(self, value: tuple[float, float]) -> bool:
        first, second = value
        return first < second or (first == second and not self.strict)

    def text(self) -> str:
        return "two rising numbers" if self.strict else "two rising or equal numbers"


@dataclass(frozen=True)
class Name:
    """Letters and digits of any script and underscores, not underscores alone: what is safe in a file's name."""

    longest: int

    def permits(self, value: str) -> bool:
        return len(value) <= self.longest and value.replace("_", "").isalnum()

    def text(self) -> str:
        return f"names of at most {self.longest} letters, digits and underscores"


def _number(value: float) -> str:
    """A bound in words: 2147483647 as 2^31 - 1, 0.001 as it is."""
    if isinstance(value, int) and value >= 2**20 and value & (value + 1) == 0:
        return f"2^{value.bit_length()} - 1"
    return f"{value:g}"


def limited_types(section: type) -> dict[str, Any]:
    """The types of a dataclass's fields with the limits that stand in their annotations."""
    return typing.get_type_hints(section, include_extras=True)


def check_limits(section: Any, prefix: str = "") -> None:
    """Raise InputError where a field of a dataclass, or of one that it holds, is outside its limits.

    `prefix` is what stands before a field's name in messages: '' for a whole config, 'data.' for its section data.
    """
    for name, kind in limited_types(type(section)).items():
        key = f"{prefix}{name}"
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            check_limits(value, f"{key}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for number, item in enumerate(value):
                check_limits(item, f"{key}[{number}].")
        elif not permits(value, kind):
            refuse(key, describe(kind), value)


def refuse(key: str, wanted: str, found: object) -> typing.NoReturn:
    """Raise the InputError of a value that its key may not have."""
    raise InputError(f"{key}: wanted {shorten(wanted)}, found {shorten(found)}")


def alternative(union: Any, value: Any) -> Any:
    """Which type of a union a value that is not None is of: a list's where it is a list or a tuple, else the other."""
    is_list = isinstance(value, list | tuple)
    for argument in typing.get_args(union):
        inner = typing.get_args(argument)[0] if typing.get_origin(argument) is typing.Annotated else argument
        if (typing.get_origin(inner) in (list, tuple)) == is_list and argument is not types.NoneType:
            return argument
    return typing.get_args(union)[0]


def permits(value: Any, kind: Any) -> bool:
    """Whether a value is within the limits of an annotated type, in all of its items; its type is taken for granted."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        inner, *limits = arguments
        return all(limit.permits(value) for limit in limits) and permits(value, inner)
    if origin is typing.Literal:
        return value in arguments
    if origin in UNIONS:
        return value is None or permits(value, alternative(kind, value))
    if origin is dict:
        names, values = arguments
        return all(permits(name, names) and permits(item, values) for name, item in value.items())
    if origin in (tuple, list):  # the items of a tuple are all of one type
        return all(permits(item, arguments[0]) for item in value)
    return True


def describe(kind: Any) -> str:
    """The limits of an annotated type in words, '' where it has none; every value that `permits` refuses breaks one."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        inner, *limits = arguments
        texts = [limit.text() for limit in limits]
        return ", ".join(filter(None, [*texts, describe(inner)]))
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in UNIONS:
        texts = [describe(argument) for argument in arguments if argument is not types.NoneType]
        return ", or ".join(filter(None, texts))
    if origin is dict:
        names, values = (describe(argument) for argument in arguments)
        return ", ".join(filter(None, [names, values and f"for each {values}"]))
    if origin in (tuple, list):
        items = describe(arguments[0])
        return items and f"each {items}"
    return ""
