"""What a header that lies costs, and what --orientation=guess makes of it.

    python benchmarks/orientation.py --config=configs_implicitmeshnet/ventricles_mr.json [--data_dir=...] [--every=N]

Each Nth of the held-out cases gets a header that flips some of its axes, another of the seven ways from case to case.
The Dice, mean over structures, is that of the meshes with the true header, with the wrong one, and with the wrong one
and an orientation that is guessed.
"""

import argparse
import statistics

import numpy as np
from timing import at_least

from implicitmeshnet.data.dataset import configured_split, find_cases, read_case
from implicitmeshnet.data.volume import Volume, turned_by
from implicitmeshnet.predict import NothingFound, Predictor
from implicitmeshnet.script import run_script
from implicitmeshnet.surfaces.metrics import dice_by_structure

COLUMNS = ("true header", "wrong header", "guessed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON config of a trained network")
    parser.add_argument("--data_dir", help="labelled cases; default the config's data.dir")
    parser.add_argument("--every", type=at_least(1), default=1, metavar="N", help="take each Nth case; default 1")
    arguments = parser.parse_args()
    believing = Predictor.from_config(arguments.config)
    guessing = Predictor.from_config(arguments.config, orientation="guess")
    cases = find_cases(arguments.data_dir or believing.data.dir, labelled=True, channels=believing.data.channels)
    _, held_out = configured_split(cases, believing.config)
    print(f"{'case':<16}{'flipped':>10}" + "".join(f"{column:>14}" for column in COLUMNS), flush=True)
    rows = []
    for number, case in enumerate(held_out[:: arguments.every]):
        image, labels = read_case(case)
        axes = [axis for axis in range(3) if (number % 7 + 1) >> axis & 1]
        lying = flipped(image, axes)
        row = [
            mean_dice(believing, image, labels),
            mean_dice(believing, lying, labels),
            mean_dice(guessing, lying, labels),
        ]
        rows.append(row)
        names = " ".join("xyz"[axis] for axis in axes)
        print(f"{case.name:<16}{names:>10}" + "".join(f"{dice:>14.3f}" for dice in row), flush=True)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    print(f"{'mean':<26}" + "".join(f"{mean:>14.3f}" for mean in means))


def flipped(image: Volume, axes: list[int]) -> Volume:
    """The same voxels under a header that mirrors the world along some of its axes."""
    mirror = np.eye(4)
    mirror[axes, axes] = -1
    return turned_by(image, mirror)


def mean_dice(predictor: Predictor, image: Volume, labels: Volume) -> float:
    try:
        surfaces = predictor(image)
    except NothingFound:
        return 0.0
    return statistics.mean(dice_by_structure(surfaces.labelmap, labels.data, predictor.structures).values())


if __name__ == "__main__":
    run_script(main)
