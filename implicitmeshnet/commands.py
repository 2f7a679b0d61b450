"""The console commands of an installed package: each runs the script of the repository's root that it stands for.

The scripts are installed as modules beside the package. They run as `__main__`, so a command does to the letter what
`python SCRIPT.py` does, and calls itself by the script's name.
"""

import runpy


def _run(script: str) -> None:
    runpy.run_module(script, run_name="__main__", alter_sys=True)


def create_config() -> None:
    """implicitmeshnet-config: a config for a folder of labelled cases."""
    _run("create_config")


def create_shape_model() -> None:
    """implicitmeshnet-shape-model: mean and modes of the meshes of an evaluation."""
    _run("create_shape_model")


def train() -> None:
    """implicitmeshnet-train: train from images and voxel labels."""
    _run("implicitmeshnet_train")


def evaluate() -> None:
    """implicitmeshnet-eval: images to meshes, label maps and metrics."""
    _run("implicitmeshnet_eval")


def pretrain_drn() -> None:
    """implicitmeshnet-pretrain-drn: pretrain the network that the deep route measures distances with."""
    _run("pretrain_drn")


def create_submission() -> None:
    """implicitmeshnet-submission: label maps for the MM-WHS challenge, and their scores."""
    _run("mmwhs_create_submission")


def create_phantoms() -> None:
    """implicitmeshnet-phantom: synthetic whole-heart CT with labels."""
    _run("create_phantom_dataset")
