"""What an evaluation costs: by structures, by phase and size of the image, by number of processes.

    python benchmarks/evaluation.py --config=configs_implicitmeshnet/whole_heart.json --test_dir=data/phantom/test \\
        --what=structures|phases|jobs

Runs implicitmeshnet_eval.py as a user does, a process each time, in turns, and gives medians over the rounds.

structures: all of the network and the first alone; seconds are a case's from opening the image to meshes and label
maps, without files, previews and metrics; memory is the process's peak.
phases: the first case resampled to 10, 56 and 200 million voxels, with fresh noise of 15 HU so that it compresses as a
scanner's images do; seconds by phase as statistics.json has them, and the share of reading, network and writing.
jobs: twelve links to the first case, by one process and by two; seconds of the whole command.
"""

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import at_least

from implicitmeshnet.config import REPOSITORY, load_config, save_config
from implicitmeshnet.data.dataset import find_cases
from implicitmeshnet.data.nifti import read_image, write_volume
from implicitmeshnet.data.volume import Grid, canonical, resample_image
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import load_network, save_snapshot, snapshot_path
from implicitmeshnet.script import InputError, run_script

MILLIONS = (10, 56, 200)
NOISE_HU = 15
UNAVOIDABLE = ("read", "network", "write")
JOBS, CASES_OF_JOBS = (1, 2), 12


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--test_dir", required=True, help="labelled cases")
    parser.add_argument("--what", choices=("structures", "phases", "jobs"), default="structures")
    parser.add_argument("--cases", type=at_least(1), default=3, help="of --what=structures")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"structures": by_structures, "phases": by_phase, "jobs": by_jobs}[arguments.what](arguments, Path(folder))


def by_structures(arguments: argparse.Namespace, folder: Path):
    config = load_config(arguments.config)
    network = load_network(config, snapshot_path(config, arguments.config))
    first = next(iter(config.data.structures))
    images = folder / "images"
    images.mkdir()
    for case in find_cases(arguments.test_dir, labelled=True)[: arguments.cases]:
        for kind, path in (("image", case.image), ("label", case.label)):
            ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
            (images / f"{case.name}_{kind}{ending}").symlink_to(path.absolute())
    rows = {
        f"all {len(config.data.structures)} structures": write(folder / "all", network, config),
        f"{first} alone": write(folder / "one", one_structure(network, config, first), config),
    }
    taken = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, path in rows.items():
            _, peak = run(path / "config.json", images, path / "out", arguments.device, "--overwrite")
            taken[name].append((seconds_a_case(path / "out"), peak))
    print(f"{'':<20}{'seconds a case':>16}{'peak MiB':>10}{'ratio':>8}")
    medians = {}
    for name, runs in taken.items():
        seconds, peak = zip(*runs, strict=True)
        medians[name] = (statistics.median(seconds), statistics.median(peak))
    fastest = min(medians.values())[0]
    for name, (seconds, peak) in medians.items():
        print(f"{name:<20}{seconds:>16.2f}{peak:>10.0f}{seconds / fastest:>8.2f}")


def by_phase(arguments: argparse.Namespace, folder: Path):
    image = find_cases(arguments.test_dir, labelled=True)[0].image
    columns = {}
    for millions in MILLIONS:
        # In another process: the peak of one that is started counts from what this one has when it starts it.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_sized, args=(folder / str(millions), image, millions)
        )
        writer.start()
        writer.join()
        columns[millions] = []
    peaks = {millions: [] for millions in MILLIONS}
    for _ in range(arguments.rounds):
        for millions, runs in columns.items():
            out = folder / f"out_{millions}"
            seconds, peak = run(arguments.config, folder / str(millions), out, arguments.device, "--overwrite")
            (case,) = json.loads((out / "statistics.json").read_text())["cases"]
            runs.append(case["phases"] | {"the case": sum(case["phases"].values()), "the command": seconds})
            peaks[millions].append(peak)
    print(f"{'million voxels':<20}" + "".join(f"{millions:>9}" for millions in MILLIONS))
    for phase in columns[MILLIONS[0]][0]:
        medians = [statistics.median(run[phase] for run in runs) for runs in columns.values()]
        print(f"{phase:<20}" + "".join(f"{seconds:>9.2f}" for seconds in medians))
    shares = []
    for runs in columns.values():
        shares.append(statistics.median(sum(run[each] for each in UNAVOIDABLE) / run["the case"] for run in runs))
    print(f"{' + '.join(UNAVOIDABLE):<20}" + "".join(f"{share:>9.0%}" for share in shares))
    print(f"{'peak MiB':<20}" + "".join(f"{statistics.median(each):>9.0f}" for each in peaks.values()))


