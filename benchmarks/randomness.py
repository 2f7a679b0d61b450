"""What each kind of randomness of random appearance is worth: trainings that leave one out, measured on real images.

    python benchmarks/randomness.py --data_dir=data/phantom/any --out=runs/randomness \\
        --left_atria=data/LA2018 --ventricles=data/ACDC [--every=4] [--epochs=6] [--leave_out contrast view ...]

whole_heart_any.json's UNet and coarse pass alone, on 48 voxels a side, go on from its weights without one kind each:
what they lose is what that kind kept up. Dice is of the voxel segmentation, on the images' own grids, of every Nth
case. An image in which the coarse pass finds nothing counts 0. A run that is done is not repeated, one that was cut off
goes on.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from calls import call
from timing import at_least

from implicitmeshnet.config import REPOSITORY
from implicitmeshnet.data.dataset import Case, find_cases, read_case
from implicitmeshnet.predict import NothingFound, Predictor, segmentation_on_grid
from implicitmeshnet.script import run_script, write_json
from implicitmeshnet.surfaces.metrics import dice_by_structure

CONFIGS = REPOSITORY / "configs_implicitmeshnet"
NOTHING = "nothing"
LEFT_OUT = {
    NOTHING: [],
    "contrast": ["contrast"],
    "texture+mixing": ["texture", "mixing"],
    "scars+trabeculae": ["scars", "trabeculae"],
    "bias": ["bias"],
    "orientation": ["orientation"],
    "view": ["view"],
    "resolution": ["resolution"],
    "motion+missing": ["motion", "missing"],
    "noise": ["noise"],
    "levels+gamma": ["levels", "gamma"],
}
UNET_ALONE = (
    "--data.shape=[48,48,48]",
    "--loss.occupancy=0",
    "--loss.surface=0",
    "--loss.overlap=0",
    "--loss.triangles=0",
    "--loss.laplacian_start=0",
    "--loss.laplacian_end=0",
)
LEFT_ATRIUM = {"LA": [420]}
VENTRICLES = {"LV": [3], "RV": [1], "Myo": [2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="phantoms with tissue maps")
    parser.add_argument("--left_atria", required=True, help="labelled cases, of LA2018's values")
    parser.add_argument("--ventricles", required=True, help="labelled cases, of ACDC's values")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--every", type=at_least(1), default=4, metavar="N", help="measure each Nth case; default 4")
    parser.add_argument("--epochs", type=at_least(1), default=6)
    parser.add_argument("--leave_out", nargs="+", default=list(LEFT_OUT), choices=LEFT_OUT, help="default all, singly")
    arguments = parser.parse_args()
    names = [*LEFT_ATRIUM, *VENTRICLES]
    print(f"{'left out':<20}" + "".join(f"{name:>8}" for name in names), flush=True)
    for left_out in arguments.leave_out:
        folder = Path(arguments.out) / left_out
        if not (folder / "result.json").exists():
            train(folder, left_out, arguments)
            measure(folder, arguments)
        found = json.loads((folder / "result.json").read_text())
        print(f"{left_out:<20}" + "".join(f"{found[name]:>8.3f}" for name in names), flush=True)


def train(folder: Path, left_out: str, arguments: argparse.Namespace) -> None:
    call(
        "implicitmeshnet_train.py",
        f"--config={CONFIGS / 'whole_heart_any.json'}",
        f"--data.dir={arguments.data_dir}",
        f"--data.cache_dir={Path(arguments.out) / 'cache'}",
        f"--training.init_from={CONFIGS / 'whole_heart_any.json'}",
        f"--training.run_dir={folder}",
        f"--training.epochs={arguments.epochs}",
        "--training.repeats=2",
        "--training.learning_rate=1e-3",
        f"--training.validate_every={arguments.epochs}",
        f"--training.appearance_without={json.dumps(LEFT_OUT[left_out])}",
        *UNET_ALONE,
        quiet=True,
    )


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Leaves the mean Dice of each structure in the run's result.json."""
    result = {}
    for data_dir, values in ((arguments.left_atria, LEFT_ATRIUM), (arguments.ventricles, VENTRICLES)):
        predictor = Predictor.from_config(folder / "config.json", label_values=values)
        cases = find_cases(data_dir, labelled=True)
        rows = [segmentation_dice(predictor, case) for case in cases[:: arguments.every]]
        for name in values:
            result[name] = statistics.mean(row[name] for row in rows if name in row)
    write_json(folder / "result.json", result)


@torch.inference_mode()
def segmentation_dice(predictor: Predictor, case: Case) -> dict[str, float]:
    """The Dice of the voxels of each structure that a case has, by name."""
    image, labels = read_case(case)
    structures = predictor.structures
    try:
        view = predictor.look(image)
    except NothingFound:
        return dict.fromkeys(structures.present_in(labels.data), 0.0)
    prediction = predictor.network.eval()(view.sample.image[None])
    found = segmentation_on_grid(prediction.segmentation[0], view.sample.grid, structures, view.grid)
    return dice_by_structure(found, labels.data, structures)


if __name__ == "__main__":
    run_script(main)
