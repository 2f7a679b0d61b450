"""The one kind of progress bar: where somebody can see it, and once."""

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, count: int | None = None) -> Iterator[Item]:
    """The items, with a bar named `what` where stderr is a terminal, in the first of a job's processes.

    `count` is how many they are, where they have no length.
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    hidden = None if rank == "0" else True  # None: where stderr is no terminal
    return iter(tqdm(items, what, count, disable=hidden, unit="case"))
