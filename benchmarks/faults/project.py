"""A data set of two blobs and configs that train on it in seconds, for what needs trained networks and runs."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import torch

from faults.children import call
from implicitmeshnet.config import QUANTILES, REPOSITORY, load_config
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.plausibility import intensity_statistics
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces import figures

STRUCTURES = {"LV": [1], "LA": [2]}
CASES = 4
SIDE, SPACING_MM = 20, 4.0
NETWORK = {
    "encoder_channels": [4, 8],
    "decoder_channels": [4],
    "localiser_channels": [4, 4],
    "template_subdivisions": 1,
    "stage_levels": [["e1"], ["e0", "d0"]],
    "stage_channels": [8, 4],
    "displacement_factor": 0.1,
}
DATA = {
    "structures": STRUCTURES,
    "shape": [8, 8, 8],
    "spacing_mm": 8.0,
    "region": "found",
    "validation_cases": 1,
    "window_hu": 4.0,
    "level_hu": 1.0,
}
DISTANCE_NETWORK = {
    "shape": [12, 12, 12],
    "channels": [8, 8],
    "groups": 4,
    "blocks": [1, 1],
    "graph_channels": 4,
    "graph_blocks": 1,
    "template_subdivisions": 1,
}
LONGEST_TRAINING_S = 600.0
FINDS_EVERYTHING = 10.0  # of a localiser's odds, so that images get as far as the networks
SCRIPTS = {
    "training": "implicitmeshnet_train.py",
    "pretraining": "pretrain_drn.py",
    "evaluation": "implicitmeshnet_eval.py",
}


class Project:
    """`folder` with data/, config.json and drn.json, and the commands that use them."""

    def __init__(self, folder: Path, epochs: int = 2):
        self.folder, self.epochs = folder, epochs
        figures.RENDER_PIXELS = 40  # in children too
        generator = np.random.default_rng(0)
        for case in range(CASES):
            label = np.zeros((SIDE, SIDE, SIDE), np.int16)
            label[4:10, 5:12, 6:13], label[11:16, 6:13, 5:12] = 1, 2
            image = label + generator.normal(0, 0.1, label.shape)
            for kind, values in (("image", image), ("label", label)):
                write_volume(folder / f"data/ct_{case}_{kind}.nii.gz", values, np.diag([SPACING_MM] * 3 + [1.0]))
        training = {"epochs": epochs, "repeats": 2, "validate_every": 1, "learning_rate": 0.01}
        self._write("config", {"data": DATA | {"dir": str(folder / "data")}, "network": NETWORK, "training": training})
        del training["repeats"]
        self._write("drn", {"network": DISTANCE_NETWORK, "training": training | {"shapes": 4, "validation_shapes": 2}})

    def _write(self, name: str, tree: dict):
        (self.folder / f"{name}.json").write_text(json.dumps(tree))

    def command(self, what: str, out: Path) -> list[str]:
        """The script and its options that train, pretrain or evaluate into a folder."""
        if what == "evaluation":
            options = [
                f"--implicitmeshnet_config={self.folder / 'training/config.json'}",
                f"--test_dir_in={self.folder / 'data'}",
                f"--test_dir_out={out}",
            ]
        else:
            config = "config" if what == "training" else "drn"
            options = [f"--config={self.folder / config}.json", f"--training.run_dir={out}"]
        return [str(REPOSITORY / SCRIPTS[what]), *options, "--device=cpu"]

    def train(self) -> "Project":
        """The runs `training` and `pretraining` beside the data, where they are missing."""
        for what in ("training", "pretraining"):
            command = self.command(what, self.folder / what)
            if (self.folder / what).exists():
                continue
            outcome = call(lambda command=command: run(command), re.compile(""), LONGEST_TRAINING_S)
            if outcome.kind != "used":
                raise InputError(f"{what}: wanted a run without error, found {outcome.kind}: {outcome.text}")
        return self

    def untrained(self, intensity: str) -> Predictor:
        """A network without training that finds its structures everywhere."""
        overrides = [f"--data.intensity={intensity}", "--network.template=centred"]
        config = load_config(self.folder / "config.json", overrides)
        config.data.intensity_statistics = intensity_statistics(np.zeros((2, len(QUANTILES))))
        torch.manual_seed(0)
        network = build_network(config)
        with torch.no_grad():
            network.localiser.unet.head.bias[1] = FINDS_EVERYTHING
        return Predictor(network.eval(), config)


def run(command: list[str]):
    """A script in this process, as `python` with that command runs it."""
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
