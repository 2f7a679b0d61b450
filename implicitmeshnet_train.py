"""Train ImplicitMeshNet from images and voxel labels. The same command resumes an interrupted run.

    python implicitmeshnet_train.py --config=configs_implicitmeshnet/whole_heart.json [--section.key=value ...]

Writes into training.run_dir: config.json (what evaluation needs, template included), best.pt (weights of the best
validation, half precision), last.pt (everything, to resume), preview.png, overview.png and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt, training_arguments

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    training_arguments(__doc__.splitlines()[0])  # answers --help and refuses misspelt options before them

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import Config
from implicitmeshnet.data.augment import augment
from implicitmeshnet.data.dataset import (
    Case,
    Sample,
    TrainingSet,
    check_cases,
    configured_split,
    find_cases,
    read_case,
    template_statistics,
)
from implicitmeshnet.data.overview import IGNORED, Overview
from implicitmeshnet.models.localiser import Localiser
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, build_network
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.predict import NothingFound, Predictor, preview
from implicitmeshnet.script import run_script
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.metrics import dice
from implicitmeshnet.training.deep_route import DeepRoute, load_deep_route
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import Epoch, History, validation_is_due
from implicitmeshnet.training.losses import MeshLoss, class_loss
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


@dataclass(frozen=True)
class Run:
    """What a step of a training needs."""

    config: Config
    device: torch.device
    network: ImplicitMeshNet
    criterion: MeshLoss
    optimizer: torch.optim.AdamW
    deep: DeepRoute | None
    """The other network of loss.route 'deep'."""

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds the state of."""
        parts: Parts = {"network": self.network, "optimizer": self.optimizer}
        if self.deep:
            parts |= {"drn": self.deep.drn, "drn_optimizer": self.deep.optimizer}
        return parts


def main() -> None:
    config, source, device = parse_arguments(__doc__.splitlines()[0], Config)
    with claim_run_dir(config, source) as run_dir:
        train(config, run_dir, device)


def train(config: Config, run_dir: Path, device: torch.device) -> None:
    """Read the cases, then epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    deep = load_deep_route(config, device)
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels)
    training, validation = configured_split(cases, config)
    check_cases(validation, config.data)
    margin = max(config.data.shape) // 8 if settings.augmentation else 0
    samples = TrainingSet(training, config.data, margin)
    learn_from_data(config, samples)
    run = start_run(config, device, deep)
    predictor = Predictor(run.network, config)
    history = History(predictor.structures.names, goodness=mean_score)
    begin(run_dir, config, run.parts, history)
    events = EventFile(run_dir, len(history))

    def keep() -> None:
        save_snapshot(run_dir / "best.pt", run.network, config.network)
        draw_preview(predictor, validation[0], run_dir / "preview.png", events, len(history))

    publish(run_dir, history, keep)
    for number in range(len(history) + 1, settings.epochs + 1):
        start = time.perf_counter()
        losses = train_epoch(run, samples, number)
        scores = validate(predictor, validation) if validation_is_due(number, settings) else {}
        end_epoch(run_dir, run.parts, history, Epoch(number, losses, scores, time.perf_counter() - start), events)
        publish(run_dir, history, keep)
    best = history.best
    assert best is not None, "the last epoch is always validated"
    listed = ", ".join(f"{name} {value:.4f}" for name, value in best.scores.items())
    print(f"{run_dir}: {len(history)} epochs, best validation Dice at epoch {best.number}: {listed}")


def learn_from_data(config: Config, samples: TrainingSet) -> None:
    """Fill in what the config takes from the training cases: intensities, and the template's centres and radii."""
    config.data.intensity_statistics = samples.intensity_statistics
    if config.network.template == "mean":
        centres, radii = template_statistics(samples, config.data)
        config.network.template_centres = tuple(map(tuple, centres.tolist()))
        config.network.template_radii = tuple(map(tuple, radii.tolist()))


def start_run(config: Config, device: torch.device, deep: DeepRoute | None) -> Run:
    """Network, losses and optimiser, the weights drawn with training.seed."""
    settings = config.training
    torch.manual_seed(settings.seed)
    network = build_network(config).to(device)
    faces = network.decoder.faces
    vertex_count = network.decoder.template.shape[1]
    distance = deep.distance if deep else None
    criterion = MeshLoss(faces, vertex_count, config.loss, Structures.of(config.data), distance).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return Run(config, device, network, criterion, optimizer, deep)


