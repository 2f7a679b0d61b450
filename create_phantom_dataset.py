"""Synthetic whole-heart CT with labels in MM-WHS naming and values.

    python create_phantom_dataset.py --output_dir=data/phantom/train --cases=20

    python create_phantom_dataset.py --output_dir=data/phantom/wide --cases=5 --field_of_view=chest [--shift_mm=40]

Writes ct_train_1001_image.nii.gz and ct_train_1001_label.nii.gz, ...: case n has number 1000 + n. The same
seed, number, field of view and shift give the same case; the seed and the number alone decide on the patient.
"""

import argparse

from implicitmeshnet.script import core_count, exit_at_interrupt


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments; their values are not checked yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder for the cases, made where missing")
    parser.add_argument("--cases", type=int, default=20, help="number of cases; default %(default)s")
    parser.add_argument("--first_case", type=int, default=1, help="number of the first case; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all patients and views; default %(default)s")
    parser.add_argument("--field_of_view", default="cardiac", help="cardiac or chest; default %(default)s")
    parser.add_argument(
        "--shift_mm",
        type=float,
        default=0.0,
        help="distance of the heart from the volume's centre, in mm, 0 to 100; default %(default)g",
    )
    parser.add_argument("--workers", type=int, default=core_count(), help="processes; default %(default)s, the cores")
    parser.add_argument("--overwrite", action="store_true", help="replace cases that are there")
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import math
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.phantom.case import FIELDS_OF_VIEW, create_case
from implicitmeshnet.progress import progress
from implicitmeshnet.script import InputError, make_folder, run_script

MAX_SHIFT_MM = 100


def main() -> None:
    arguments = parse_arguments()
    check_arguments(arguments)
    output_dir = Path(arguments.output_dir)
    numbers = range(arguments.first_case, arguments.first_case + arguments.cases)
    if not arguments.overwrite:
        check_absent(output_dir, numbers)
    make_folder(output_dir, "--output_dir")
    write = partial(write_case, output_dir, arguments.seed, arguments.field_of_view, arguments.shift_mm)
    workers = min(arguments.workers, arguments.cases)
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        try:
            for _ in progress(pool.map(write, numbers), "cases", len(numbers)):
                pass
        except BaseException:
            # Also at Ctrl-C: the cases under way are finished, and no other one is begun.
            pool.shutdown(cancel_futures=True)
            raise
    print(f"{len(numbers)} cases written to {output_dir}")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse values out of range with InputError."""
    for name, lowest in (("cases", 1), ("first_case", 1), ("seed", 0), ("workers", 1)):
        value = getattr(arguments, name)
        if value < lowest:
            raise InputError(f"--{name}: wanted an integer of at least {lowest}, found {value}")
    if arguments.field_of_view not in FIELDS_OF_VIEW:
        raise InputError(f"--field_of_view: wanted {' or '.join(FIELDS_OF_VIEW)}, found {arguments.field_of_view}")
    if not (math.isfinite(arguments.shift_mm) and 0 <= arguments.shift_mm <= MAX_SHIFT_MM):
        raise InputError(f"--shift_mm: wanted a length of 0 to {MAX_SHIFT_MM} mm, found {arguments.shift_mm:g}")


def check_absent(folder: Path, numbers: Iterable[int]) -> None:
    """Refuse with InputError to write over a file of one of these cases."""
    for number in numbers:
        for path in case_paths(folder, number):
            if path.exists():
                raise InputError(f"{path}: exists already; --overwrite replaces it")


def start_worker() -> None:
    """Give the process one thread and let it ignore Ctrl-C, so that it finishes its case: no image lacks its label."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def case_paths(folder: Path, number: int) -> list[Path]:
    """The image's and the label's file of a case."""
    return [folder / f"ct_train_{1000 + number}_{kind}.nii.gz" for kind in ("image", "label")]


def write_case(folder: Path, seed: int, field_of_view: str, shift_mm: float, number: int) -> None:
    """Draw a case and write its two files."""
    image, label, affine = create_case(seed, number, field_of_view=field_of_view, shift_mm=shift_mm)
    for path, data in zip(case_paths(folder, number), (image, label), strict=True):
        write_volume(path, data, affine)


if __name__ == "__main__":
    run_script(main)
