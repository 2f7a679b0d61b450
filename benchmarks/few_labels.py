"""What labels and a start from other weights are worth: the same training from few and from many cases.

    python benchmarks/few_labels.py --config=left_atrium.json --out=runs/few_labels --sizes 5 10 20 \\
        --init_from=configs_implicitmeshnet/whole_heart.json

For each size, and for all training cases, a training from scratch and one from --init_from, all with the number of
steps that --config asks for and validated at their end alone, so that no epoch is picked on the cases of the table. A
run that is done is not repeated, one that was cut off goes on. Metrics are means over the validation cases, on their
own grids.
"""

import argparse
import csv
import statistics
from pathlib import Path

from calls import call

from implicitmeshnet.config import Config, load_config
from implicitmeshnet.data.dataset import configured_split, find_cases
from implicitmeshnet.script import run_script

METRICS = ("dice", "assd_mm", "hd95_mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON config of the training from all cases")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--sizes", type=int, nargs="*", default=[5, 10, 20], help="training cases; default 5 10 20")
    parser.add_argument("--init_from", help="snapshot, or JSON config of a trained network; default from scratch alone")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels)
    count = len(configured_split(cases, config)[0])
    print(f"{'cases':>6}  {'start':<12}{'structure':<16}" + "".join(f"{metric:>10}" for metric in METRICS), flush=True)
    for size in [*(size for size in arguments.sizes if size < count), count]:
        starts = {"scratch": None, "init_from": arguments.init_from} if arguments.init_from else {"scratch": None}
        for name, init_from in starts.items():
            folder = Path(arguments.out) / f"{size}_{name}"
            train(arguments.config, folder, schedule(config, count, size), init_from)
            print_rows(folder, config, size, name)


def schedule(config: Config, count: int, size: int) -> list[str]:
    """Overrides for a training on `size` of `count` cases with the same steps in as many epochs."""
    steps = config.training.steps_of_epoch(count)
    repeats = max(1, round(steps * config.training.batch_size / size))
    return [
        f"--data.training_cases={size}",
        f"--training.repeats={repeats}",
        f"--training.validate_every={config.training.epochs}",
    ]


def train(config: str, folder: Path, overrides: list[str], init_from: str | None) -> None:
    """Train, or go on, in a process of its own, and evaluate the cases that are held out."""
    if (folder / "test/metrics.csv").exists():
        return
    start = [f"--training.init_from={init_from}"] if init_from else []
    options = [f"--training.run_dir={folder}", *overrides, *start]
    call("implicitmeshnet_train.py", f"--config={config}", *options, quiet=True)
    data_dir = load_config(folder / "config.json").data.dir
    call(
        "implicitmeshnet_eval.py",
        f"--implicitmeshnet_config={folder / 'config.json'}",
        f"--test_dir_in={data_dir}",
        f"--test_dir_out={folder / 'test'}",
        "--validation_split",
        quiet=True,
    )


def print_rows(folder: Path, config: Config, size: int, start: str) -> None:
    with (folder / "test/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in config.data.structures:
        own = [row for row in rows if row["structure"] == name and row["dice"]]
        means = [statistics.fmean(float(row[metric]) for row in own) for metric in METRICS]
        print(f"{size:>6}  {start:<12}{name:<16}" + "".join(f"{mean:>10.3f}" for mean in means), flush=True)


if __name__ == "__main__":
    run_script(main)
