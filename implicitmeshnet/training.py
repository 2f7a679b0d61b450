"""What the trainings share: the run folder that a run claims and resumes from, learning rates, steps and logs; and the
deep route, which trains both networks in turns."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from implicitmeshnet.checkpoint import load_checkpoint, load_drn, pick_device, save_checkpoint
from implicitmeshnet.config import Config, load_config, save_config
from implicitmeshnet.drn import DeepRepresentationNetwork, drn_loss
from implicitmeshnet.figures import training_overview
from implicitmeshnet.io import InputError, keep_freed_memory

GRADIENT_NORM = 1.0


def parse_arguments(description: str, kind):
    """What a training is called with: its config of a kind, the file that holds it, and the torch device."""
    parser = argparse.ArgumentParser(description=description, epilog="--section.key=value overrides the config")
    parser.add_argument("--config", required=True, help="JSON config, see configs_implicitmeshnet/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or mps")
    arguments, overrides = parser.parse_known_args()
    keep_freed_memory()
    config = load_config(arguments.config, overrides, kind)
    return config, Path(arguments.config), pick_device(arguments.device)


def claim_run_dir(run_dir: Path, config, source: Path):
    """Write the config into a run folder, where a new run must find none and an old one its own config, but for more
    epochs: so a run is lengthened, its learning rate from there on along the longer cosine.

    `source` is the file that the config was read from.
    """
    path, best = run_dir / "config.json", run_dir / "best.pt"
    if (run_dir / "last.pt").exists():
        found, wanted = asdict(load_config(path, kind=type(config))), asdict(config)
        del wanted["snapshot"]
        for section, values in wanted.items():
            for key, value in values.items():
                longer = key == "epochs" and value > found[section][key]
                same = json.dumps(found[section][key]) == json.dumps(value)  # in the same order too
                if not (same or longer or key == "run_dir"):  # a run folder may have moved
                    raise InputError(
                        f"training.run_dir: {run_dir} holds a run with {section}.{key} = {found[section][key]}, wanted"
                        f" {value}; choose another folder, or delete this one to start anew"
                    )
    elif best.exists() or source.resolve() == path.resolve():
        raise InputError(
            f"training.run_dir: wanted a new folder or a run to resume, found {best if best.exists() else path} without"
            " last.pt; choose another folder, or move that file away"
        )
    config.snapshot = None
    save_config(config, path)


def resume(path: Path, parts: dict, device) -> list[dict]:
    """Load the last checkpoint, where there is one, into the named parts; the history of finished epochs."""
    if not path.exists():
        return []
    state = load_checkpoint(path, device)
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = list(state["history"])
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: wanted a checkpoint of this network's training, found another") from error
    best = path.with_name("best.pt")
    if any("dice" in row for row in history) and not best.exists():
        raise InputError(f"{best}: wanted the best epoch's weights beside last.pt, found no such file; put it back")
    print(f"{path}: resuming after epoch {len(history)}")
    return history


def open_writer(run_dir: Path, epochs: int) -> SummaryWriter:
    try:
        return SummaryWriter(run_dir, purge_step=epochs)
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be written ({error.strerror})") from error


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


class DeepRoute:
    """A pretrained DeepRepresentationNetwork in turns with a mesh network: frozen for its step, then trained on the
    meshes that it just predicted."""

    def __init__(self, drn: DeepRepresentationNetwork, learning_rate: float, weight_decay: float):
        self.drn = drn
        self.optimizer = torch.optim.AdamW(drn.parameters(), learning_rate, weight_decay=weight_decay)

    def distance(self, vertices, shape):
        """vertices (B, V, 3) -> SDF (B, X, Y, Z) on a grid of `shape`; the weights stand still."""
        return self.drn.eval().requires_grad_(False).distance(vertices, shape)

    def step(self, vertices, epoch: int):
        """One step of the network towards the exact distance of vertices (B, V, 3); the loss, a scalar."""
        loss = drn_loss(self.drn.train().requires_grad_(True), vertices)[0]
        take_step(loss, self.drn, self.optimizer, epoch)
        return loss.detach()


def load_deep_route(config: Config, device) -> DeepRoute | None:
    """The pretrained distance network of `route: deep`, with an optimiser of its own; None for `route: exact`."""
    if config.loss.route == "exact":
        return None
    drn = load_drn(config.loss.drn_config, config.network.template_subdivisions, device)
    return DeepRoute(drn, config.training.drn_learning_rate, config.training.weight_decay)


def mean_dice(record) -> float:
    return sum(record["dice"].values()) / len(record["dice"])


def best_dice(history) -> float:
    """The best mean Dice of the epochs so far that were validated, or -1."""
    return max((mean_dice(row) for row in history if "dice" in row), default=-1.0)


def end_epoch(run_dir: Path, parts: dict, history: list[dict], record: dict, writer):
    """Append an epoch's record to the history, log it, and save last.pt; overview.png where it was validated."""
    history.append(record)
    log(writer, record)
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(run_dir / "last.pt", states | {"history": history})
    if "dice" in record:
        training_overview(run_dir / "overview.png", history)


def best_epoch(history) -> dict:
    """The record of the validated epoch with the best mean Dice."""
    return max((row for row in history if "dice" in row), key=mean_dice)


def log(writer, record):
    """One epoch's numbers to TensorBoard."""
    for name, value in record.items():
        if name == "dice":
            for structure, score in value.items():
                writer.add_scalar(f"dice/{structure}", score, record["epoch"])
        elif name != "epoch":
            writer.add_scalar(f"loss/{name}", value, record["epoch"])
