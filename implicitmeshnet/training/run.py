"""What the trainings share: the run folder that a run claims and resumes from, learning rates, steps and logs."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch

from implicitmeshnet.config import Config, DrnConfig, load_config, save_config
from implicitmeshnet.models.weights import load_checkpoint, pick_device, restore, save_checkpoint
from implicitmeshnet.script import InputError, keep_freed_memory, locked, remove_partials, shorten, training_arguments
from implicitmeshnet.training.cosine import cosine
from implicitmeshnet.training.curves import training_overview
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import Epoch, History, Settings

AnyConfig = TypeVar("AnyConfig", Config, DrnConfig)
Parts = dict[str, torch.nn.Module | torch.optim.AdamW]
"""What a checkpoint holds the state of, by name."""

GRADIENT_NORM = 1.0
RUN_FILES = ("config.json", "last.pt", "best.pt", "preview.png", "overview.png")
FROM_DATA = ("template_centres", "template_radii", "intensity_statistics")  # keys that a training fills in


def parse_arguments(description: str, kind: type[AnyConfig]) -> tuple[AnyConfig, Path, torch.device]:
    """What a training is called with: its config of a kind, the file that holds it, and the torch device."""
    arguments, overrides = training_arguments(description)
    keep_freed_memory()
    config = load_config(arguments.config, overrides, kind)
    return config, Path(arguments.config), pick_device(arguments.device)


@contextmanager
def claim_run_dir(config: Config | DrnConfig, source: Path) -> Iterator[Path]:
    """The config's run folder, held against other processes, once all is checked that can be without data.

    A new run must find no weights of another in the folder. A run that resumes must find the config it began with; the
    number of epochs alone may have grown, which lengthens the run, its learning rate from there on along the longer
    cosine. `source` is the file that the config was read from. A folder into which nothing was written is left as it
    was found.
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


def check_config(run_dir: Path, config: Config | DrnConfig, unknown: Collection[str] = ()) -> None:
    """Raise InputError where a run in progress has another config; the keys `unknown` may differ."""
    found, wanted = asdict(load_config(run_dir / "config.json", kind=type(config))), asdict(config)
    del wanted["snapshot"]
    for section, values in wanted.items():
        for key, value in values.items():
            longer = key == "epochs" and value > found[section][key]
            same = json.dumps(found[section][key]) == json.dumps(value)  # in the same order too
            moved = key in ("run_dir", "cache_dir")  # these folders may have moved
            if not (same or longer or moved or key in unknown):
                raise InputError(
                    f"training.run_dir: {run_dir} holds a run with {section}.{key} = {shorten(found[section][key])},"
                    f" wanted {shorten(value)}; choose another folder, or delete this one to start anew"
                )


def begin(run_dir: Path, config: Config | DrnConfig, parts: Parts, history: History) -> None:
    """Load last.pt, where there is one, into the named parts and the history, and write config.json.

    Raises InputError where the run that is there has another config or is not of such a training.
    """
    if (run_dir / "last.pt").exists():
        check_config(run_dir, config)
        resume(run_dir, config.training, parts, history)
    config.snapshot = None
    save_config(config, run_dir / "config.json")


def resume(run_dir: Path, settings: Settings, parts: Parts, history: History) -> None:
    """`begin` for a folder that has a last.pt."""
    path = run_dir / "last.pt"
    state = load_checkpoint(path)
    try:
        if not (isinstance(state, dict) and {"history", *parts} <= set(state)):
            raise ValueError(f"wanted the entries history, {', '.join(parts)}")
        history.load(state["history"], settings)
        for name, part in parts.items():
            restore(part, state[name])
    except ValueError as error:
        raise InputError(
            f"{path}: wanted a checkpoint of this network's training, found another: {shorten(error)}"
        ) from error
    weights = run_dir / "best.pt"
    elsewhere = history.best is not None and not history.ends_at_its_best  # than in last.pt
    if elsewhere and not weights.exists():
        raise InputError(f"{weights}: wanted the best epoch's weights beside last.pt, found no such file; put it back")
    print(f"{path}: resuming after epoch {len(history)}")


def learning_rate(settings: Settings, epoch: float) -> float:
    """Cosine decay from learning_rate to learning_rate_end over all epochs."""
    return cosine(settings.learning_rate, settings.learning_rate_end, epoch / settings.epochs)


def seed_epoch(seed: int, number: int) -> torch.Generator:
    """Seed all randomness of an epoch by its number, so that a run which resumes draws the same: torch's own (dropout),
    and the generator that is returned (order, augmentation, shapes)."""
    epoch_seed = seed * 100_003 + number - 1
    torch.manual_seed(epoch_seed)
    return torch.Generator().manual_seed(epoch_seed)


def take_step(loss: torch.Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One step down the loss's gradient, clipped in norm, in an epoch of that number.

    Raises InputError where the gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    if not torch.isfinite(norm):
        rate = optimizer.param_groups[0]["lr"]
        raise InputError(
            f"training diverged in epoch {number}: wanted finite gradients, found {norm.item()}; a learning rate"
            f" below {rate:g} or smaller loss weights may help"
        )
    optimizer.step()


def end_epoch(run_dir: Path, parts: Parts, history: History, epoch: Epoch, events: EventFile) -> None:
    """Append an epoch to the history, log it, and save last.pt: from that all else can be made again."""
    history.append(epoch)
    log(events, epoch)
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(run_dir / "last.pt", states | {"history": history.state()})


def publish(run_dir: Path, history: History, keep: Callable[[], None]) -> None:
    """What people want of the epoch in last.pt: where it was validated overview.png, where it is the best keep() it.

    Called after each epoch, and again by a run that resumes, as the one before may have been killed on the way here.
    """
    if history.ends_at_its_best:
        keep()
    if history.ends_validated:
        training_overview(run_dir / "overview.png", history)


def log(events: EventFile, epoch: Epoch) -> None:
    """One epoch's numbers to TensorBoard."""
    for name, value in epoch.losses.items():
        events.add_scalar(f"loss/{name}", value, epoch.number)
    for name, value in epoch.scores.items():
        events.add_scalar(f"validation/{name}", value, epoch.number)
    events.add_scalar("seconds", epoch.seconds, epoch.number)
