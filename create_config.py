"""A config for a folder of labelled cases, which nobody has to write: every choice from the data, with its reason.

    python create_config.py --data_dir=data/my_hearts --out=my_hearts.json [--minutes=120] [--memory_gib=8]
    python implicitmeshnet_train.py --config=my_hearts.json

Reads each case once, times real training steps on this machine and measures what the grid and the mesh leave possible.
Prints a table, and writes the config, the same table as my_hearts.txt and the network's box over three cases as
my_hearts.png.
"""

import argparse

from implicitmeshnet.script import exit_at_interrupt


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments; their values are not checked yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data_dir", required=True, help="folder of labelled cases, in one of the layouts of the README"
    )
    parser.add_argument("--out", required=True, help="JSON config to write")
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="that a training may take here, in minutes; default %(default)g"
    )
    parser.add_argument(
        "--memory_gib", type=float, default=8.0, help="main memory for a training, in GiB; default %(default)g"
    )
    parser.add_argument(
        "--structures",
        nargs="+",
        metavar="NAME[=VALUES]",
        help="only these of the data set's names, or label values of your own as in LA=420,421; default all",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (the fastest there is), cpu, cuda or mps; default %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a config that is there")
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from implicitmeshnet.config import Config, save_config, validate
from implicitmeshnet.config_json import from_json
from implicitmeshnet.data.dataset import Case, find_cases, read_case, refuse_labels
from implicitmeshnet.data.training_set import TrainingSet
from implicitmeshnet.models.mesh_net import ImplicitMeshNet
from implicitmeshnet.models.weights import pick_device
from implicitmeshnet.planning.ceiling import CeilingCase, ceiling_of
from implicitmeshnet.planning.choices import (
    VALIDATION_SHARE,
    Choice,
    channels_of,
    choose_box,
    choose_encloses,
    choose_ignored,
    choose_intensity,
    choose_mesh,
    choose_orientation,
    choose_start,
    choose_structures,
    coarser_mm,
    finest_spacing_mm,
    tree_of,
)
from implicitmeshnet.planning.picture import draw_boxes
from implicitmeshnet.planning.survey import CaseFacts, survey_case
from implicitmeshnet.predict import NothingFound, Predictor
from implicitmeshnet.progress import progress
from implicitmeshnet.script import InputError, atomic_path, keep_freed_memory, make_folder, read_json, run_script
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.run import Moment
from implicitmeshnet.training.step import augmentation_margin, start_run, train_step

SHOWN_CASES = 3  # whose boxes are drawn and ceilings are measured
TIMED_STEPS = 3  # of which the first is left out
LEAST_STEPS = 1500  # of a training; the grid becomes coarser where the time does not allow as many
SMALLEST_GRID = 48**3  # voxels; no coarser grid is tried
BYTES_PER_VOXEL = 2200  # of a batch's grid in training, per case; measured at the widths of planning.choices
VALIDATION_TIME = 0.07  # share of the time
SPARE_TIME = 0.05  # share of the time that is left for reading cases, previews and a busier machine
EPOCHS = 100  # about as many, by passes over the cases in each


@dataclass(frozen=True)
class Cost:
    """What a training costs on this machine."""

    step_s: float
    validation_s: float  # of one case


def main() -> None:
    arguments = parse_arguments()
    check_arguments(arguments)
    keep_freed_memory()
    device = pick_device(arguments.device)
    out = Path(arguments.out)
    folder = Path(arguments.data_dir)
    description = description_of(folder)
    channels = channels_of(description)
    cases = find_cases(folder, labelled=True, channels=max(len(channels), 1))
    if len(cases) < 2:
        raise InputError(f"{folder}: wanted at least 2 labelled cases, one of them for validation, found {len(cases)}")
    facts = [survey_case(case) for case in progress(cases, "reading cases")]
    structures, doubts = choose_structures(facts, description, arguments.structures)
    values = [value for group in structures.value.values() for value in group]
    check_labelled(cases, facts, values)
    intensity = choose_intensity(facts, channels, structures.value)
    choices = [
        Choice("data.dir", str(folder.absolute()), f"{len(cases)} labelled cases"),
        structures,
        *choose_ignored(description),
        choose_encloses(facts, structures.value, description),
        *intensity,
        *choose_orientation(facts, intensity[0].value),
        Choice(
            "data.validation_cases", max(1, round(VALIDATION_SHARE * len(cases))), f"{VALIDATION_SHARE:.0%} of them"
        ),
    ]
    choices, cost = choose_grid(choices, facts, cases, values, arguments, device)
    choices += choose_schedule(choices, len(cases), cost, 60 * arguments.minutes)
    choices += choose_start(structures.value)
    choices.append(Choice("training.run_dir", f"runs/{out.stem}", "the config's name"))
    config = config_of(choices)
    shown = [ceiling_of(case, config) for case in progress(spread(cases, facts, values), "measuring ceilings")]
    doubts += limit_doubts(config, cost, arguments) + spacing_doubts(facts) + header_doubts(facts)
    text = table(choices, doubts, shown, config)
    text = text.encode(errors="replace").decode()  # names of files may be of any bytes
    print(text)
    write(out, config, text, shown)
    print(f"{out}: written, and beside it {out.with_suffix('.txt').name} and {out.with_suffix('.png').name} to look at")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError where an argument could only fail later."""
    out = Path(arguments.out)
    if out.suffix != ".json":
        raise InputError(f"--out: wanted a name that ends in .json, found {out}")
    if not out.parent.is_dir():
        raise InputError(f"--out: wanted a file in a folder that is there, found {out}")
    for path in (out, out.with_suffix(".txt"), out.with_suffix(".png")):
        if path.exists() and not arguments.overwrite:
            raise InputError(f"--out: wanted new files, found {path}; --overwrite replaces it")
    make_folder(out.parent, "--out")
    for name in ("minutes", "memory_gib"):
        value = getattr(arguments, name)
        if not (0 < value < math.inf):
            raise InputError(f"--{name}: wanted a number above 0, found {value}")


def check_labelled(cases: Sequence[Case], facts: Sequence[CaseFacts], values: Sequence[int]) -> None:
    """Raise InputError for a case without any of the structures' label values, as a training would."""
    for case, found in zip(cases, facts, strict=True):
        if found.box_mm(values) is None:
            refuse_labels(str(case.label), values, sorted(found.voxels) or [0])


def description_of(folder: Path) -> dict[str, Any]:
    """What the folder's dataset.json says; nothing where there is none."""
    path = folder / "dataset.json"
    return read_json(path, "a description of a data set") if path.is_file() else {}


def config_of(choices: Sequence[Choice]) -> Config:
    """The choices as a config, the rest at its defaults; checked."""
    config = from_json(tree_of(choices), Config, "", "the chosen config")
    validate(config)
    return config


def choose_grid(
    choices: Sequence[Choice],
    facts: Sequence[CaseFacts],
    cases: Sequence[Case],
    values: Sequence[int],
    arguments: argparse.Namespace,
    device: torch.device,
) -> tuple[list[Choice], Cost]:
    """The choices with grid, network and loss: as fine as memory and LEAST_STEPS in the time allow; and the cost.

    The grid starts at the images' own spacing and becomes coarser where it is finest.
    """
    structures = next(choice.value for choice in choices if choice.key == "data.structures")
    batch_size = config_of(choices).training.batch_size
    spacing_mm, reason = finest_spacing_mm(facts)
    timed = timed_cases(cases, facts, structures)
    while True:
        box = choose_box(facts, values, spacing_mm)
        shape = next(choice.value for choice in box if choice.key == "data.shape")
        gib = memory_gib(shape, batch_size)
        if gib > arguments.memory_gib and math.prod(shape) > SMALLEST_GRID:
            spacing_mm = coarser_mm(spacing_mm, gib / arguments.memory_gib)
            reason = f"{arguments.memory_gib:g} GiB of memory hold no finer grid"
            continue
        box = [replace(choice, reason=reason) if choice.key == "data.spacing_mm" else choice for choice in box]
        chosen = [*choices, *box, *choose_mesh(facts, structures, shape, spacing_mm)]
        cost = measure(config_of(chosen), timed, device)
        steps = steps_within(60 * arguments.minutes, cost)
        coarsest = math.prod(shape) <= SMALLEST_GRID
        if steps >= LEAST_STEPS or coarsest:
            return chosen, cost
        spacing_mm = coarser_mm(spacing_mm, LEAST_STEPS / steps)
        reason = f"{arguments.minutes:g} minutes hold {LEAST_STEPS} steps on no finer grid"


def memory_gib(shape: Sequence[int], batch_size: int) -> float:
    """What a training takes with a grid (3,), in GiB."""
    return batch_size * math.prod(shape) * BYTES_PER_VOXEL / 2**30


def steps_within(seconds: float, cost: Cost) -> float:
    """Steps of a training of so many seconds, validations and spare time left out."""
    return (1 - VALIDATION_TIME - SPARE_TIME) * seconds / cost.step_s


def timed_cases(cases: Sequence[Case], facts: Sequence[CaseFacts], structures: dict[str, list[int]]) -> list[Case]:
    """The first two cases, and the first with each structure: no training goes without one of them."""
    chosen = {0, 1}
    for values in structures.values():
        chosen.add(next(index for index, case in enumerate(facts) if case.box_mm(values) is not None))
    return [cases[index] for index in sorted(chosen)]


def measure(config: Config, cases: list[Case], device: torch.device) -> Cost:
    """Real training steps and the validation of one case, with the network of a config and cases of all structures."""
    config = replace(config, network=replace(config.network, template="centred"))
    run = start_run(config, device, None)
    run.network.train()
    batch = [index % len(cases) for index in range(config.training.batch_size)]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        samples = TrainingSet(cases, config.data, augmentation_margin(config), folder)
        for step in range(TIMED_STEPS):
            start = time.perf_counter()
            train_step(run, samples, batch, Moment(config.training.seed, 1, step), 0.0)
            seconds.append(time.perf_counter() - start)
    return Cost(statistics.median(seconds[1:]), validation_seconds(run.network, config, cases[0]))


def validation_seconds(network: ImplicitMeshNet, config: Config, case: Case) -> float:
    """Of what a validation does with a case, but the repair.

    An untrained network's meshes lie in each other as no trained one's do, and take many times as long to part. Nor may
    it find anything.
    """
    start = time.perf_counter()
    image, _ = read_case(case)
    repair = 0.0
    with suppress(NothingFound):
        repair = Predictor(network, config)(image).seconds["repair"]
    return time.perf_counter() - start - repair


def choose_schedule(choices: Sequence[Choice], count: int, cost: Cost, seconds: float) -> list[Choice]:
    """Epochs, validations and the Laplacian's curve for the time that a training may take."""
    config = config_of(choices)
    held_out = config.data.validation_cases
    training_cases = count - held_out
    steps = steps_within(seconds, cost)
    passes = steps * config.training.batch_size / training_cases
    settings = replace(config.training, repeats=max(1, round(passes / EPOCHS)))
    steps_of_epoch = settings.steps_of_epoch(training_cases)
    epochs = max(1, int(steps / steps_of_epoch))
    validations = max(1, int(VALIDATION_TIME * seconds / (held_out * cost.validation_s)))
    every = max(1, math.ceil(epochs / validations))
    return [
        Choice("training.repeats", settings.repeats, f"{steps_of_epoch} steps an epoch"),
        Choice("training.epochs", epochs, f"{seconds / 60:g} minutes at {cost.step_s:.2f} s a step, measured here"),
        Choice(
            "training.validate_every", every, f"{cost.validation_s:.1f} s a case, {VALIDATION_TIME:.0%} of the time"
        ),
        Choice("training.learning_rate", 1e-3, "AdamW, cosine"),
        Choice("training.learning_rate_end", 1e-5, "a hundredth"),
        Choice("loss.laplacian_epochs", max(1, round(0.8 * epochs)), "80 % of the epochs"),
    ]


def spread(cases: Sequence[Case], facts: Sequence[CaseFacts], values: Sequence[int]) -> list[Case]:
    """Cases in which the label values fill the least, a middle and the largest volume."""
    volumes = []
    for case in facts:
        voxels = sum(case.voxels.get(value, 0) for value in values)
        volumes.append(voxels * float(np.prod(case.spacing_mm)))
    order = np.argsort(volumes)
    places = np.linspace(0, len(cases) - 1, min(SHOWN_CASES, len(cases))).round().astype(int)
    return [cases[index] for index in order[places]]


def limit_doubts(config: Config, cost: Cost, arguments: argparse.Namespace) -> list[str]:
    """A line where the coarsest grid that is tried still takes more memory or time than there is."""
    lines = []
    gib = memory_gib(config.data.shape, config.training.batch_size)
    if gib > arguments.memory_gib:
        lines.append(f"a training takes about {gib:.2g} GiB, more than --memory_gib={arguments.memory_gib:g}")
    steps = int(steps_within(60 * arguments.minutes, cost))
    if steps < LEAST_STEPS:
        lines.append(f"--minutes={arguments.minutes:g} hold {steps} steps, fewer than the {LEAST_STEPS} worth training")
    return lines


def spacing_doubts(facts: Sequence[CaseFacts]) -> list[str]:
    """A line where the cases' voxels differ by more than half along an axis."""
    spacings = np.array([case.spacing_mm for case in facts])
    low, high = spacings.min(0), spacings.max(0)
    if (high <= 1.5 * low).all():
        return []
    ranges = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
    return [f"spacings differ between cases, {ranges} mm along the axes: all are brought to one grid"]


def header_doubts(facts: Sequence[CaseFacts]) -> list[str]:
    """A line where files contradict themselves, with the first of their warnings."""
    warned = [case for case in facts if case.warnings]
    if not warned:
        return []
    return [
        f"{len(warned)} of {len(facts)} cases have files that contradict themselves, first: {warned[0].warnings[0]}"
    ]


def table(choices: Sequence[Choice], doubts: Sequence[str], shown: Sequence[CeilingCase], config: Config) -> str:
    """What a person checks: each choice with its reason, what may be wrong, and the ceilings."""
    lines = [f"{'key':<32}{'value':<44}reason"]
    for choice in choices:
        lines.append(f"{choice.key:<32}{shown_value(choice.value):<42}  {choice.reason}")
    lines += ["", f"{'Dice that is possible':<32}{'grid':>8}{'mesh':>8}   in {len(shown)} cases"]
    for name in config.data.structures:
        of_grid = [case.grid_dice[name] for case in shown if name in case.grid_dice]
        of_mesh = [case.mesh_dice[name] for case in shown if name in case.mesh_dice]
        if of_grid:
            lines.append(f"{name:<32}{np.mean(of_grid):>8.3f}{np.mean(of_mesh):>8.3f}")
    lines += ["", *(f"warning: {doubt}" for doubt in doubts)] if doubts else []
    return "\n".join(lines)


def shown_value(value: Any) -> str:
    """A value as the table has it, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_listed(entry)}" for name, entry in value.items()) or "none"
    return _listed(value) if isinstance(value, list) else str(value)


def _listed(values: Any) -> str:
    return " ".join(_listed(value) if isinstance(value, list) else str(value) for value in values)


def write(out: Path, config: Config, text: str, shown: Sequence[CeilingCase]) -> None:
    """The config last, so that it stands for all three files."""
    structures = Structures.of(config.data)
    drawn = []
    for case in shown:
        held = structures.class_map(case.labels.data) > 0
        drawn.append((case.image, held, case.sample.grid))
    draw_boxes(out.with_suffix(".png"), drawn)
    with atomic_path(out.with_suffix(".txt")) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    save_config(config, out)


if __name__ == "__main__":
    run_script(main)