def mean_score(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def train_epoch(run: Run, samples: TrainingSet, number: int) -> dict[str, float]:
    """`repeats` passes over the samples in random order, all randomness from the seed and the epoch's number; the mean
    losses by name."""
    settings = run.config.training
    finished = number - 1
    generator = seed_epoch(settings.seed, number)
    passes = [torch.randperm(len(samples), generator=generator) for _ in range(settings.repeats)]
    batches = torch.cat(passes).split(settings.batch_size)
    sums: dict[str, float] = {}
    run.network.train()
    progress = tqdm(batches, desc=f"epoch {number}/{settings.epochs}", leave=False)
    for step, batch in enumerate(progress):
        now = finished + step / len(batches)  # in epochs
        run.optimizer.param_groups[0]["lr"] = learning_rate(settings, now)
        drawn = [samples[int(case)] for case in batch]
        losses = train_step(run, drawn, now, number, generator)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / len(batches)
        progress.set_postfix(total=f"{losses['total'].item():.3f}")
    return sums


def train_step(
    run: Run, samples: list[Sample], now: float, number: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """One step of each network on a batch, `now` epochs after the start; its losses by name, each a scalar."""
    image, label = draw_batch(run, samples, generator)
    prediction = run.network(image)
    total, terms = run.criterion(prediction, label, now)
    losses = {"total": total, **vars(terms)}
    if run.network.localiser:
        losses["localiser"] = localiser_loss(run, run.network.localiser, samples[0].overview, generator)
        total = total + losses["localiser"]
    take_step(total, run.network, run.optimizer, number)
    if run.deep:
        losses["drn"] = run.deep.step(prediction.vertices.detach().flatten(0, 1), number)
    return losses


def draw_batch(run: Run, samples: list[Sample], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, X, Y, Z) and labels (B, X, Y, Z) on the device, augmented where the config asks for it."""
    drawn = [draw(run, sample, run.config.data.shape, generator) for sample in samples]
    images, labels = zip(*drawn, strict=True)
    return torch.stack(images), torch.stack(labels)


def draw(
    run: Run, volume: Sample | Overview, shape: Sequence[int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, X, Y, Z) and label (X, Y, Z), augmented onto `shape` where the config asks for it."""
    assert volume.label is not None, "training cases are labelled"
    image = volume.image.to(run.device)
    label = volume.label.to(run.device)
    if not run.config.training.augmentation:
        return image, label
    return augment(image, label, shape, volume.grid.spacing_mm, generator)


def localiser_loss(
    run: Run, localiser: Localiser, overview: Overview | None, generator: torch.Generator
) -> torch.Tensor:
    """Cross-entropy of the coarse pass on one case; one of a batch will do, as it learns sooner than the rest."""
    assert overview is not None, "samples of data.region 'found' have one"
    image, label = draw(run, overview, overview.image.shape[1:], generator)
    return class_loss(localiser(image[None].float()), label[None], IGNORED)


def validate(predictor: Predictor, cases: list[Case]) -> dict[str, float]:
    """Mean Dice per structure as the evaluation measures it: on the image's own grid, the region found by the coarse
    pass, the meshes repaired. 0 for a structure that is labelled where nothing is found."""
    structures = predictor.structures
    found: dict[str, list[float]] = {name: [] for name in structures.names}
    for case in cases:
        image, labels = read_case(case)
        assert labels is not None, "validation cases are labelled"
        try:
            labelmap = predictor(image).labelmap
        except NothingFound:
            labelmap = np.zeros_like(labels.data)
        ignored = structures.ignored_in(labels.data)
        for structure, (name, value) in enumerate(structures.written.items()):
            reference = structures.mask(labels.data, structure)
            if reference.any():
                found[name].append(dice(labelmap == value, reference, ignored))
    return {name: sum(values) / max(len(values), 1) for name, values in found.items()}


def draw_preview(predictor: Predictor, case: Case, path: Path, events: EventFile, number: int) -> None:
    """Contours and meshes of a validation case, as a picture beside the snapshot and in TensorBoard."""
    image, labels = read_case(case)
    try:
        surfaces = predictor(image)
    except NothingFound:
        return
    events.add_figure("preview", preview(path, surfaces, labels), number)


if __name__ == "__main__":
    run_script(main)
