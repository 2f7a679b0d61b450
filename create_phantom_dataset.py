"""Synthetic whole-heart CT with labels in MM-WHS naming and values.

    python create_phantom_dataset.py --output_dir=data/phantom/train --cases=20

Writes ct_train_1001_image.nii.gz and ct_train_1001_label.nii.gz, ...: case n has number 1000 + n. A case depends on
the seed and its number alone.
"""

import argparse
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from implicitmeshnet.io import InputError, run_script
from implicitmeshnet.phantom import create_case
from implicitmeshnet.volume import write_volume


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder for the cases, made where missing")
    parser.add_argument("--cases", type=int, default=20, help="number of cases")
    parser.add_argument("--first_case", type=int, default=1, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace cases that are there")
    arguments = parser.parse_args()
    for name, lowest in (("cases", 1), ("first_case", 1), ("seed", 0), ("workers", 1)):
        value = getattr(arguments, name)
        if value < lowest:
            raise InputError(f"--{name}: wanted an integer of at least {lowest}, found {value}")

    output_dir = Path(arguments.output_dir)
    numbers = range(arguments.first_case, arguments.first_case + arguments.cases)
    present = [path for number in numbers for path in case_paths(output_dir, number) if path.exists()]
    if present and not arguments.overwrite:
        raise InputError(f"{present[0]}: exists already; --overwrite replaces it")
    write = partial(write_case, output_dir, arguments.seed)
    workers = min(arguments.workers, arguments.cases)
    # workers ignore Ctrl-C and finish their case, so that no image stands without its label
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for _ in tqdm(pool.map(write, numbers), total=len(numbers), desc="cases"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(f"{len(numbers)} cases written to {output_dir}")


def case_paths(folder: Path, number: int) -> list[Path]:
    """Image and label file of a case."""
    return [folder / f"ct_train_{1000 + number}_{kind}.nii.gz" for kind in ("image", "label")]


def write_case(folder: Path, seed: int, number: int):
    image, label, affine = create_case(seed, number)
    for path, data in zip(case_paths(folder, number), (image, label), strict=True):
        write_volume(path, data, affine)


if __name__ == "__main__":
    run_script(main)
