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
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import Config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case
from implicitmeshnet.data.training_set import TrainingSet, check_cases, prepare
from implicitmeshnet.models.mesh_net import ImplicitMeshNet
from implicitmeshnet.models.weights import Start, read_start, save_snapshot, start_from
from implicitmeshnet.predict import NothingFound, Predictor, preview
from implicitmeshnet.script import InputError, run_script, shorten
from implicitmeshnet.surfaces.metrics import dice
from implicitmeshnet.training.deep_route import load_deep_route
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import Epoch, History, validation_is_due
from implicitmeshnet.training.run import (
    begin,
    claim_run_dir,
    end_epoch,
    learning_rate,
    parse_arguments,
    publish,
    seed_epoch,
)
from implicitmeshnet.training.step import Run, augmentation_margin, learn_from_data, start_run, train_step


def main() -> None:
    config, source, device = parse_arguments(__doc__.splitlines()[0], Config)
    with claim_run_dir(config, source) as run_dir:
        train(config, run_dir, device)


def train(config: Config, run_dir: Path, device: torch.device) -> None:
    """Read the cases, then epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    deep = load_deep_route(config, device)
    is_new = not (run_dir / "last.pt").exists()
    initial = read_start(settings.init_from) if settings.init_from and is_new else None
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels)
    training, validation = configured_split(cases, config)
    check_cases(validation, config.data, config.cache_dir)
    margin = augmentation_margin(config)
    prepare(training, config.data, margin, config.cache_dir)
    samples = TrainingSet(training, config.data, margin, config.cache_dir)
    learn_from_data(config, samples)
    run = start_run(config, device, deep)
    if initial is not None:
        print(start_from_another(run.network, initial, list(config.data.structures)))
    predictor = Predictor(run.network, config)
    history = History(predictor.structures.names, goodness=mean_score)
    begin(run_dir, config, run.parts, history)
    events = EventFile(run_dir, len(history))

    def keep() -> None:
        save_snapshot(run_dir / "best.pt", run.network, config)
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


def start_from_another(network: ImplicitMeshNet, start: Start, structures: list[str]) -> str:
    """Take another network's weights where they fit; a line on what was taken and what was not."""
    left = start_from(network, start, structures)
    count = len(network.state_dict())
    if len(left) == count:
        raise InputError(f"training.init_from: wanted weights of such a network, found none that fit in {start.path}")
    strangers = [name for name in structures if start.structures is not None and name not in start.structures]
    kept = f", not {shorten(', '.join(left))}" if left else ""
    new = f"; new structures: {', '.join(strangers)}" if strangers else ""
    return f"training.init_from: took {count - len(left)} of {count} weights from {start.path}{kept}{new}"


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
