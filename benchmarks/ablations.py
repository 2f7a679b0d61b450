"""Trains variants of one config, several seeds each, evaluates them on the same cases and prints one table.

    python benchmarks/ablations.py --config=configs_implicitmeshnet/phantom_lv_la.json --test_dir=data/phantom/test \\
        --variants exact deep exact_longer --seeds 3 --epochs 12 --out=runs/ablations

Runs one after the other, a process each; a run that is done is not repeated, one that was cut off goes on.
`--section.key=value` overrides the config in all of them, as `--training.init_from=snapshots/whole_heart.pt`.
`exact_longer` takes the epochs that fit the wall time of `deep`, by the steps' times in `benchmarks/training_step.py`.
Metrics are means over the cases, averaged over structures, +- the standard deviation over seeds; agreement is of the
meshes' label maps, unet_dice of the voxel segmentation. Of the meshes as the network leaves them, before the repair:
crossing, the share of faces that cross another of the same mesh; crossing_others, of those that cross another mesh;
shared_ml, what all pairs of a case share, or of an enclosed mesh what sticks out, in the network's voxels; and the
triangles' quality. Memory is the training process's peak with the libraries.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from calls import call
from timing import at_least

from implicitmeshnet.config import REPOSITORY, load_config
from implicitmeshnet.data.dataset import configured_split, find_cases, read_case
from implicitmeshnet.models.weights import load_checkpoint
from implicitmeshnet.predict import Predictor, Surfaces
from implicitmeshnet.script import InputError, atomic_path, run_script
from implicitmeshnet.surfaces.labelmap import overlaps_ml
from implicitmeshnet.surfaces.metrics import dice, surface_distances
from implicitmeshnet.surfaces.quality import triangle_quality
from implicitmeshnet.surfaces.soundness import crossing_faces_of

DEEP = ["--loss.route=deep", f"--loss.drn_config={REPOSITORY / 'configs_implicitmeshnet/drn_small.json'}"]
OVERLAP = ["--loss.overlap=1"]
TRIANGLES = ["--loss.triangles=0.1"]
LIGHT_OVERLAP = ["--loss.overlap=0.3"]
LIGHT_TRIANGLES = ["--loss.triangles=0.02"]
CENTRED = ["--network.template=centred"]  # the paper's: meshes start far from their structures
SEGMENTED = ["--network.template=segmented"]
OBLIQUE = ["--network.template=oblique"]
ANY_ORIENTATION = ["--training.orientation=any"]
VARIANTS = {
    "exact": [],
    "deep": DEEP,
    "exact_longer": [],
    "no_segmentation": ["--loss.segmentation=0"],
    "no_surface": ["--loss.surface=0"],
    "deep_no_surface": [*DEEP, "--loss.surface=0"],
    "laplacian_constant": ["--loss.laplacian_start=100", "--loss.laplacian_end=100"],
    "no_augmentation": ["--training.augmentation=false"],
    "overlap": OVERLAP,
    "triangles": TRIANGLES,
    "overlap_triangles": [*OVERLAP, *TRIANGLES],
    "light_overlap": LIGHT_OVERLAP,
    "light_triangles": LIGHT_TRIANGLES,
    "light_both": [*LIGHT_OVERLAP, *LIGHT_TRIANGLES],
    "exact_centred": CENTRED,
    "deep_centred": [*DEEP, *CENTRED],
    "folded_myocardium": ["--data.encloses={}"],
    "segmented_template": SEGMENTED,
    "oblique_template": OBLIQUE,
    "any_orientation": ANY_ORIENTATION,
    "any_orientation_segmented": [*ANY_ORIENTATION, *SEGMENTED],
    "any_orientation_oblique": [*ANY_ORIENTATION, *OBLIQUE],
    "occupancy_dice": ["--loss.occupancy_dice=0.2"],
    "no_dropout": ["--network.dropout=0"],
    "flat_levels": ["--network.flat_levels=[0,0,2]"],  # slices four times as thick as wide
    "fourth_stage": [
        '--network.stage_levels=[["e2","e3"],["e1","e2","d1","d2"],["e0","e1","d0","d1"],["d0","d1"]]',
        "--network.stage_channels=[96,64,32,32]",
    ],
    "deep_supervision": ["--network.deep_supervision=true"],
    "vertices_162": ["--network.template_subdivisions=2"],
    "vertices_2562": ["--network.template_subdivisions=4"],
}
AGREEMENT = ("dice", "assd_mm", "hd95_mm", "unet_dice")
CROSSING = ("crossing_percent", "crossing_others_percent", "shared_ml")
QUALITY = ("smallest_angle_p05_deg", "aspect_ratio_p95")
METRICS = (*AGREEMENT, *CROSSING, *QUALITY, "seconds_per_step", "minutes", "peak_mib")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--test_dir", required=True, help="labelled cases to evaluate on")
    parser.add_argument("--validation_split", action="store_true", help="only the cases that the training holds out")
    parser.add_argument("--cases", type=at_least(1), help="the first ones to evaluate on; by default all")
    parser.add_argument("--variants", nargs="+", default=["exact", "deep", "exact_longer"], choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--out", default="runs/ablations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--deep_cost", type=float, help="a deep step's time over an exact one's, for exact_longer")
    arguments, arguments.overrides = parser.parse_known_args()
    if "exact_longer" in arguments.variants and not arguments.deep_cost:
        raise InputError("--deep_cost: wanted the ratio that benchmarks/training_step.py prints, found none")
    for seed in range(arguments.seeds):
        for variant in arguments.variants:
            run(variant, seed, arguments)
            print_table(arguments)


def folder(variant: str, seed: int, arguments) -> Path:
    return Path(arguments.out) / f"{variant}_{seed}"


def run(variant: str, seed: int, arguments):
    """Train and evaluate one variant with one seed; leaves result.json in its folder."""
    path = folder(variant, seed, arguments)
    epochs = arguments.epochs
    if (path / "result.json").exists():
        return
    if variant == "exact_longer":
        epochs = round(epochs * arguments.deep_cost)
    laplacian = ["--loss.laplacian_epochs=" + str(max(epochs * 5 // 6, 1))]
    peak = call(
        "implicitmeshnet_train.py",
        f"--config={arguments.config}",
        f"--device={arguments.device}",
        f"--training.run_dir={path}",
        f"--training.seed={seed}",
        f"--training.epochs={epochs}",
        f"--training.validate_every={epochs}",
        *laplacian,
        *arguments.overrides,
        *VARIANTS[variant],
    )
    result = measured(path, arguments)
    history = load_checkpoint(path / "last.pt")["history"]
    seconds = statistics.median(row["seconds"] for row in history)
    result["seconds_per_step"] = seconds / steps_of_epoch(path)
    result["minutes"] = seconds * epochs / 60
    result["peak_mib"] = peak
    with atomic_path(path / "result.json") as temporary:
        temporary.write_text(json.dumps(result))


def measured(path: Path, arguments) -> dict[str, float]:
    """The metrics of a run's network that no training tells: over all cases, and each structure's Dice."""
    predictor = Predictor.from_config(path / "config.json", device=arguments.device)
    cases = find_cases(arguments.test_dir, labelled=True, channels=predictor.data.channels)
    if arguments.validation_split:
        _, cases = configured_split(cases, predictor.config)
    agreement = []
    meshes = []
    for case in cases[: arguments.cases]:
        image, labels = read_case(case)
        surfaces = predictor(image)
        agreement += agreement_of(surfaces, labels.data)
        meshes.append(mesh_metrics(surfaces))
    result = {}
    for rows, names in ((agreement, AGREEMENT), (meshes, (*CROSSING, *QUALITY))):
        for name in names:
            result[name] = statistics.mean(row[name] for row in rows)
    for structure in predictor.structures.names:
        found = [row["dice"] for row in agreement if row["structure"] == structure]
        if found:
            result[f"dice {structure}"] = statistics.mean(found)
    return result


def agreement_of(surfaces: Surfaces, labels: np.ndarray) -> list[dict]:
    """A row for each structure that a case's labels have."""
    rows = []
    ignored = surfaces.structures.ignored_in(labels)
    for structure, (name, value) in enumerate(surfaces.structures.written.items()):
        mask = surfaces.labelmap == value
        reference = surfaces.structures.mask(labels, structure)
        if reference.any():
            distances = surface_distances(mask, reference, surfaces.grid, ignored)
            row = {"structure": name, "dice": dice(mask, reference, ignored), **distances}
            rows.append(row | {"unet_dice": dice(surfaces.segmentation == value, reference, ignored)})
    return rows


