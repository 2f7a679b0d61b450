"""Synthetic whole-heart CT with labels in MM-WHS naming and values.

    python create_phantom_dataset.py --output_dir=data/phantom/train --cases=20

    python create_phantom_dataset.py --output_dir=data/phantom/wide --cases=5 --field_of_view=chest [--shift_mm=40]

    python create_phantom_dataset.py --output_dir=data/phantom/any --cases=200 --field_of_view=chest --spacing_mm=1.3 \
        --variety=wide --files=label,tissues        # what training.appearance 'random' takes

Writes ct_train_1001_image.nii.gz, ct_train_1001_label.nii.gz and ct_train_1001_tissues.nii.gz, ...: case n has number
1000 + n. The same seed, number, variety, field of view, shift and spacing give the same case; the first three
decide on the patient.
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
    parser.add_argument(
        "--spacing_mm", type=float, help="of all voxels, 0.3 to 8 mm; by default drawn, as clinics have it"
    )
    parser.add_argument(
        "--variety",
        default="usual",
        help="of the patients, usual (adults) or wide (docs/phantom.md); default %(default)s",
    )
    parser.add_argument(
        "--files", default="image,label,tissues", help="which are written, some of %(default)s, which is the default"
    )
    parser.add_argument("--workers", type=int, default=core_count(), help="processes; default %(default)s, the cores")
    parser.add_argument("--overwrite", action="store_true", help="replace cases that are there")
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import math
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.phantom.case import FIELDS_OF_VIEW, Phantom, create_case
from implicitmeshnet.phantom.patient import VARIETIES
from implicitmeshnet.progress import progress
from implicitmeshnet.script import InputError, make_folder, run_script

MAX_SHIFT_MM = 100
SPACINGS_MM = (0.3, 8.0)
KINDS = ("image", "label", "tissues")


def main() -> None:
    arguments = parse_arguments()
    check_arguments(arguments)
    output_dir = Path(arguments.output_dir)
    numbers = range(arguments.first_case, arguments.first_case + arguments.cases)
    kinds = arguments.files.split(",")
    if not arguments.overwrite:
        check_absent(output_dir, numbers, kinds)
    make_folder(output_dir, "--output_dir")
    draw = partial(
        create_case,
        arguments.seed,
        spacing_mm=arguments.spacing_mm,
        field_of_view=arguments.field_of_view,
        shift_mm=arguments.shift_mm,
        variety=arguments.variety,
    )
    write = partial(write_case, output_dir, kinds, draw)
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
    if arguments.variety not in VARIETIES:
        raise InputError(f"--variety: wanted {' or '.join(VARIETIES)}, found {arguments.variety}")
    if not (math.isfinite(arguments.shift_mm) and 0 <= arguments.shift_mm <= MAX_SHIFT_MM):
        raise InputError(f"--shift_mm: wanted a length of 0 to {MAX_SHIFT_MM} mm, found {arguments.shift_mm:g}")
    low, high = SPACINGS_MM
    if arguments.spacing_mm is not None and not low <= arguments.spacing_mm <= high:
        raise InputError(f"--spacing_mm: wanted a length of {low:g} to {high:g} mm, found {arguments.spacing_mm:g}")
    kinds = arguments.files.split(",")
    if not set(kinds) <= set(KINDS):
        raise InputError(f"--files: wanted some of {','.join(KINDS)}, found {arguments.files}")


def check_absent(folder: Path, numbers: Iterable[int], kinds: Sequence[str]) -> None:
    """Refuse with InputError to write over a file of these kinds of one of these cases."""
    for number in numbers:
        for kind in kinds:
            path = case_path(folder, number, kind)
            if path.exists():
                raise InputError(f"{path}: exists already; --overwrite replaces it")


def start_worker() -> None:
    """Give the process one thread and let it ignore Ctrl-C, so that it finishes its case: no image lacks its label."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def case_path(folder: Path, number: int, kind: str) -> Path:
    """A case's file of a kind."""
    return folder / f"ct_train_{1000 + number}_{kind}.nii.gz"


def write_case(folder: Path, kinds: Sequence[str], draw: Callable[[int], Phantom], number: int) -> None:
    """Draw a case and write its files of some kinds."""
    phantom = draw(number)
    for kind in kinds:
        write_volume(case_path(folder, number, kind), getattr(phantom, kind), phantom.affine)


if __name__ == "__main__":
    run_script(main)
