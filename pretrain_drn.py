"""Pretrain the DeepRepresentationNetwork on random shapes against Mesh2SDF. The same command resumes a run.

    python pretrain_drn.py --config=configs_implicitmeshnet/drn_small.json [--section.key=value ...]

Writes into training.run_dir: config.json, best.pt (weights of the best validation, half precision), last.pt
(everything, to resume), preview.png (predicted and true distances), overview.png, log.jsonl (a line an epoch),
provenance.json (code, libraries and machine of each start) and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt, training_arguments

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    training_arguments(__doc__.splitlines()[0])  # answers --help and refuses misspelt options before them

from pathlib import Path

import numpy as np
import torch

from implicitmeshnet.config import DrnConfig
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss, sdf_quality
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.script import InputError, run_script
from implicitmeshnet.training import processes
from implicitmeshnet.training.curves import distance_preview
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import History
from implicitmeshnet.training.loop import Loop, Step, Training
from implicitmeshnet.training.provenance import record_start
from implicitmeshnet.training.random_shapes import random_shapes
from implicitmeshnet.training.run import SHAPES, Moment, Parts, adamw, begin, claimed_run, learning_rate, take_step
from implicitmeshnet.training.signals import Signals

WARMUP_STEPS = 50
VALIDATION_SEED = 2**32  # beyond every training seed
SCORES = ("error_voxels", "sign", "dice")  # of a validation, see `sdf_quality`


def main() -> None:
    with claimed_run(__doc__.splitlines()[0], DrnConfig) as claimed:
        pretrain(claimed.config, claimed.run_dir, claimed.device, claimed.signals)


def pretrain(config: DrnConfig, run_dir: Path, device: torch.device, signals: Signals) -> None:
    """Epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    if settings.batch_size % processes.count():
        raise InputError(
            f"training.batch_size: wanted a multiple of {processes.count()}, the number of processes, found"
            f" {settings.batch_size}"
        )
    torch.manual_seed(settings.seed)
    drn = DeepRepresentationNetwork(config.network).to(device)
    sphere, _ = icosphere(config.network.template_subdivisions)
    fixed = torch.Generator().manual_seed(VALIDATION_SEED)
    validation = random_shapes(sphere, settings.validation_shapes, config.shapes, fixed)
    optimizer = adamw(drn, settings.learning_rate, settings.weight_decay)
    parts: Parts = {"network": drn, "optimizer": optimizer}
    history = History(SCORES, goodness=lambda scores: -scores["error_voxels"])
    steps = max(settings.shapes // settings.batch_size, 1)
    unfinished = begin(run_dir, config, parts, history, steps)
    if processes.is_first():
        record_start(run_dir, len(history), device)
    model = processes.parallel(drn, device)

    def begin_epoch(number: int) -> Step:
        """The step of an epoch, on fresh shapes, of which each process takes its share."""
        drn.train()

        def step(index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            moment = Moment(settings.seed, number, index)
            moment.seed_dropout()
            shapes = random_shapes(sphere, settings.batch_size, config.shapes, moment.generator(SHAPES))
            own = processes.share(shapes).to(device)
            loss, _ = drn_loss(drn, model(own), own)
            return {"total": loss}, take_step(loss, drn, optimizer)

        return step

    def warmed_up_rate(epoch: float) -> float:
        return min(1.0, (epoch * steps + 1) / WARMUP_STEPS) * learning_rate(settings, epoch)

    def keep(events: EventFile) -> None:
        save_snapshot(run_dir / "best.pt", drn)
        preview(drn, validation[:1].to(device), run_dir / "preview.png", events, len(history))

    def look(events: EventFile) -> str:
        preview(drn, validation[:1].to(device), run_dir / "preview.png", events, len(history))
        return f"first look: {run_dir / 'preview.png'}"

    training = Training(
        run_dir,
        settings,
        parts,
        history,
        steps,
        learning_rate=warmed_up_rate,
        epoch=begin_epoch,
        validate=lambda: validate(drn, validation, settings.batch_size, device),
        keep=keep,
        look=look,
    )
    Loop(training, signals).run(unfinished)
    best = history.best
    assert best is not None, "the last epoch is always validated"
    print(
        f"{run_dir}: {len(history)} epochs, best validation at epoch {best.number}: Dice of the zero level"
        f" {best.scores['dice']:.4f}, sign {best.scores['sign']:.4f}, error near the surface"
        f" {best.scores['error_voxels']:.3f} voxels"
    )


@torch.no_grad()
def validate(
    drn: DeepRepresentationNetwork, shapes: torch.Tensor, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean SCORES over fixed shapes (B, V, 3), of which each process measures its share."""
    drn.eval()
    own = []
    for batch in processes.share(shapes).split(batch_size):
        vertices = batch.to(device)
        predictions = drn(vertices)
        _, target = drn_loss(drn, predictions, vertices)
        for prediction, truth in zip(predictions[-1].split(1), target.split(1), strict=True):
            own.append(sdf_quality(prediction, truth))
    rows = [row for rows in processes.gathered(own) for row in rows]
    means = {}
    for name in SCORES:
        means[name] = float(np.mean([row[name] for row in rows]))
    return means


@torch.no_grad()
def preview(drn: DeepRepresentationNetwork, shape: torch.Tensor, path: Path, events: EventFile, number: int) -> None:
    """Predicted and true distances of a shape (1, V, 3), as a picture beside the snapshot and in TensorBoard."""
    predictions = drn.eval()(shape)
    _, target = drn_loss(drn, predictions, shape)
    figure = distance_preview(path, predictions[-1][0].cpu().numpy(), target[0].cpu().numpy())
    events.add_figure("preview", figure, number)


if __name__ == "__main__":
    run_script(main)
