"""Train ImplicitMeshNet from images and voxel labels. The same command resumes an interrupted run.

    python implicitmeshnet_train.py --config=configs_implicitmeshnet/whole_heart.json [--section.key=value ...]

Writes into training.run_dir: config.json (what evaluation needs, template included), best.pt (weights of the best
validation, half precision), last.pt (everything, to resume), preview.png, overview.png, log.jsonl (a line an epoch),
provenance.json (code, libraries, machine and data of each start) and TensorBoard events.
"""

from implicitmeshnet.script import exit_at_interrupt, training_arguments

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    training_arguments(__doc__.splitlines()[0])  # answers --help and refuses misspelt options before them

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from implicitmeshnet.config import Config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case, say
from implicitmeshnet.data.training_set import TrainingSet, check_cases, image_of_tissues, prepare
from implicitmeshnet.data.volume import Volume
from implicitmeshnet.models.mesh_net import ImplicitMeshNet
from implicitmeshnet.models.weights import Start, read_start, save_snapshot, start_from
from implicitmeshnet.predict import NothingFound, Predictor, preview
from implicitmeshnet.script import InputError, run_script, shorten
from implicitmeshnet.surfaces.metrics import dice_by_structure
from implicitmeshnet.training import processes
from implicitmeshnet.training.deep_route import keep_drn_config, load_deep_route
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import History
from implicitmeshnet.training.loop import Loop, Step, Training
from implicitmeshnet.training.provenance import record_start
from implicitmeshnet.training.run import ORDER, Moment, begin, claimed_run, generator_of, learning_rate
from implicitmeshnet.training.signals import Signals
from implicitmeshnet.training.step import Run, augmentation_margin, learn_from_data, start_run, train_step


def main() -> None:
    with claimed_run(__doc__.splitlines()[0], Config) as claimed:
        train(claimed.config, claimed.run_dir, claimed.device, claimed.signals)


def train(config: Config, run_dir: Path, device: torch.device, signals: Signals) -> None:
    """Read the cases, then epoch after epoch from where last.pt ends, or from the start."""
    settings = config.training
    deep = load_deep_route(config, device, run_dir)
    is_new = not (run_dir / "last.pt").exists()
    initial = read_start(settings.init_from) if settings.init_from and is_new else None
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels, kind=kind_of_images(config))
    training_cases, validation_cases = configured_split(cases, config)
    samples, validated = read_cases(config, training_cases, validation_cases)
    learn_from_data(config, samples)
    run = start_run(config, device, deep)
    if initial is not None:
        print(start_from_another(run.network, initial, list(config.data.structures)))
    predictor = Predictor(run.network, config)
    history = History(validated, goodness=mean_score)
    steps = settings.steps_of_epoch(len(samples))
    unfinished = begin(run_dir, config, run.parts, history, steps)
    if processes.is_first():
        keep_drn_config(config, run_dir)
        files = [path for case in training_cases + validation_cases for path in case.files]
        record_start(run_dir, len(history), device, files)

    def keep(events: EventFile) -> None:
        save_snapshot(run_dir / "best.pt", run.network, config)
        draw_preview(predictor, validation_cases[0], run_dir / "preview.png", events, len(history))

    def look(events: EventFile) -> str:
        draw_preview(predictor, validation_cases[0], run_dir / "preview.png", events, len(history))
        scores = case_scores(predictor, validation_cases[0])
        return f"first look at {validation_cases[0].name}, {run_dir / 'preview.png'}: Dice {listed(scores)}"

    training = Training(
        run_dir,
        settings,
        run.parts,
        history,
        steps,
        learning_rate=lambda epoch: learning_rate(settings, epoch),
        epoch=lambda number: begin_epoch(run, samples, number, steps),
        validate=lambda: validate(predictor, validation_cases),
        keep=keep,
        look=look,
    )
    Loop(training, signals).run(unfinished)
    best = history.best
    assert best is not None, "the last epoch is always validated"
    print(f"{run_dir}: {len(history)} epochs, best validation Dice at epoch {best.number}: {listed(best.scores)}")


