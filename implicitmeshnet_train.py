"""Train ImplicitMeshNet from images and voxel labels. The same command resumes an interrupted run.

    python implicitmeshnet_train.py --config=configs_implicitmeshnet/whole_heart.json [--section.key=value ...]

Writes into training.run_dir: config.json (what evaluation needs, template included), best.pt (weights of the best
validation, half precision), last.pt (everything, to resume), preview.png, overview.png and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from implicitmeshnet.config import Config
from implicitmeshnet.data.augment import augment
from implicitmeshnet.data.dataset import (
    Case,
    TrainingSet,
    check_cases,
    find_cases,
    read_case,
    split_cases,
    template_statistics,
)
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.predict import NothingFound, Predictor, preview
from implicitmeshnet.script import run_script
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.metrics import dice
from implicitmeshnet.training.deep_route import load_deep_route
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.losses import MeshLoss
from implicitmeshnet.training.run import (
    begin,
    best_epoch,
    claim_run_dir,
    end_epoch,
    learning_rate,
    parse_arguments,
    publish,
    take_step,
)


def main():
    config, source, device = parse_arguments(__doc__.splitlines()[0], Config)
    with claim_run_dir(config, source) as run_dir:
        train(config, run_dir, device)


def train(config: Config, run_dir: Path, device):
    """Read the cases, then epoch after epoch from where last.pt ends, or from the start."""
    deep = load_deep_route(config, device)
    training, validation = split_cases(
        find_cases(config.data.dir, labelled=True), config.data.validation_cases, config.training.seed
    )
    margin = max(config.data.shape) // 8 if config.training.augmentation else 0
    check_cases(validation, config.data)
    training = TrainingSet(training, config.data, margin)
    config.data.intensity_statistics = training.intensity_statistics
    if config.network.template == "mean":
        centres, radii = template_statistics(training, config.data)
        config.network.template_centres = tuple(map(tuple, centres.tolist()))
        config.network.template_radii = tuple(map(tuple, radii.tolist()))

    torch.manual_seed(config.training.seed)
    network = build_network(config).to(device)
    vertex_count = network.decoder.template.shape[1]
    criterion = MeshLoss(
        network.decoder.faces, vertex_count, config.loss, Structures.of(config.data), deep.distance if deep else None
    ).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.training.learning_rate, weight_decay=config.training.weight_decay
    )
    predictor = Predictor(network, config)
    parts = {"network": network, "optimizer": optimizer}
    if deep:
        parts |= {"drn": deep.drn, "drn_optimizer": deep.optimizer}
    validated = {"dice": dict.fromkeys(config.data.structures, 0.0)}
    history = begin(run_dir, config, parts, validated, best_epoch)
    events = EventFile(run_dir, len(history))

    def keep():
        save_snapshot(run_dir / "best.pt", network)
        draw_preview(predictor, validation[0], run_dir / "preview.png", events, len(history))

    publish(run_dir, history, best_epoch, keep)
    for epoch in range(len(history), config.training.epochs):
        start = time.perf_counter()
        losses = train_epoch(network, criterion, optimizer, training, config, epoch, device, deep)
        record = {"epoch": epoch + 1, **losses}
        if epoch + 1 == config.training.epochs or (epoch + 1) % config.training.validate_every == 0:
            record["dice"] = validate(predictor, validation)
        end_epoch(run_dir, parts, history, record | {"seconds": time.perf_counter() - start}, events)
        publish(run_dir, history, best_epoch, keep)
    best = best_epoch(history)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in best["dice"].items())
    print(f"{run_dir}: {len(history)} epochs, best validation Dice at epoch {best['epoch']}: {scores}")


def train_epoch(network, criterion, optimizer, samples, config: Config, epoch: int, device, deep=None):
    """`repeats` passes over the samples in random order, all randomness from the seed and the epoch; mean losses."""
    settings = config.training
    seed = settings.seed * 100_003 + epoch
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(samples), generator=generator) for _ in range(settings.repeats)])
    batches = order.split(settings.batch_size)
    sums: dict[str, float] = {}
    network.train()
    progress = tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", leave=False)
    for step, batch in enumerate(progress):
        now = epoch + step / len(batches)
        optimizer.param_groups[0]["lr"] = learning_rate(settings, now)
        drawn = [samples[int(case)] for case in batch]
        image, label = draw_batch(drawn, config, generator, device)
        prediction = network(image)
        total, losses = criterion(prediction, label, now)
        record = {"total": total, **vars(losses)}
        if network.localiser:
            record["localiser"] = localiser_loss(network.localiser, drawn[0].overview, config, generator, device)
            total = total + record["localiser"]
        take_step(total, network, optimizer, epoch)
        if deep:
            record["drn"] = deep.step(prediction.vertices.detach().flatten(0, 1), epoch)
        for name, value in record.items():
            sums[name] = sums.get(name, 0.0) + value.item() / len(batches)
        progress.set_postfix(total=f"{total.item():.3f}")
    return sums


def draw_batch(samples, config: Config, generator, device):
    """Images (B, 1, X, Y, Z) and labels (B, X, Y, Z) on the device, augmented where the config asks for it."""
    shape = config.data.shape if config.training.augmentation else None
    images, labels = zip(*(draw(sample, shape, generator, device) for sample in samples), strict=True)
    return torch.stack(images), torch.stack(labels)


def draw(volume, shape, generator, device):
    """Image (1, X, Y, Z) and label (X, Y, Z) of a Sample or Overview, augmented onto `shape` where it is not None."""
    image, label = volume.image[None].to(device), volume.label.to(device)
    return (image, label) if shape is None else augment(image, label, shape, generator)


def localiser_loss(localiser, overview, config: Config, generator, device):
    """Cross-entropy of the coarse pass on one case; one of a batch will do, as it learns sooner than the rest."""
    image, label = draw(overview, overview.image.shape if config.training.augmentation else None, generator, device)
    return F.cross_entropy(localiser(image[None].float()), label[None].long())


def validate(predictor: Predictor, cases: list[Case]) -> dict[str, float]:
    """Mean Dice per structure as the evaluation measures it: on the image's own grid, the region found by the coarse
    pass, the meshes repaired. 0 for a structure that is labelled where nothing is found."""
    structures = predictor.structures
    scores: dict[str, list[float]] = {name: [] for name in structures.names}
    for case in cases:
        image, labels = read_case(case)
        try:
            labelmap = predictor(image).labelmap
        except NothingFound:
            labelmap = np.zeros_like(labels.data)
        for structure, (name, value) in enumerate(structures.written.items()):
            reference = structures.mask(labels.data, structure)
            if reference.any():
                scores[name].append(dice(labelmap == value, reference))
    return {name: sum(values) / max(len(values), 1) for name, values in scores.items()}


def draw_preview(predictor: Predictor, case: Case, path: Path, events: EventFile, epoch: int):
    """Contours and meshes of a validation case, as a picture beside the snapshot and in TensorBoard."""
    image, labels = read_case(case)
    try:
        surfaces = predictor(image)
    except NothingFound:
        return
    events.add_figure("preview", preview(path, surfaces, labels), epoch)


if __name__ == "__main__":
    run_script(main)
