"""What an evaluation costs with all structures of a trained network and with the first of them alone, in turns.

    python benchmarks/evaluation.py --config=configs_implicitmeshnet/whole_heart.json --test_dir=data/phantom/test

Runs implicitmeshnet_eval.py as a user does, a process each time. Seconds are the median, per case, from opening the
image to meshes and label maps, without files, previews and metrics; memory is the process's peak.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import at_least

from implicitmeshnet.config import REPOSITORY, load_config, save_config
from implicitmeshnet.data.dataset import find_cases
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import load_network, save_snapshot, snapshot_path
from implicitmeshnet.script import InputError, run_script


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--test_dir", required=True, help="labelled cases")
    parser.add_argument("--cases", type=at_least(1), default=3)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    network = load_network(config, snapshot_path(config, arguments.config))
    first = next(iter(config.data.structures))
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for case in find_cases(arguments.test_dir, labelled=True)[: arguments.cases]:
            for kind, path in (("image", case.image), ("label", case.label)):
                ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
                (images / f"{case.name}_{kind}{ending}").symlink_to(path.absolute())
        rows = {
            f"all {len(config.data.structures)} structures": write(Path(folder) / "all", network, config),
            f"{first} alone": write(Path(folder) / "one", one_structure(network, config, first), config),
        }
        taken = {name: [] for name in rows}
        for _ in range(arguments.rounds):
            for name, path in rows.items():
                taken[name].append(run(path, images, arguments.device))
    print(f"{'':<20}{'seconds a case':>16}{'peak MiB':>10}{'ratio':>8}")
    medians = {}
    for name, runs in taken.items():
        seconds, peak = zip(*runs, strict=True)
        medians[name] = (statistics.median(seconds), statistics.median(peak))
    fastest = min(medians.values())[0]
    for name, (seconds, peak) in medians.items():
        print(f"{name:<20}{seconds:>16.2f}{peak:>10.0f}{seconds / fastest:>8.2f}")


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


def run(folder: Path, images: Path, device: str):
    """Seconds a case and the process's peak memory in MiB."""
    process = subprocess.Popen(
        [
            sys.executable,
            str(REPOSITORY / "implicitmeshnet_eval.py"),
            f"--device={device}",
            f"--test_dir_in={images}",
            f"--implicitmeshnet_config={folder / 'config.json'}",
            f"--test_dir_out={folder / 'out'}",
        ]
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError(
            f"implicitmeshnet_eval.py: wanted a run without error, found exit status"
            f" {os.waitstatus_to_exitcode(status)}"
        )
    with (folder / "out/metrics.csv").open() as file:
        seconds = {row["case"]: float(row["seconds"]) for row in csv.DictReader(file)}
    return statistics.median(seconds.values()), usage.ru_maxrss / 1024


if __name__ == "__main__":
    run_script(main)
