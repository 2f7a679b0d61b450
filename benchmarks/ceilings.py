"""Where the Dice goes: the grid, the mesh's vertices, the UNet's segmentation, the network's meshes, their repair.

    python benchmarks/ceilings.py --config=runs/left_atrium_mr/config.json [--data_dir=...] [--cases=16]

On the validation cases of a trained network's data, each on its image's own grid. `grid` and `fitted mesh` know the
label: it is resampled to the network's grid and back, and meshes of as many vertices as the network's are fitted to it
by the training's losses. The other columns are the network's.
"""

import argparse

import numpy as np
from timing import at_least
from tqdm import tqdm

from implicitmeshnet.data.dataset import configured_split, find_cases, read_case
from implicitmeshnet.planning.ceiling import ceiling_of
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import run_script
from implicitmeshnet.surfaces.labelmap import meshes_to_labelmap
from implicitmeshnet.surfaces.metrics import dice_by_structure

COLUMNS = ("grid", "fitted mesh", "UNet", "mesh unrepaired", "mesh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON config of a trained network")
    parser.add_argument("--data_dir", help="labelled cases; default the config's data.dir")
    parser.add_argument("--cases", type=at_least(1), default=1000, help="at most so many of the validation cases")
    arguments = parser.parse_args()
    predictor = Predictor.from_config(arguments.config)
    config = predictor.config
    cases = find_cases(arguments.data_dir or config.data.dir, labelled=True, channels=config.data.channels)
    _, held_out = configured_split(cases, config)
    rows: dict[str, list[list[float]]] = {name: [] for name in predictor.structures.names}
    for case in tqdm(held_out[: arguments.cases], unit="case"):
        found = measure(predictor, case)
        for name in found[0]:
            rows[name].append([column[name] for column in found])
    print(f"{'structure':<16}{'cases':>6}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name, of_cases in rows.items():
        if not of_cases:
            print(f"{name:<16}{0:>6}")
            continue
        means = np.mean(of_cases, 0)
        print(f"{name:<16}{len(of_cases):>6}" + "".join(f"{mean:>17.4f}" for mean in means))


def measure(predictor, case) -> list[dict[str, float]]:
    """The Dice of each structure that the case has, by name, for each of COLUMNS."""
    possible = ceiling_of(case, predictor.config)
    image, labels = read_case(case)
    surfaces = predictor(image)
    structures = predictor.structures
    unrepaired = [(vertices, surfaces.faces) for vertices in surfaces.raw_vertices]
    labelmaps = (surfaces.segmentation, meshes_to_labelmap(unrepaired, structures, image.grid), surfaces.labelmap)
    of_network = [dice_by_structure(labelmap, labels.data, structures) for labelmap in labelmaps]
    return [possible.grid_dice, possible.mesh_dice, *of_network]


if __name__ == "__main__":
    run_script(main)
