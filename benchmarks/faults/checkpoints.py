"""Snapshots and last.pt of both trainings, changed; and loading and resuming from them."""

import io
import re
import shutil
import zipfile
from collections import OrderedDict
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch

from faults.children import expect
from faults.project import DISTANCE_NETWORK, Project, run
from faults.values import NUMBERS, Input, odd_bytes, odd_number, pick
from implicitmeshnet.config import load_config
from implicitmeshnet.models.weights import load_checkpoint, load_drn, load_network
from implicitmeshnet.training.run import RUN_FILES

VALUES = (
    None,
    True,
    "x",
    b"x",
    3,
    10**400,
    (),
    [],
    {},
    {"a": 1},
    [None],
    {1: 2, None: 3},
    {1, 2},
    torch.float32,
    torch.Size([2]),
    torch.nn.Linear(1, 1),
    Fraction(1, 2),
    OrderedDict(a=torch.zeros(1)),
)
TENSORS = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.reshape(1, -1).to_sparse_csr(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor]),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "64-bit": lambda tensor: tensor.double(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float8": lambda tensor: tensor.float().to(torch.float8_e4m3fn),
    "integers": lambda tensor: tensor.long(),
    "bool": lambda tensor: tensor.bool(),
    "NaN": lambda tensor: torch.full(tensor.shape, float("nan")),
    "infinite": lambda tensor: torch.full(tensor.shape, float("inf")),
    "large": lambda tensor: torch.full(tensor.shape, 6e4),
    "negative": lambda tensor: -tensor.float() - 1,
    "one number": lambda tensor: torch.ones(()),
    "empty": lambda tensor: torch.empty(0),
    "flat": lambda tensor: tensor.reshape(-1),
    "huge": lambda tensor: torch.zeros(1).expand(2**20, 2**20),
    "one number spread": lambda tensor: torch.zeros(()).expand(tensor.shape),
    "turned around": lambda tensor: tensor.reshape(tensor.shape[::-1]).permute(*reversed(range(tensor.dim()))),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor.float()),
}


class Checkpoints:
    """Draws run folders of which one checkpoint is changed."""

    def __init__(self, project: Project):
        self.project = project.train()

    def draw(self, folder: Path, generator: np.random.Generator) -> Input:
        what, name = pick(generator, ("training", "pretraining")), pick(generator, ("best.pt", "last.pt"))
        run_dir = folder / "run"
        run_dir.mkdir()
        for file in run_files(self.project.folder / what):
            shutil.copy(self.project.folder / what / file, run_dir)
        path = run_dir / name
        kind = pick(generator, ("bytes", "record", "state", "state", "state"))
        if kind == "bytes":
            content, change = odd_bytes(path.read_bytes(), generator)
        elif kind == "record":
            content, change = odd_record(path.read_bytes(), generator)
        else:
            content, change = odd_state(load_checkpoint(path), generator)
        path.write_bytes(content)
        if name == "best.pt":
            use = partial(use_snapshot, what, path)
        else:
            use = partial(resume, self.project.command(what, run_dir), run_dir)
        return Input(
            f"{what} {name}: {change}", {"load" if name == "best.pt" else "resume": use}, re.compile(re.escape(name))
        )


def odd_record(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    """The zip file that torch writes, one of its records changed, left out or called something else."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name, kind = pick(generator, list(records)), pick(generator, ("change", "change", "drop", "rename"))
    change = f"no {name}"
    record = records.pop(name)
    if kind == "rename":
        records[f"{name}x"] = record
        change = f"{name} renamed"
    elif kind == "change":
        records[name], change = odd_bytes(record, generator)
        change = f"{name} {change}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return buffer.getvalue(), change


def odd_state(state: dict, generator: np.random.Generator) -> tuple[bytes, str]:
    """A state of which one entry, anywhere in it, is something else."""
    holder, path = state, []
    while True:
        key = pick(generator, list(holder) if isinstance(holder, dict) else range(len(holder)))
        path.append(str(key))
        inner = holder[key]
        if not (isinstance(inner, (dict, list)) and inner) or generator.random() < 0.15:
            break
        holder = inner
    name = ".".join(path)
    kind = pick(generator, ("like", "like", "like", "other", "delete", "rename", "circle"))
    if kind == "delete":
        del holder[key]
        change = f"no {name}"
    elif kind == "rename" and isinstance(holder, dict):
        holder[pick(generator, ("x", "", 3, None, ("a", 1), f"{key}." * 500))] = holder.pop(key)
        change = f"{name} renamed"
    elif kind == "circle":
        holder[key] = state
        change = f"{name} = the whole"
    elif kind == "like" and isinstance(inner, torch.Tensor):
        change = pick(generator, list(TENSORS))
        holder[key] = TENSORS[change](inner)
        change = f"{name} = {change}"
    elif kind == "like" and isinstance(inner, (int, float)):
        holder[key] = odd_number(generator, inner)
        change = f"{name} = {holder[key]}"
    else:
        holder[key] = pick(generator, (*VALUES, *NUMBERS))
        change = f"{name} = {repr(holder[key])[:40]}"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue(), change


def use_snapshot(what: str, path: Path):
    """A network that is loaded has the file's weights."""
    config = path.with_name("config.json")
    if what == "training":
        network = load_network(load_config(config), path)
    else:
        network = load_drn(config, DISTANCE_NETWORK["template_subdivisions"])
    found = load_checkpoint(path)["network"]
    for name, value in network.state_dict().items():
        expect(torch.equal(value, found[name].to(value.dtype)), f"{name} as in the file")
        expect(bool(torch.isfinite(value).all()), f"{name} finite")


def resume(command: list[str], run_dir: Path):
    """A training goes on to its end, or leaves everything as it was."""
    before = contents(run_dir)
    try:
        run(command)
    except SystemExit:
        expect(contents(run_dir) == before, "the run folder as it was")
        raise
    names = {name for name in contents(run_dir) if not name.startswith("events")}
    expect(names == set(before), f"the files of a run and no others, found {sorted(names)}")


def run_files(run_dir: Path) -> list[str]:
    """Those of a run's files that this kind of run has."""
    return [name for name in RUN_FILES if (run_dir / name).exists()]


def contents(run_dir: Path) -> dict[str, bytes]:
    """The files of a run folder by name, without the cases that are kept for a later start."""
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.name != "cache"}
