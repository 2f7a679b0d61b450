"""What the trainings share: the run folder that a run claims and resumes from, learning rates, steps and logs."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from implicitmeshnet.config import Config, DrnConfig, load_config, save_config
from implicitmeshnet.models.weights import load_checkpoint, pick_device, restore
from implicitmeshnet.script import InputError, keep_freed_memory, locked, remove_partials, shorten, training_arguments
from implicitmeshnet.training import processes
from implicitmeshnet.training.cosine import cosine
from implicitmeshnet.training.history import History, Settings, Unfinished, unfinished_from
from implicitmeshnet.training.signals import Signals

AnyConfig = TypeVar("AnyConfig", Config, DrnConfig)
Parts = dict[str, torch.nn.Module | torch.optim.AdamW]
"""What a checkpoint holds the state of, by name."""

GRADIENT_NORM = 1.0
ORDER, DROPOUT, AUGMENTATION, OVERVIEW, SHAPES = range(5)  # what random numbers are for
RUN_FILES = (
    "config.json",
    "last.pt",
    "best.pt",
    "preview.png",
    "overview.png",
    "log.jsonl",
    "provenance.json",
    "drn.json",
)
MAY_DIFFER = (  # keys that change nothing learnt
    "run_dir",
    "dir",
    "cache_dir",
    "checkpoint_minutes",
    "recompute",
    "validate_every",
)
FROM_DATA = ("template_centres", "template_radii", "intensity_statistics")  # keys that a training fills in


@dataclass(frozen=True)
class Claimed(Generic[AnyConfig]):
    """What a training has once it may begin."""

    config: AnyConfig
    run_dir: Path
    device: torch.device
    """Of this process."""
    signals: Signals


@contextmanager
def claimed_run(description: str, kind: type[AnyConfig]) -> Iterator[Claimed[AnyConfig]]:
    """What a training is called with, once it has joined the other processes of its job and holds the run folder."""
    arguments, overrides = training_arguments(description)
    keep_freed_memory()
    config = load_config(arguments.config, overrides, kind)
    device = pick_device(arguments.device)
    signals = Signals()
    with (
        signals.listening(),
        processes.joined(device) as own_device,
        claim_run_dir(config, Path(arguments.config)) as run_dir,
    ):
        set_up_torch(config.training, own_device)
        yield Claimed(config, run_dir, own_device, signals)


def set_up_torch(settings: Settings, device: torch.device) -> None:
    """Fast arithmetic on a GPU, or the same numbers in every run with training.deterministic."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS refuses
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions use by themselves


@contextmanager
def claim_run_dir(config: Config | DrnConfig, source: Path) -> Iterator[Path]:
    """The config's run folder, held against other processes, once all is checked that can be without data.

    A new run must find no weights of another in the folder. A run that resumes must find the config it began with; the
    number of epochs may have grown, which lengthens the run, its learning rate from there on along the longer cosine,
    and what changes nothing learnt may differ (MAY_DIFFER). `source` is the file that the config was read from. A
    folder into which nothing was written is left as it was found.
    """
    run_dir = Path(config.training.run_dir)
    if not processes.is_first():
        processes.wait()
        yield run_dir
        return
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
        processes.wait()
        yield run_dir


def check_config(run_dir: Path, config: Config | DrnConfig, unknown: Collection[str] = ()) -> None:
    """Raise InputError where a run in progress has another config; the keys `unknown` may differ."""
    found, wanted = asdict(load_config(run_dir / "config.json", kind=type(config))), asdict(config)
    del wanted["snapshot"]
    for section, values in wanted.items():
        for key, value in values.items():
            longer = key == "epochs" and value > found[section][key]
            same = json.dumps(found[section][key]) == json.dumps(value)  # in the same order too
            if same or longer or key in MAY_DIFFER or key in unknown:
                continue
            changed = " (it follows from the training cases, which have changed since)" if key in FROM_DATA else ""
            raise InputError(
                f"training.run_dir: {run_dir} holds a run with {section}.{key} = {shorten(found[section][key])},"
                f" wanted {shorten(value)}{changed}; choose another folder, or delete this one to start anew"
            )