def mesh_metrics(surfaces: Surfaces) -> dict[str, float]:
    """What is told of a case's meshes before the repair."""
    own, others = crossing_faces_of(surfaces.raw_vertices, surfaces.faces)
    raw = [(mesh, surfaces.faces) for mesh in surfaces.raw_vertices]
    quality = [triangle_quality(*mesh) for mesh in raw]
    shared_ml = overlaps_ml(raw, surfaces.structures, surfaces.sample.grid).sum() / 2
    values = (100 * own.mean(), 100 * others.mean(), shared_ml)
    metrics = dict(zip(CROSSING, map(float, values), strict=True))
    for name in QUALITY:
        metrics[name] = statistics.mean(each[name] for each in quality)
    return metrics


def steps_of_epoch(path: Path) -> int:
    config = load_config(path / "config.json")
    cases, _ = configured_split(find_cases(config.data.dir, labelled=True, channels=config.data.channels), config)
    return config.training.steps_of_epoch(len(cases))


def print_table(arguments) -> None:
    """Every variant that has results, a row each."""
    print(f"\n{'variant':<20}{'seeds':>6}" + "".join(f"{name:>24}" for name in METRICS))
    for variant in VARIANTS:
        files = [folder(variant, seed, arguments) / "result.json" for seed in range(arguments.seeds)]
        results = [json.loads(file.read_text()) for file in files if file.exists()]
        if results:
            row = f"{variant:<20}{len(results):>6}"
            for name in METRICS:
                row += f"{spread([result[name] for result in results]):>24}"
            others = []
            for name in results[0]:
                if name.startswith("dice "):
                    others.append(f"{name} {spread([result[name] for result in results])}")
            print(row, ", ".join(others), flush=True)


def spread(values: list[float]) -> str:
    """Mean of numbers and, where there are several, their standard deviation."""
    deviation = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{deviation}"


if __name__ == "__main__":
    run_script(main)
