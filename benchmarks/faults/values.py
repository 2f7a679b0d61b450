"""Odd numbers, bytes and JSON: what the drawings of `robustness.py` share."""

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    1000,
    32767,
    -32768,
    65535,
    2**31 - 1,
    -(2**31),
    2**31,
    2**53 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
    -0.0,
    0.5,
    1e-45,
    1e-38,
    1e-7,
    1e6,
    1e30,
    3.4e38,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
JSON = (
    None,
    True,
    False,
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "..",
    "[a] {b}",
    "\u202e\u00e9\u2028",
    "x" * 200_000,
    "/" * 5000,
    "NaN",
    "null",
    [],
    {},
    [[]],
    {"": 0},
    {"a": {"b": []}},
    [1, 2, 3],
    ["e0"],
    [None],
    [1] * 1000,
    10**30,
    10**400,
)
TOKENS = (
    b"",
    b",",
    b"}",
    b"]",
    b'"',
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"// no comment\n",
    b"'",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"0x10",
    b"\x00",
    b"\\ud800",
    b"\xff\xfe",
    b"9" * 5000,
    b"\xe2\x80\xa8",
    b"{}",
    b"\xef\xbb\xbf",
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")


class Input(NamedTuple):
    """One input, changed from a sound one."""

    change: str  # in words
    uses: dict[str, Callable[[], None]]  # each in a process of its own
    names: re.Pattern  # a refusal must hold one of these


def pick(generator: np.random.Generator, values: Sequence):
    """One of them; numpy's own choice would turn them into an array."""
    return values[int(generator.integers(len(values)))]


def odd_number(generator: np.random.Generator, old: float) -> float:
    """A number that is none, that has no place here, or that lies close by."""
    kind = generator.integers(4)
    if kind < 2:
        return pick(generator, NUMBERS)
    if kind == 2:
        return pick(generator, (-old, old + 1, old - 1, old * (1 + 1e-6), old * 1e3, old / 1e3))
    return float(generator.normal() * 10.0 ** generator.integers(-6, 7))


def odd_bytes(content: bytes, generator: np.random.Generator, reach: int | None = None) -> tuple[bytes, str]:
    """Bytes cut, flipped, replaced, put in or put behind, within the first `reach`; and what was done."""
    reach = min(len(content), reach or len(content))
    start = int(generator.integers(reach + 1))
    length = int(generator.integers(1, 65))
    kind = pick(generator, ("cut", "flip", "noise", "zeros", "insert", "remove", "append"))
    noise = generator.bytes(length)
    if kind == "cut":
        return content[:start], f"cut to {start} bytes"
    if kind == "flip":
        return flip_bits(content, generator, reach), "flipped bits"
    if kind == "append":
        return content + noise, f"{length} bytes behind"
    if kind == "insert":
        return content[:start] + noise + content[start:], f"{length} bytes put in at {start}"
    if kind == "remove":
        return content[:start] + content[start + length :], f"{length} bytes taken out at {start}"
    changed = content[:start] + (noise if kind == "noise" else bytes(length)) + content[start + length :]
    return changed[: len(content)], f"{length} bytes of {kind} at {start}"


def flip_bits(content: bytes, generator: np.random.Generator, reach: int) -> bytes:
    """One to eight bits of the first `reach` bytes turned over."""
    changed = bytearray(content)
    for place in generator.integers(8 * reach, size=generator.integers(1, 9)) if reach else ():
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def odd_json(tree: dict, generator: np.random.Generator) -> tuple[bytes, str]:
    """A tree as JSON with one to three odd values, in odd words or bytes; and what was done."""
    tree, changes = json.loads(json.dumps(tree)), []
    for _ in range(pick(generator, (0, 1, 1, 1, 1, 2))):
        changes.append(_change_tree(tree, generator))
    text = json.dumps(tree, indent=pick(generator, (None, 2)), ensure_ascii=pick(generator, (False, True)))
    content = text.encode("utf-8", "surrogatepass")
    kinds = ("bytes", "token", "twice", "encoding")
    kind = pick(generator, kinds + ("nothing",) * 12 if changes else kinds)
    if kind == "bytes":
        content, change = odd_bytes(content, generator)
        changes.append(change)
    elif kind == "token":
        place, token = int(generator.integers(len(content) + 1)), pick(generator, TOKENS)
        end = place + pick(generator, (0, 0, 1, 5))
        content = content[:place] + token + content[end:]
        changes.append(f"{token[:12]!r} at {place}")
    elif kind == "twice":
        key = pick(generator, re.findall(rb'"[^"]+":', content) or [b'"a":'])
        content = content.replace(b"{", b"{" + key + pick(generator, (b"1,", b"{},", b"null,")), 1)
        changes.append(f"{key.decode('utf-8', 'replace')[:40]} twice")
    elif kind == "encoding":
        encoding = pick(generator, ENCODINGS)
        content = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
        changes.append(encoding)
    return content, ", ".join(changes)


def _change_tree(tree: dict, generator: np.random.Generator) -> str:
    """Change one item of a tree in place."""
    holder, path = tree, []
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return "nothing"
        key = pick(generator, keys)
        path.append(str(key)[:20])
        inner = holder[key]
        if not (isinstance(inner, (dict, list)) and inner) or generator.random() < 0.2:
            break
        holder = inner
    name = ".".join(path)
    kind = pick(generator, ("like", "like", "like", "other", "delete", "delete", "wrap", "rename", "repeat"))
    if kind == "delete":
        del holder[key]
        return f"no {name}"
    if kind == "wrap":
        holder[key] = pick(generator, ([inner], {"a": inner}))
    elif kind == "rename" and isinstance(holder, dict):
        holder[pick(generator, ("", "x", key.upper(), f"{key} ", "\ud800", "x" * 2000, "\0"))] = holder.pop(key)
        return f"{name} renamed"
    elif kind == "like" and isinstance(inner, list):
        holder[key] = _scaled(inner, pick(generator, (-1, 0, 1e-20, 1e20)))
    elif kind == "repeat" and isinstance(inner, (list, str)):
        holder[key] = inner * pick(generator, (2, 100))
    elif kind == "like" and type(inner) in (int, float):
        holder[key] = odd_number(generator, inner)
        if isinstance(inner, int) and abs(holder[key]) < 1e300:
            holder[key] = int(holder[key])
    elif kind == "like" and isinstance(inner, str):
        holder[key] = pick(generator, [value for value in JSON if isinstance(value, str)])
    else:
        holder[key] = pick(generator, (*JSON, *NUMBERS))
    return f"{name} = {repr(holder[key])[:40]}"


def _scaled(value, factor: float):
    """All numbers in a tree of lists times a factor."""
    if isinstance(value, list):
        return [_scaled(inner, factor) for inner in value]
    return value * factor if type(value) in (int, float) else value
