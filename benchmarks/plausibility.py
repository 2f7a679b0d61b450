"""How often evaluation warns, of cases that are the network's and of others: folders of labelled cases, one a row.

    python benchmarks/plausibility.py --config=runs/ventricles_mr/config.json --held_out=data/ACDC \
        --others data/LA2018 data/phantom/test

--held_out is the folder that the network was trained on: its validation cases alone are used, and no warning is wanted.
Each of --others is another modality or another organ, and every case of it wants one. --offset adds a number to the
intensities of all cases, as a CT that is stored with 1024 more than HU; a row where nothing is expected to be right.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from timing import at_least
from tqdm import tqdm

from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case
from implicitmeshnet.predict import NothingFound, Predictor
from implicitmeshnet.script import run_script

KINDS = {"intensities": "unlike the training's", "agreement": "disagree"}
"""What is counted, by what its warnings say."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--held_out", required=True)
    parser.add_argument("--others", nargs="*", default=[])
    parser.add_argument("--cases", type=at_least(1), default=12, help="of each of --others, the first ones")
    parser.add_argument("--offset", type=float, default=0.0)
    arguments = parser.parse_args()
    predictor = Predictor.from_config(arguments.config)
    config = predictor.config
    cases = find_cases(arguments.held_out, labelled=True, channels=config.data.channels)
    _, held_out = configured_split(cases, config)
    print(f"{'folder':<40}{'cases':>7}{'warned':>8}{'intensities':>13}{'agreement':>11}{'nothing found':>15}")
    print_row(predictor, f"{arguments.held_out}, held out", held_out, arguments.offset)
    for folder in arguments.others:
        print_row(
            predictor,
            folder,
            find_cases(folder, labelled=True, channels=config.data.channels)[: arguments.cases],
            arguments.offset,
        )


def print_row(predictor: Predictor, name: str, cases: list[Case], offset: float):
    found = [outcomes(predictor, case, offset) for case in tqdm(cases, leave=False)]
    counts = Counter(kind for kinds in found for kind in kinds)
    warned = sum(map(bool, found))
    row = f"{Path(name).name:<40}{len(cases):>7}{warned:>8}"
    for kind, width in zip((*KINDS, "nothing found"), (13, 11, 15), strict=True):
        row += f"{counts[kind]:>{width}}"
    print(row, flush=True)


def outcomes(predictor: Predictor, case: Case, offset: float) -> set[str]:
    """The kinds of warnings of one case; what the header says is none of them."""
    image, _ = read_case(case)
    try:
        warnings = predictor(replace(image, data=image.data + offset)).warnings
    except NothingFound:
        return {"nothing found"}
    text = "\n".join(warnings)
    return {kind for kind, phrase in KINDS.items() if phrase in text}


if __name__ == "__main__":
    run_script(main)
