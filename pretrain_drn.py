"""Pretrain the DeepRepresentationNetwork on random shapes against Mesh2SDF. The same command resumes a run.

    python pretrain_drn.py --config=configs_implicitmeshnet/drn_small.json [--section.key=value ...]

Writes into training.run_dir: config.json, best.pt (weights of the best validation, half precision), last.pt
(everything, to resume), preview.png (predicted and true distances), overview.png and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt, training_arguments

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    training_arguments(__doc__.splitlines()[0])  # answers --help and refuses misspelt options before them

import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import DrnConfig
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss, sdf_quality
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.script import run_script
from implicitmeshnet.training.curves import distance_preview
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import Epoch, History, validation_is_due
from implicitmeshnet.training.random_shapes import random_shapes
from implicitmeshnet.training.run import (
    Parts,
    begin,
    claim_run_dir,
    end_epoch,
    learning_rate,
    parse_arguments,
    publish,
    seed_epoch,
    take_step,
)

WARMUP_STEPS = 50
VALIDATION_SEED = 2**32  # beyond every training seed
SCORES = ("error_voxels", "sign", "dice")  # of a validation, see `sdf_quality`


def main() -> None:
    config, source, device = parse_arguments(__doc__.splitlines()[0], DrnConfig)
    with claim_run_dir(config, source) as run_dir:
        pretrain(config, run_dir, device)


def pretrain(config: DrnConfig, run_dir: Path, device: torch.device) -> None:
    """Epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    torch.manual_seed(settings.seed)
    drn = DeepRepresentationNetwork(config.network).to(device)
    sphere, _ = icosphere(config.network.template_subdivisions)
    fixed = torch.Generator().manual_seed(VALIDATION_SEED)
    validation = random_shapes(sphere, settings.validation_shapes, config.shapes, fixed)
    optimizer = torch.optim.AdamW(drn.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    parts: Parts = {"network": drn, "optimizer": optimizer}
    history = History(SCORES, goodness=lambda scores: -scores["error_voxels"])
    begin(run_dir, config, parts, history)
    events = EventFile(run_dir, len(history))

    def keep() -> None:
        save_snapshot(run_dir / "best.pt", drn)
        preview(drn, validation[:1].to(device), run_dir / "preview.png", events, len(history))

    publish(run_dir, history, keep)
    for number in range(len(history) + 1, settings.epochs + 1):
        start = time.perf_counter()
        losses = {"loss": train_epoch(drn, optimizer, sphere, config, number, device)}
        due = validation_is_due(number, settings)
        scores = validate(drn, validation, settings.batch_size, device) if due else {}
        end_epoch(run_dir, parts, history, Epoch(number, losses, scores, time.perf_counter() - start), events)
        publish(run_dir, history, keep)
    best = history.best
    assert best is not None, "the last epoch is always validated"
    print(
        f"{run_dir}: {len(history)} epochs, best validation at epoch {best.number}: Dice of the zero level"
        f" {best.scores['dice']:.4f}, sign {best.scores['sign']:.4f}, error near the surface"
        f" {best.scores['error_voxels']:.3f} voxels"
    )


def train_epoch(
    drn: DeepRepresentationNetwork,
    optimizer: torch.optim.Optimizer,
    sphere: torch.Tensor,
    config: DrnConfig,
    number: int,
    device: torch.device,
) -> float:
    """Steps over fresh shapes, all randomness from the seed and the epoch's number; the mean loss."""
    settings = config.training
    finished = number - 1
    generator = seed_epoch(settings.seed, number)
    steps = max(settings.shapes // settings.batch_size, 1)
    total = 0.0
    drn.train()
    progress = tqdm(range(steps), desc=f"epoch {number}/{settings.epochs}", leave=False)
    for step in progress:
        warm = min(1.0, (finished * steps + step + 1) / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = warm * learning_rate(settings, finished + step / steps)
        shapes = random_shapes(sphere, settings.batch_size, config.shapes, generator).to(device)
        loss, *_ = drn_loss(drn, shapes)
        take_step(loss, drn, optimizer, number)
        total += loss.item()
        progress.set_postfix(loss=f"{loss.item():.5f}")
    return total / steps


@torch.no_grad()
def validate(
    drn: DeepRepresentationNetwork, shapes: torch.Tensor, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean SCORES over fixed shapes (B, V, 3)."""
    drn.eval()
    rows = []
    for batch in shapes.split(batch_size):
        _, predictions, target = drn_loss(drn, batch.to(device))
        for prediction, truth in zip(predictions[-1].split(1), target.split(1), strict=True):
            rows.append(sdf_quality(prediction, truth))
    means = {}
    for name in SCORES:
        means[name] = float(np.mean([row[name] for row in rows]))
    return means


@torch.no_grad()
def preview(drn: DeepRepresentationNetwork, shape: torch.Tensor, path: Path, events: EventFile, number: int) -> None:
    """Predicted and true distances of a shape (1, V, 3), as a picture beside the snapshot and in TensorBoard."""
    _, predictions, target = drn_loss(drn.eval(), shape)
    figure = distance_preview(path, predictions[-1][0].cpu().numpy(), target[0].cpu().numpy())
    events.add_figure("preview", figure, number)


if __name__ == "__main__":
    run_script(main)
