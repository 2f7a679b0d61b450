"""Folders of cases in every layout, with odd files, names and dataset.json; and what finds and reads cases there."""

import csv
import gzip
import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from faults.children import expect
from faults.project import Project, run
from faults.values import Input, odd_bytes, odd_json, pick
from implicitmeshnet.config import DataConfig
from implicitmeshnet.data.dataset import find_cases, training_sample
from implicitmeshnet.data.nifti import read_labels, write_volume

FOLDER = "[data] \u00e9"
LAYOUTS = {  # image and label of case NAME, in a folder or two
    "MM-WHS": ("{}_image.nii.gz", "{}_label.nii.gz"),
    "Decathlon": ("images{split}/{}.nii.gz", "labels{split}/{}.nii.gz"),
    "nnU-Net": ("images{split}/{}_0000.nii.gz", "labels{split}/{}.nii.gz"),
    "flat": ("{}.nii.gz", "{}_label.nii.gz"),
}
STEMS = (
    "",
    ".",
    "-",
    "_image",
    "_label",
    "_0000",
    "_0001",
    "x_image_image",
    "x_label_image",
    "ct_0_0000",
    "ct_0_0001",
    "ct_0_image_0000",
    "CT_0_IMAGE",
    " a ",
    "a\nb",
    "[a] {b}*?",
    "a.b.nii",
    "a,b;c\"d'",
    "\u202e",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "\udce9",
    "x" * 200,
    "x" * 230,
    "x" * 240,
    "ct_0_mesh",
    "metrics",
    "..",
    "%s",
    "con",
    "None",
)
ENDINGS = (".nii.gz", ".nii", ".NII.GZ", ".nii.gz.nii.gz", "", ".gz", ".hdr", ".nrrd", ".nii.gz~")
JUNK = (
    ".DS_Store",
    "._ct_0_image.nii.gz",
    "Thumbs.db",
    "a.txt",
    "sub/ct_9_image.nii.gz",
    ".ct.nii.gz.partial-x-1-abcdefgh.gz",
)
DESCRIPTIONS = (
    {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "LV": 1, "LA": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    },
    {
        "name": "Heart",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "LV"},
        "numTraining": 3,
        "training": [{"image": "./imagesTr/ct_0.nii.gz", "label": "./labelsTr/ct_0.nii.gz"}],
        "test": [],
    },
    {"file_ending": ".nii"},
    {"file_ending": ".mha"},
)