def write_sized(folder: Path, path: Path, millions: int):
    """A case of so many million voxels, of an image's extent."""
    image = canonical(read_image(path))
    factor = (millions * 1e6 / image.data.size) ** (1 / 3)
    x, y, z = (round(count * factor) for count in image.data.shape)
    affine = image.grid.affine.copy()
    affine[:3, :3] /= factor
    data = resample_image(image, Grid((x, y, z), affine), background=float(image.data.min()))
    rng = np.random.default_rng(0)
    for plane in data:  # one at a time, as the whole noise would be another volume
        plane += rng.normal(0, NOISE_HU, plane.shape)
    write_volume(folder / "case_image.nii.gz", data.round().astype(np.int16), affine)


def by_jobs(arguments: argparse.Namespace, folder: Path):
    image = find_cases(arguments.test_dir, labelled=True)[0].image
    images = folder / "images"
    images.mkdir()
    for number in range(CASES_OF_JOBS):
        (images / f"{number}_{image.name}").symlink_to(image.absolute())
    taken = {jobs: [] for jobs in JOBS}
    for _ in range(arguments.rounds):
        for jobs, runs in taken.items():
            out = folder / f"out_{jobs}"
            runs.append(run(arguments.config, images, out, arguments.device, f"--jobs={jobs}", "--overwrite")[0])
    medians = {jobs: statistics.median(runs) for jobs, runs in taken.items()}
    print(f"{'jobs':<8}{'seconds':>10}{'seconds a case':>16}{'ratio':>8}")
    for jobs, seconds in medians.items():
        print(f"{jobs:<8}{seconds:>10.1f}{seconds / CASES_OF_JOBS:>16.2f}{medians[1] / seconds:>8.2f}")


def one_structure(network, config, name: str):
    """The weights of one structure's share of a network; the config becomes that structure's."""
    index = list(config.data.structures).index(name)
    config.data.structures, config.data.encloses = {name: config.data.structures[name]}, {}
    for key in ("template_centres", "template_radii"):
        rows = getattr(config.network, key)
        setattr(config.network, key, rows and (rows[index],))
    state = network.state_dict()
    for key, value in state.items():
        if key.startswith("decoder."):
            state[key] = value[index : index + 1]
        elif key.startswith("unet.head."):
            state[key] = value[[0, index + 1]]
    share = build_network(config)
    share.load_state_dict(state)
    return share


def write(folder: Path, network, config) -> Path:
    """A folder with a snapshot and its config."""
    config.snapshot = None
    save_snapshot(folder / "best.pt", network)
    save_config(config, folder / "config.json")
    return folder


def run(config: Path | str, images: Path, out: Path, device: str, *options: str) -> tuple[float, float]:
    """Seconds of an evaluation, from the command on, and its process's peak memory in MiB."""
    command = [sys.executable, str(REPOSITORY / "implicitmeshnet_eval.py"), f"--device={device}", f"--input={images}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"--implicitmeshnet_config={config}", f"--output={out}", *options], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError(
            f"implicitmeshnet_eval.py: wanted a run without error, found exit status"
            f" {os.waitstatus_to_exitcode(status)}"
        )
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def seconds_a_case(out: Path) -> float:
    with (out / "metrics.csv").open() as file:
        seconds = {row["case"]: float(row["seconds"]) for row in csv.DictReader(file)}
    return statistics.median(seconds.values())


if __name__ == "__main__":
    run_script(main)
