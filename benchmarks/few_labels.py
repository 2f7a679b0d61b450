"""What labels and a start from other weights are worth: the same training from few and from many cases.

    python benchmarks/few_labels.py --config=left_atrium.json --out=runs/few_labels --sizes 5 10 20 all \\
        --init_from configs_implicitmeshnet/whole_heart.json configs_implicitmeshnet/whole_heart_any.json

For each size a training from scratch and one from each of --init_from, all with the number of steps that --config asks
for. The table is of the last epoch's weights, so that no epoch is picked on its cases: means over the validation cases,
on their own grids. With --validations=8 each training is also validated so often, and
curves.png in --out shows the mean Dice over the minutes of training. A run that is done is not repeated, one that was
cut off goes on.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from calls import call
from matplotlib.figure import Figure

from implicitmeshnet.config import Config, load_config, save_config
from implicitmeshnet.data.dataset import configured_split, find_cases
from implicitmeshnet.script import run_script
from implicitmeshnet.surfaces.figures import colours, save_figure

METRICS = ("dice", "assd_mm", "hd95_mm")
SCRATCH = "scratch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="JSON config of the training from all cases")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument(
        "--sizes", type=size_of, nargs="+", default=[5, 10, 20, math.inf], help="training cases; default 5 10 20 all"
    )
    parser.add_argument(
        "--init_from", nargs="*", default=[], help="snapshots, or JSON configs of trained networks; default none"
    )
    parser.add_argument("--validations", type=int, default=1, help="of each training, at least; default 1, at its end")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    config = load_config(arguments.config)
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels)
    count = len(configured_split(cases, config)[0])
    sizes = sorted({min(size, count) for size in arguments.sizes})
    starts = {SCRATCH: None} | {Path(start).stem: start for start in arguments.init_from}
    print(f"{'cases':>6}  {'start':<20}{'structure':<16}" + "".join(f"{metric:>10}" for metric in METRICS), flush=True)
    for size in sizes:
        for name, init_from in starts.items():
            folder = out / f"{size}_{name}"
            train(arguments.config, folder, schedule(config, count, size, arguments.validations), init_from)
            print_rows(folder, config, size, name)
    if arguments.validations > 1:
        draw_curves(out, sizes, list(starts))


def size_of(text: str) -> float:
    """Training cases of an option's value, infinity for 'all'."""
    return math.inf if text == "all" else int(text)


def schedule(config: Config, count: int, size: int, validations: int = 1) -> list[str]:
    """Overrides for a training on `size` of `count` cases with the same steps in as many epochs."""
    steps = config.training.steps_of_epoch(count)
    repeats = max(1, round(steps * config.training.batch_size / size))
    return [
        f"--data.training_cases={size}",
        f"--training.repeats={repeats}",
        f"--training.validate_every={max(1, config.training.epochs // validations)}",
    ]


def train(config: str, folder: Path, overrides: list[str], init_from: str | None) -> None:
    """Train, or go on, in a process of its own, and evaluate the cases that are held out."""
    if (folder / "test/metrics.csv").exists():
        return
    start = [f"--training.init_from={init_from}"] if init_from else []
    options = [f"--training.run_dir={folder}", *overrides, *start]
    call("implicitmeshnet_train.py", f"--config={config}", *options, quiet=True)
    trained = load_config(folder / "config.json")
    trained.snapshot = str(folder / "last.pt")
    save_config(trained, folder / "last_epoch.json")
    call(
        "implicitmeshnet_eval.py",
        f"--implicitmeshnet_config={folder / 'last_epoch.json'}",
        f"--test_dir_in={trained.data.dir}",
        f"--test_dir_out={folder / 'test'}",
        "--validation_split",
        "--no-report",
        quiet=True,
    )


def print_rows(folder: Path, config: Config, size: int, start: str) -> None:
    with (folder / "test/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in config.data.structures:
        own = [row for row in rows if row["structure"] == name and row["dice"]]
        means = [statistics.fmean(float(row[metric]) for row in own) for metric in METRICS]
        print(f"{size:>6}  {start:<20}{name:<16}" + "".join(f"{mean:>10.3f}" for mean in means), flush=True)


def draw_curves(out: Path, sizes: Sequence[int], starts: Sequence[str]) -> None:
    """The mean Dice over the minutes of each training's steps, a panel for each size: curves.png in `out`."""
    figure = Figure(figsize=(4 * len(sizes), 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for size, panel in zip(sizes, panels, strict=True):
        for start, colour in colours(starts).items():
            minutes, scores = curve(out / f"{size}_{start}")
            panel.plot(minutes, scores, "o-", ms=3, color=colour, label=start)
        panel.set(title=f"{size} labelled cases", xlabel="minutes of training")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean Dice of held-out cases")
    panels[-1].legend(frameon=False, fontsize=9, loc="lower right")
    save_figure(figure, out / "curves.png")


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Minutes that the steps before each validation of a run took, and its mean Dice."""
    seconds = 0.0
    minutes = []
    scores = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        epoch = json.loads(line)
        seconds += epoch["seconds"]
        if epoch["scores"]:
            minutes.append(seconds / 60)
            scores.append(statistics.fmean(epoch["scores"].values()))
    return minutes, scores


if __name__ == "__main__":
    run_script(main)
