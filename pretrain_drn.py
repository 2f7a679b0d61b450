"""Pretrain the DeepRepresentationNetwork on random shapes against Mesh2SDF. The same command resumes a run.

    python pretrain_drn.py --config=configs_implicitmeshnet/drn_small.json [--section.key=value ...]

Writes into training.run_dir: config.json, best.pt (weights of the best validation, half precision), last.pt
(everything, to resume), preview.png (predicted and true distances), overview.png and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take

import time
from pathlib import Path

import torch
from tqdm import tqdm

from implicitmeshnet.config import DrnConfig
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss, sdf_quality
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.script import run_script
from implicitmeshnet.surfaces.figures import distance_preview
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.random_shapes import random_shapes
from implicitmeshnet.training.run import (
    begin,
    claim_run_dir,
    end_epoch,
    learning_rate,
    parse_arguments,
    publish,
    take_step,
)

WARMUP_STEPS = 50
VALIDATION_SEED = 2**32  # beyond every training seed
VALIDATED = {"error_voxels": 0.0, "sign": 0.0, "dice": {"zero level": 0.0}}  # what a validated epoch's record holds


def main():
    config, source, device = parse_arguments(__doc__.splitlines()[0], DrnConfig)
    with claim_run_dir(config, source) as run_dir:
        pretrain(config, run_dir, device)


def pretrain(config: DrnConfig, run_dir: Path, device):
    """Epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    torch.manual_seed(settings.seed)
    drn = DeepRepresentationNetwork(config.network).to(device)
    sphere, _ = icosphere(config.network.template_subdivisions)
    validation = random_shapes(
        sphere, settings.validation_shapes, config.shapes, torch.Generator().manual_seed(VALIDATION_SEED)
    )
    optimizer = torch.optim.AdamW(drn.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    parts = {"network": drn, "optimizer": optimizer}
    history = begin(run_dir, config, parts, VALIDATED, least_error)
    events = EventFile(run_dir, len(history))

    def keep():
        save_snapshot(run_dir / "best.pt", drn)
        preview(drn, validation[:1].to(device), run_dir / "preview.png", events, len(history))

    publish(run_dir, history, least_error, keep)
    for epoch in range(len(history), settings.epochs):
        start = time.perf_counter()
        record = {"epoch": epoch + 1, "loss": train_epoch(drn, optimizer, sphere, config, epoch, device)}
        if epoch + 1 == settings.epochs or (epoch + 1) % settings.validate_every == 0:
            record |= validate(drn, validation, settings.batch_size, device)
        end_epoch(run_dir, parts, history, record | {"seconds": time.perf_counter() - start}, events)
        publish(run_dir, history, least_error, keep)
    best = least_error(history)
    print(
        f"{run_dir}: {len(history)} epochs, best validation at epoch {best['epoch']}: Dice of the zero level"
        f" {best['dice']['zero level']:.4f}, sign {best['sign']:.4f}, error near the surface"
        f" {best['error_voxels']:.3f} voxels"
    )


def least_error(history) -> dict | None:
    """The record of the validated epoch with the least error near the surface, the first of equals; None where there
    is none."""
    return min((row for row in history if "dice" in row), key=lambda row: row["error_voxels"], default=None)


def train_epoch(drn, optimizer, sphere, config: DrnConfig, epoch: int, device) -> float:
    """Steps over fresh shapes, all randomness from the seed and the epoch; the mean loss."""
    settings = config.training
    seed = settings.seed * 100_003 + epoch
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    steps, total = max(settings.shapes // settings.batch_size, 1), 0.0
    drn.train()
    progress = tqdm(range(steps), desc=f"epoch {epoch + 1}/{settings.epochs}", leave=False)
    for step in progress:
        warm = min(1.0, (epoch * steps + step + 1) / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = warm * learning_rate(settings, epoch + step / steps)
        shapes = random_shapes(sphere, settings.batch_size, config.shapes, generator).to(device)
        loss, *_ = drn_loss(drn, shapes)
        take_step(loss, drn, optimizer, epoch)
        total += loss.item()
        progress.set_postfix(loss=f"{loss.item():.5f}")
    return total / steps


@torch.no_grad()
def validate(drn, shapes, batch_size: int, device) -> dict:
    """Mean quality over fixed shapes (B, V, 3), as VALIDATED."""
    drn.eval()
    rows = []
    for batch in shapes.split(batch_size):
        _, predictions, target = drn_loss(drn, batch.to(device))
        rows += [sdf_quality(predictions[-1][item : item + 1], target[item : item + 1]) for item in range(len(batch))]
    quality = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return quality | {"dice": {"zero level": quality["dice"]}}


@torch.no_grad()
def preview(drn, shape, path: Path, events: EventFile, epoch: int):
    """Predicted and true distances of a shape (1, V, 3), as a picture beside the snapshot and in TensorBoard."""
    _, predictions, target = drn_loss(drn.eval(), shape)
    figure = distance_preview(path, predictions[-1][0].cpu().numpy(), target[0].cpu().numpy())
    events.add_figure("preview", figure, epoch)


if __name__ == "__main__":
    run_script(main)