class Folders:
    """Draws folders of two or three cases with something odd in them."""

    def __init__(self, project: Project):
        self.project = project.train()
        data = project.folder / "data"
        self.image, self.label = (
            gzip.decompress((data / f"ct_0_{kind}.nii.gz").read_bytes()) for kind in ("image", "label")
        )
        self.data = project.untrained("window").config.data

    def draw(self, folder: Path, generator: np.random.Generator) -> Input:
        root, changes = folder / FOLDER, []
        splits = pick(generator, (("Tr",), ("Tr",), ("Ts",), ("Tr", "Ts")))
        for split in splits:
            changes.append(self._write(root, pick(generator, list(LAYOUTS)), split, generator))
        if generator.random() < 0.4:
            content, change = odd_json(pick(generator, DESCRIPTIONS), generator)
            (root / "dataset.json").write_bytes(content)
            changes.append(f"dataset.json: {change}")
        for _ in range(pick(generator, (1, 1, 2))):
            changes.append(self._change(root, generator))
        command = [*self.project.command("evaluation", folder / "out"), f"--test_dir_in={root}"]
        split = pick(generator, (*splits, *splits, "Tr", "Ts"))
        uses = {
            "evaluation": partial(evaluate, command, folder / "out"),
            "training": partial(use_cases, root, split, self.data),
        }
        return Input("; ".join(changes), uses, re.compile(re.escape(FOLDER)))

    def _write(self, root: Path, layout: str, split: str, generator: np.random.Generator) -> str:
        """Sound cases of a layout."""
        for case in range(2):
            for name, content in zip(LAYOUTS[layout], (self.image, self.label), strict=True):
                path = root / name.format(f"ct_{case}", split=split)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(content, 1, mtime=0))
        return f"{layout} {split}"

    def _change(self, root: Path, generator: np.random.Generator) -> str:
        """Do something odd to one of the files or folders."""
        path = pick(generator, sorted(path for path in root.rglob("*") if not path.is_dir() or path.parent == root))
        name, regular = str(path.relative_to(root)), path.is_file()
        kind = pick(
            generator,
            (
                "rename",
                "rename",
                "rename",
                "copy",
                "replace",
                "replace",
                "damage",
                "remove",
                "grid",
                "swap",
                "junk",
                "unpack",
            ),
        )
        if kind in ("rename", "copy") and regular:
            other = path.parent / (pick(generator, STEMS) + pick(generator, (".nii.gz", ".nii.gz", *ENDINGS)))
            if not other.is_dir():
                path.rename(other) if kind == "rename" else other.write_bytes(path.read_bytes())
            return f"{name} {kind} {other.name[:40]!a}"
        if kind == "junk":
            junk = root / pick(generator, JUNK)
            junk.parent.mkdir(exist_ok=True)
            junk.write_bytes(generator.bytes(50))
            return f"{junk.name} beside it"
        if kind == "damage" and regular:
            content, change = odd_bytes(path.read_bytes(), generator)
            path.write_bytes(content)
            return f"{name} {change}"
        if kind in ("grid", "swap", "unpack") and regular and name.endswith(".nii.gz"):
            return f"{name} {self._other_content(path, kind, generator)}"
        remove(path)
        if kind != "replace":
            return f"no {name}"
        return f"{name} is {replace(path, generator)}"

    def _other_content(self, path: Path, kind: str, generator: np.random.Generator) -> str:
        if kind == "swap":
            path.write_bytes(gzip.compress(pick(generator, (self.image, self.label)), 1, mtime=0))
            return "an image or a label map"
        if kind == "unpack":
            path.with_suffix("").write_bytes(self.image)
            return "and the same as .nii"
        values = np.zeros(pick(generator, ((20, 20, 20), (20, 20, 19), (2, 2, 2), (40, 10, 20))), np.int16)
        values[:1], values[1:2] = 1, pick(generator, (1, 2, 3))
        affine = np.diag([4.0, 4.0, 4.0, 1.0])[pick(generator, ([0, 1, 2, 3], [1, 2, 0, 3]))]
        affine[0, 3] += pick(generator, (0.0, 0.01, 1.0, 1e5))
        write_volume(path, values, affine)
        return f"of shape {values.shape} elsewhere"


def remove(path: Path):
    """Take away a file, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


def replace(path: Path, generator: np.random.Generator) -> str:
    """Put something in place of a file that is no file."""
    kind = pick(
        generator,
        (
            "a folder",
            "a dead link",
            "a circle of links",
            "a pipe",
            "empty",
            "a link to a device",
            "a file that nobody may read",
            "a link to its folder",
        ),
    )
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "a file that nobody may read":
        path.touch(mode=0)
    else:
        targets = {
            "a dead link": "nowhere",
            "a circle of links": path.name,
            "a link to a device": "/dev/zero",
            "a link to its folder": ".",
        }
        path.symlink_to(targets[kind])
    return kind


def use_cases(root: Path, split: str, data: DataConfig):
    """What a training does with all cases."""
    for case in find_cases(root, labelled=True, split=split):
        training_sample(case, data)


def evaluate(command: list[str], out: Path):
    """An evaluation leaves whole results of the cases in its table, and nothing else, however it ends."""
    try:
        run(command)
    except SystemExit:
        check_results(out)
        raise
    check_results(out)


def check_results(out: Path):
    """Each case of the table has its files, and there are no others."""
    table, names = out / "metrics.csv", set()
    if table.exists():
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            cases = {row["case"] for row in csv.DictReader(file)}
        for case in cases:
            read_labels(out / f"{case}_mesh_labelmap.nii.gz")
            names |= {
                f"{case}_{ending}"
                for ending in (
                    "LV_mesh.ply",
                    "LA_mesh.ply",
                    "mesh_labelmap.nii.gz",
                    "unet_segmentation.nii.gz",
                    "preview.png",
                )
            }
        names |= {table.name, "statistics.csv", "statistics.json", "report.html"}
    found = {path.name for path in out.iterdir()} - {".records"} if out.exists() else set()
    expect(
        found == names,
        f"the files of the table's cases, found also {sorted(found - names)} and not {sorted(names - found)}",
    )
