"""What a random image of a tissue map costs, part by part, and pictures of some.

    python benchmarks/appearance.py --dir=data/phantom/any [--draws=48] [--sheet=sheet.png] [--seed=0]

Times are CPU time in one thread, medians over the draws, on the grid of whole_heart_any.json. The sheet shows for each
of 24 draws an axial, a coronal and a sagittal slice through the middle of its view, with the labels' contours.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from timing import at_least

from implicitmeshnet.config import REPOSITORY, Config, load_config
from implicitmeshnet.data import appearance
from implicitmeshnet.data.dataset import Sample, find_cases, tissue_sample
from implicitmeshnet.script import run_script
from implicitmeshnet.training.run import generator_of
from implicitmeshnet.training.step import augmentation_margin, drawn_sample

PARTS = {  # functions of the module, by what they are for
    "_pose": "pose",
    "_view": "view",
    "_scan": "slices' profiles",
    "_warp": "smooth warp of the places",
    "contrasts": "contrast",
    "_paint": "painting",
    "_add_scars": "scars (1 draw in 4)",
    "_add_trabeculae": "trabeculae (7 draws in 10)",
    "_textured": "grain, mixing, bias",
    "_acquired": "slices, motion, noise",
    "_normalised": "percentiles, gamma",
    "warp_label": "label",
}
SHOWN = 24
COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="folder of labelled tissue maps")
    parser.add_argument("--draws", type=at_least(1), default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", help="picture to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(REPOSITORY / "configs_implicitmeshnet/whole_heart_any.json")
    cases = find_cases(arguments.dir, labelled=True, kind="tissues")[:4]
    samples = [tissue_sample(case, config.data, augmentation_margin(config)) for case in cases]
    if arguments.sheet:
        draw_sheet(config, samples, arguments.seed, Path(arguments.sheet))
    costs(config, samples, arguments.draws, arguments.seed)


def draw(config: Config, sample: Sample, seed: int, number: int) -> appearance.Drawn:
    return drawn_sample(config, sample, sample.image, sample.label, generator_of(seed, number))


def draw_overview(config: Config, sample: Sample, seed: int, number: int) -> appearance.Drawn:
    overview = sample.overview
    return drawn_sample(config, overview, overview.image, overview.label, generator_of(seed, number))


def costs(config: Config, samples: list[Sample], draws: int, seed: int) -> None:
    """Print the table."""
    overview = [seconds_of(draw_overview, config, samples, seed, number) for number in range(draws)]
    whole = [seconds_of(draw, config, samples, seed, number) for number in range(draws)]
    spent: dict[str, list[float]] = {name: [] for name in PARTS}
    for name in PARTS:
        setattr(appearance, name, timed(getattr(appearance, name), spent[name]))
    for number in range(draws):
        seconds_of(draw, config, samples, seed, number)
    print(f"| {draws} draws at {config.data.shape} | ms |\n|---|---|")
    print(f"| a random image and its label | {1000 * statistics.median(whole):.1f} |")
    for name, found in spent.items():
        print(f"| {PARTS[name]} | {1000 * statistics.median(found or [0.0]):.1f} |")
    print(f"| a random overview and its label | {1000 * statistics.median(overview):.1f} |")


def seconds_of(function: Callable, config: Config, samples: list[Sample], seed: int, number: int) -> float:
    begin = time.process_time()
    function(config, samples[number % len(samples)], seed, number)
    return time.process_time() - begin


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The same function, which notes what each call takes."""

    def call(*arguments):
        begin = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - begin)
        return result

    return call


def draw_sheet(config: Config, samples: list[Sample], seed: int, path: Path) -> None:
    """Write the picture."""
    rows = SHOWN // COLUMNS
    figure, panels = plt.subplots(rows, 3 * COLUMNS, figsize=(3 * COLUMNS, rows))
    for number in range(SHOWN):
        drawn = draw(config, samples[number % len(samples)], seed, number)
        row, column = divmod(number, COLUMNS)
        for axis, panel in zip((2, 1, 0), panels[row, 3 * column :], strict=False):
            show(panel, drawn, axis)
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(path, dpi=100)


def show(panel: plt.Axes, drawn: appearance.Drawn, axis: int) -> None:
    """The slice in the middle of the view across an axis."""
    middle = (drawn.view[axis].start + drawn.view[axis].stop) // 2
    image = drawn.image[0].select(axis, middle)
    label = drawn.label.select(axis, middle)
    panel.imshow(image.T, cmap="gray", vmin=-1, vmax=1, origin="lower")
    for structure in range(1, 8):
        mask = (label == structure).float()
        if mask.any():
            panel.contour(mask.T, [0.5], colors=[plt.get_cmap("tab10")(structure - 1)], linewidths=0.5)
    panel.axis("off")


if __name__ == "__main__":
    run_script(main)
