"""What the trainings share: the run folder that a run claims and resumes from, learning rates, steps and logs."""

import argparse
import json
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from implicitmeshnet.config import load_config, save_config
from implicitmeshnet.models.weights import load_checkpoint, pick_device, restore, save_checkpoint
from implicitmeshnet.script import InputError, keep_freed_memory, locked, remove_partials, shorten
from implicitmeshnet.surfaces.figures import training_overview
from implicitmeshnet.training.events import EventFile

GRADIENT_NORM = 1.0
RUN_FILES = ("config.json", "last.pt", "best.pt", "preview.png", "overview.png")
FROM_DATA = ("template_centres", "template_radii", "intensity_statistics")  # keys that a training fills in


def parse_arguments(description: str, kind):
    """What a training is called with: its config of a kind, the file that holds it, and the torch device."""
    parser = argparse.ArgumentParser(description=description, epilog="--section.key=value overrides the config")
    parser.add_argument("--config", required=True, help="JSON config, see configs_implicitmeshnet/")
    parser.add_argument("--device", default="auto", help="auto (the fastest there is), cpu, cuda or mps")
    arguments, overrides = parser.parse_known_args()
    keep_freed_memory()
    config = load_config(arguments.config, overrides, kind)
    return config, Path(arguments.config), pick_device(arguments.device)


@contextmanager
def claim_run_dir(config, source: Path) -> Iterator[Path]:
    """The config's run folder, held against other processes, once all is checked that can be without data.

    A new run must find no other's weights in it, an old one its own config, but for more epochs: so a run is
    lengthened, its learning rate from there on along the longer cosine. `source` is the file that the config was read
    from. A folder into which nothing was written is left as it was found.
    """
    run_dir = Path(config.training.run_dir)
    with locked(run_dir, "training.run_dir"):
        path, best = run_dir / "config.json", run_dir / "best.pt"
        if (run_dir / "last.pt").exists():
            check_config(run_dir, config, FROM_DATA)
        elif best.exists() or source.resolve() == path.resolve():
            raise InputError(
                f"training.run_dir: wanted a new folder or a run to resume, found {best if best.exists() else path}"
                " without last.pt; choose another folder, or move that file away"
            )
        remove_partials(run_dir, RUN_FILES)
        yield run_dir


def check_config(run_dir: Path, config, unknown: Collection[str] = ()):
    """Raise InputError where a run in progress has another config; the keys `unknown` may differ."""
    found, wanted = asdict(load_config(run_dir / "config.json", kind=type(config))), asdict(config)
    del wanted["snapshot"]
    for section, values in wanted.items():
        for key, value in values.items():
            longer = key == "epochs" and value > found[section][key]
            same = json.dumps(found[section][key]) == json.dumps(value)  # in the same order too
            moved = key == "run_dir"  # a run folder may have moved
            if not (same or longer or moved or key in unknown):
                raise InputError(
                    f"training.run_dir: {run_dir} holds a run with {section}.{key} = {shorten(found[section][key])},"
                    f" wanted {shorten(value)}; choose another folder, or delete this one to start anew"
                )


def begin(run_dir: Path, config, parts: dict, validated: dict, best: Callable) -> list[dict]:
    """Load last.pt, where there is one, into the named parts, and write config.json; the history of finished epochs.

    `validated` shows what a validated epoch's record holds, with any numbers, and `best` finds the best such record of
    a history. Raises InputError where the run that is there has another config or is not of such a training.
    """
    history = []
    if (run_dir / "last.pt").exists():
        check_config(run_dir, config)
        history = resume(run_dir, config.training, parts, validated, best)
    config.snapshot = None
    save_config(config, run_dir / "config.json")
    return history


def resume(run_dir: Path, settings, parts: dict, validated: dict, best: Callable) -> list[dict]:
    """`begin` for a folder that has a last.pt."""
    path = run_dir / "last.pt"
    state = load_checkpoint(path)
    try:
        if not (isinstance(state, dict) and {"history", *parts} <= set(state)):
            raise ValueError(f"wanted the entries history, {', '.join(parts)}")
        history = state["history"]
        check_history(history, settings, validated)
        for name, part in parts.items():
            restore(part, state[name])
    except ValueError as error:
        raise InputError(
            f"{path}: wanted a checkpoint of this network's training, found another: {shorten(error)}"
        ) from error
    weights, record = run_dir / "best.pt", best(history)
    elsewhere = record is not None and record is not history[-1]  # than in last.pt
    if elsewhere and not weights.exists():
        raise InputError(f"{weights}: wanted the best epoch's weights beside last.pt, found no such file; put it back")
    print(f"{path}: resuming after epoch {len(history)}")
    return history


def check_history(history, settings, validated: dict):
    """Raise ValueError unless these are the records of finished epochs: numbers by name, and of a validated epoch all
    that `validated` holds."""
    if not (isinstance(history, list) and history):
        raise ValueError("wanted a history of epochs")
    for epoch, record in enumerate(history, 1):
        numeric = isinstance(record, dict) and all(
            _is_like(value, validated.get(name, 0.0)) for name, value in record.items()
        )
        if not (numeric and record.get("epoch") == epoch):
            raise ValueError(f"wanted numbers of epoch {epoch} in its history, found others")
        due = epoch == settings.epochs or epoch % settings.validate_every == 0 or "dice" in record
        if due and not set(validated) <= set(record):
            raise ValueError(f"wanted {', '.join(validated)} of epoch {epoch} in its history, found them missing")


def _is_like(found, wanted) -> bool:
    """Whether both are numbers, or numbers by the same names."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and set(found) == set(wanted) and all(map(_is_number, found.values()))
    return _is_number(found)


def _is_number(value) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def learning_rate(settings, epoch: float) -> float:
    """Cosine decay from learning_rate to learning_rate_end over all epochs."""
    span = settings.learning_rate - settings.learning_rate_end
    return settings.learning_rate_end + span * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2


def take_step(loss, network, optimizer, epoch: int):
    """One step down the loss's gradient, clipped in norm; InputError where that is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    if not torch.isfinite(norm):
        rate = optimizer.param_groups[0]["lr"]
        raise InputError(
            f"training diverged in epoch {epoch + 1}: wanted finite gradients, found {norm.item()}; a learning rate"
            f" below {rate:g} or smaller loss weights may help"
        )
    optimizer.step()


def mean_dice(record) -> float:
    return sum(record["dice"].values()) / len(record["dice"])


def best_epoch(history) -> dict | None:
    """The record of the validated epoch with the best mean Dice, the first of equals; None where there is none."""
    return max((row for row in history if "dice" in row), key=mean_dice, default=None)


def end_epoch(run_dir: Path, parts: dict, history: list[dict], record: dict, events: EventFile):
    """Append an epoch's record to the history, log it, and save last.pt: from that all else can be made again."""
    history.append(record)
    log(events, record)
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(run_dir / "last.pt", states | {"history": history})


def publish(run_dir: Path, history: list[dict], best: Callable, keep: Callable):
    """What people want of the epoch in last.pt: where it was validated overview.png, where it is the best keep() it.

    Called after each epoch, and again by a run that resumes, as the one before may have been killed on the way here.
    """
    if history and "dice" in history[-1]:
        if best(history) is history[-1]:
            keep()
        training_overview(run_dir / "overview.png", history)


def log(events: EventFile, record):
    """One epoch's numbers to TensorBoard."""
    for name, value in record.items():
        if name == "dice":
            for structure, score in value.items():
                events.add_scalar(f"dice/{structure}", score, record["epoch"])
        elif name != "epoch":
            events.add_scalar(f"loss/{name}", value, record["epoch"])