def read_cases(
    config: Config, training_cases: list[Case], validation_cases: list[Case]
) -> tuple[TrainingSet, tuple[str, ...]]:
    """The training samples, once each process has read its share of all cases, and the structures of the validation's.

    A warning names those that no validation case has.
    """
    margin = augmentation_margin(config)
    kind = kind_of_images(config)
    own = check_cases(processes.share(validation_cases), config.data, config.cache_dir, kind)
    prepare(processes.share(training_cases), config.data, margin, config.cache_dir, kind)
    found = set().union(*processes.gathered(own))
    unseen = [name for name in config.data.structures if name not in found]
    if unseen and processes.is_first():
        say([f"no validation case has {', '.join(unseen)}, so no Dice tells how well that is found"])
    validated = tuple(name for name in config.data.structures if name in found)
    return TrainingSet(training_cases, config.data, margin, config.cache_dir, kind), validated


def kind_of_images(config: Config) -> str:
    """What stands for the images of a training."""
    return "tissues" if config.training.appearance == "random" else "image"


def validation_case(case: Case, config: Config) -> tuple[Volume, Volume]:
    """The image of a validation case, or the one that is drawn of its tissues, and its label map."""
    if config.training.appearance == "random":
        return image_of_tissues(case, config.data, config.cache_dir)
    image, labels = read_case(case)
    assert labels is not None, "validation cases are labelled"
    return image, labels


def listed(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


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


def begin_epoch(run: Run, samples: TrainingSet, number: int, steps: int) -> Step:
    """The step of an epoch that passes `repeats` times over the samples in random order, in batches of one size."""
    settings = run.config.training
    order = epoch_order(run.config, len(samples), number, steps)
    run.network.train()

    def step(index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        now = number - 1 + index / steps  # in epochs
        moment = Moment(settings.seed, number, index)
        moment.seed_dropout()
        batch = order[index * settings.batch_size :][: settings.batch_size]
        return train_step(run, samples, batch, moment, now)

    return step


def epoch_order(config: Config, count: int, number: int, steps: int) -> list[int]:
    """The samples of an epoch's `steps`, by number; the last batch is filled up with the first ones of `count`."""
    settings = config.training
    generator = generator_of(settings.seed, number, ORDER)
    passes = [torch.randperm(count, generator=generator) for _ in range(settings.repeats)]
    wanted = steps * settings.batch_size
    order = torch.cat(passes)
    return order.repeat(-(-wanted // len(order)))[:wanted].tolist()


def validate(predictor: Predictor, cases: Sequence[Case]) -> dict[str, float]:
    """Mean Dice per structure over the cases that have it; each process measures its share of them."""
    found: dict[str, list[float]] = {name: [] for name in predictor.structures.names}
    own = [(case.name, case_scores(predictor, case)) for case in processes.share(cases)]
    everywhere = [row for rows in processes.gathered(own) for row in rows]
    for _, scores in sorted(everywhere, key=lambda row: row[0]):
        for name, value in scores.items():
            found[name].append(value)
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def case_scores(predictor: Predictor, case: Case) -> dict[str, float]:
    """Dice per labelled structure, 0 where nothing is found.

    It is as the evaluation measures it: on the image's own grid, the region found by the coarse pass, the meshes
    repaired.
    """
    image, labels = validation_case(case, predictor.config)
    try:
        labelmap = predictor(image).labelmap
    except NothingFound:
        labelmap = np.zeros_like(labels.data)
    return dice_by_structure(labelmap, labels.data, predictor.structures)


def draw_preview(predictor: Predictor, case: Case, path: Path, events: EventFile, number: int) -> None:
    """Contours and meshes of a validation case, as a picture beside the snapshot and in TensorBoard."""
    image, labels = validation_case(case, predictor.config)
    try:
        surfaces = predictor(image)
    except NothingFound:
        return
    events.add_figure("preview", preview(path, surfaces, labels), number)


if __name__ == "__main__":
    run_script(main)