def begin(run_dir: Path, config: Config | DrnConfig, parts: Parts, history: History, steps: int) -> Unfinished | None:
    """Load last.pt, where there is one, into the named parts and the history, and write config.json.

    The result is the epoch of so many `steps` in which the run was left. Raises InputError where the run that is there
    has another config or is not of such a training.
    """
    unfinished = None
    if (run_dir / "last.pt").exists():
        check_config(run_dir, config)
        unfinished = resume(run_dir, config.training, parts, history, steps)
    processes.wait()  # until all have read it
    config.snapshot = None
    if processes.is_first():
        save_config(config, run_dir / "config.json")
    return unfinished


def resume(run_dir: Path, settings: Settings, parts: Parts, history: History, steps: int) -> Unfinished | None:
    """`begin` for a folder that has a last.pt."""
    path = run_dir / "last.pt"
    state = load_checkpoint(path)
    try:
        if not (isinstance(state, dict) and {"history", *parts} <= set(state)):
            raise ValueError(f"wanted the entries history, {', '.join(parts)}")
        unfinished = unfinished_from(state.get("unfinished"), steps)
        history.load(state["history"], settings, unfinished)
        for name, part in parts.items():
            restore(part, state[name])
    except ValueError as error:
        raise InputError(
            f"{path}: wanted a checkpoint of this network's training, found another: {shorten(error)}"
        ) from error
    weights = run_dir / "best.pt"
    elsewhere = history.best is not None and bool(unfinished or not history.ends_at_its_best)  # than in last.pt
    if elsewhere and not weights.exists():
        raise InputError(f"{weights}: wanted the best epoch's weights beside last.pt, found no such file; put it back")
    where = f"step {unfinished.steps} of epoch {unfinished.number}" if unfinished else f"epoch {len(history)}"
    print(f"{path}: resuming after {where}")
    return unfinished


def learning_rate(settings: Settings, epoch: float) -> float:
    """Cosine decay from learning_rate to learning_rate_end over all epochs."""
    return cosine(settings.learning_rate, settings.learning_rate_end, epoch / settings.epochs)


def generator_of(*numbers: int) -> torch.Generator:
    """Random numbers of their own for what these numbers stand for, such as a seed, an epoch and a step."""
    low, high = np.random.SeedSequence(numbers).generate_state(2).tolist()
    return torch.Generator().manual_seed(high << 32 | low)


@dataclass(frozen=True)
class Moment:
    """A step of a training, which seeds all that is random in it: so a run that resumes anywhere draws the same."""

    seed: int
    epoch: int
    """From 1 on."""
    step: int
    """Of the epoch, from 0 on."""

    def generator(self, *what: int) -> torch.Generator:
        """The random numbers for one thing in this step."""
        return generator_of(self.seed, self.epoch, self.step, *what)

    def seed_dropout(self) -> None:
        """Seed torch's own random numbers, in each process others."""
        own = self.generator(DROPOUT, processes.rank())
        torch.manual_seed(own.initial_seed())


def adamw(network: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimiser of every training. It is fused, as only that one can leave a step out without waiting to know."""
    return torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)


def clipped_step(network: torch.nn.Module, optimizer: torch.optim.AdamW) -> torch.Tensor:
    """One step along the network's gradients, clipped in norm; 1 where they are not finite and it was left out, or 0.

    The result is a scalar on the device, for which nothing here waits.
    """
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    skipped = (~torch.isfinite(norm)).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as torch's gradient scaler tells it
    optimizer.step()
    return skipped


def take_step(loss: torch.Tensor, network: torch.nn.Module, optimizer: torch.optim.AdamW) -> torch.Tensor:
    """One step down a loss's gradient, as `clipped_step`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return clipped_step(network, optimizer)
