"""Configs: the shipped ones, changed, and overrides; and what is done with them."""

import dataclasses
import json
import re
import typing
from functools import partial
from pathlib import Path

import numpy as np

from faults.children import Wrong, expect
from faults.project import SIDE, Project
from faults.values import JSON, Input, odd_json, odd_number, pick
from implicitmeshnet.config import REPOSITORY, Config, DrnConfig, load_config, save_config
from implicitmeshnet.data.plausibility import intensity_warnings
from implicitmeshnet.script import InputError

WORDS = (
    "",
    "=",
    "null",
    "true",
    "[",
    "[]",
    "{}",
    "NaN",
    "1e999",
    "\u00e9",
    "\udce9",
    "[a] {b}",
    "2024",
    "1",
    "-1",
    "x" * 5000,
    "[" * 100_000,
    '"',
    "\n",
    "8,8,8",
    "[8, 8, 8]",
)


def keys(kind) -> list[str]:
    """Every section.key of a config, and the keys outside sections."""
    found = []
    for name, wanted in typing.get_type_hints(kind).items():
        inner = dataclasses.fields(wanted) if dataclasses.is_dataclass(wanted) else ()
        found += [f"{name}.{field.name}" for field in inner] or [name]
    return found


class Configs:
    """Draws a config of either kind, with overrides."""

    def __init__(self, project: Project):
        paths = [*sorted((REPOSITORY / "configs_implicitmeshnet").glob("*.json")), project.folder / "config.json"]
        self.trees = [json.loads(path.read_text()) for path in paths]

    def draw(self, folder: Path, generator: np.random.Generator) -> Input:
        tree = pick(generator, self.trees)
        kind = Config if "data" in tree else DrnConfig
        path = folder / "config.json"
        content, change = odd_json(tree, generator)
        path.write_bytes(content)
        overrides = [odd_override(kind, generator) for _ in range(pick(generator, (0, 0, 1)))]
        arguments = [f"{key}: wanted" for key in keys(kind)] + [override[:9] for override in overrides]
        names = re.compile("|".join(map(re.escape, [path.name, *arguments])))
        shown = [override[:40] for override in overrides]
        uses = {"config": partial(use_config, path, overrides, kind)}
        return Input(f"{kind.__name__}; {change}; {shown}", uses, names)


def odd_override(kind, generator: np.random.Generator) -> str:
    """An option that is none, or sets a known key to something odd."""
    key = pick(generator, keys(kind))
    if generator.random() < 0.2:
        section = key.partition(".")[0]
        key = pick(generator, ("", ".", "a.b", f"{key}.x", section, f".{key}", f"{key}\u00e9", "a" * 5000))
    word, tree, number = pick(generator, WORDS), pick(generator, JSON), odd_number(generator, 1.0)
    value = pick(generator, (word, json.dumps(tree), str(number)))
    return pick(generator, (f"--{key}={value}",) * 8 + (f"--{key}", f"{key}={value}", f"-{key}={value}"))


def use_config(path: Path, overrides: list[str], kind):
    """What is accepted comes back the same after it was saved, and an image can be held against it."""
    config = load_config(path, overrides, kind)
    first, second = path.with_name("first.json"), path.with_name("second.json")
    try:
        save_config(config, first)
        again = load_config(first, kind=kind)
        save_config(again, second)
    except InputError as error:
        raise Wrong(f"wanted an accepted config to be saved and read, found {error}") from error
    expect(dataclasses.asdict(again) == dataclasses.asdict(config), "the same config after it was saved")
    expect(first.read_bytes() == second.read_bytes(), "the same file when it is saved again")
    if kind is Config:
        intensity_warnings(np.zeros((config.data.channels, SIDE)), config.data)
