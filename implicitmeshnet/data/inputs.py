"""What a user hands in, a file or a folder of any mix, as cases."""

import sys
from dataclasses import replace
from pathlib import Path

from implicitmeshnet.data.dataset import Case, find_cases, has_images, skipped_maps, splits_of
from implicitmeshnet.data.dicom import Series, find_series, is_dicom, is_zip
from implicitmeshnet.data.formats import ENDINGS, stem_of
from implicitmeshnet.script import InputError

NAMED_FILES = 3  # that a message lists


def input_cases(path: Path | str, split: str = "Tr", channels: int = 1) -> list[Case]:
    """The cases of a file or folder, sorted by name.

    A folder has those of `find_cases`, where it is no data set also each DICOM series in it or below, and each series
    of the zips in it. A series is called after its folder or zip, its number and its description, and is no case of
    several channels. What cannot be looked into, as a damaged zip, is a case too: reading it says why. A line on
    standard error tells of files that are left out, as label maps by their names. Raises InputError for a path that is
    not there, for a folder without cases, and as `find_cases`.
    """
    path = Path(path)
    if path.is_dir():
        return _cases_of_folder(path, split, channels)
    if not path.exists():
        raise InputError(f"{path}: wanted a folder of cases or an image, found none")
    if is_zip(path) or is_dicom(path):
        return _told_apart(_cases_of_series(path))
    return [_case_of_file(path, channels)]


def _cases_of_folder(folder: Path, split: str, channels: int) -> list[Case]:
    if splits_of(folder) or channels > 1:
        return find_cases(folder, labelled=False, split=split, channels=channels)
    series = _cases_of_series(folder)
    for path in sorted(folder.iterdir()):
        if is_zip(path) and not path.name.startswith("."):
            series += _cases_of_series(path)
    volumes = [] if series and not has_images(folder) else find_cases(folder, labelled=False)
    _tell_skipped(folder, skipped_maps(folder, volumes))
    return sorted([*volumes, *_told_apart(series)], key=lambda case: case.name)


def _tell_skipped(folder: Path, names: list[str]) -> None:
    """A line on the files of a folder that are taken for no images, where there are some."""
    if names:
        more = ", ..." if names[NAMED_FILES:] else ""
        print(f"{folder}: left out, as label maps by name: {', '.join(names[:NAMED_FILES])}{more}", file=sys.stderr)


def _cases_of_series(place: Path) -> list[Case]:
    """The series of a folder, zip or file; where these cannot be told, the place itself."""
    try:
        series = find_series(place)
    except InputError:
        return [Case(Series(place, ()).case_name, place, None)]
    if not series and not place.is_dir():
        return [Case(Series(place, ()).case_name, place, None)]
    return [Case(each.case_name, each.place, None, series=each) for each in series]


def _told_apart(cases: list[Case]) -> list[Case]:
    """The same cases, those of a name that is taken with a number behind it."""
    taken: set[str] = set()
    apart = []
    for case in cases:
        name = case.name
        number = 2
        while name in taken:
            name = f"{case.name}_{number}"
            number += 1
        taken.add(name)
        apart.append(replace(case, name=name))
    return apart


def _case_of_file(path: Path, channels: int) -> Case:
    """The case of an image's file, with the label map that lies beside it where there is one."""
    if channels > 1:
        of_folder = find_cases(path.parent, labelled=False, channels=channels)
        chosen = [case for case in of_folder if path in case.images]
        if not chosen:
            raise InputError(f"{path}: wanted one of an image's {channels} channels, found no such file")
        return chosen[0]
    name = stem_of(path).removesuffix("_image")
    beside = [path.with_name(f"{name}_label{ending}") for ending in ENDINGS]
    label = next((each for each in beside if each.is_file()), None)
    return Case(name, path, label)
