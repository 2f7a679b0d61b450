"""The deep route: a DeepRepresentationNetwork and the mesh network train in turns."""

from collections.abc import Sequence
from pathlib import Path

import torch

from implicitmeshnet.config import Config, DrnConfig, load_config, save_config
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss
from implicitmeshnet.models.weights import load_drn
from implicitmeshnet.training import processes
from implicitmeshnet.training.run import adamw, take_step

DRN_CONFIG = "drn.json"  # in a run folder


class DeepRoute:
    """A pretrained DeepRepresentationNetwork that trains in turns with a mesh network.

    It is frozen while the mesh network takes a step through it, and then takes a step on the meshes just predicted.
    """

    def __init__(self, drn: DeepRepresentationNetwork, learning_rate: float, weight_decay: float):
        self.drn = drn
        self.model = processes.parallel(drn, drn.faces.device)
        self.optimizer = adamw(drn, learning_rate, weight_decay)

    def distance(self, vertices: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The SDF (B, X, Y, Z) on a grid of `shape` of vertices (B, V, 3): differentiable in these, weights frozen."""
        self.drn.eval().requires_grad_(False)
        return self.drn.distance(vertices, shape)

    def step(self, vertices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step towards the exact distance of vertices (B, V, 3): its loss, and 1 where it was left out, scalars."""
        self.drn.train().requires_grad_(True)
        loss, _ = drn_loss(self.drn, self.model(vertices), vertices)
        return loss.detach(), take_step(loss, self.drn, self.optimizer)


def load_deep_route(config: Config, device: torch.device, run_dir: Path | None = None) -> DeepRoute | None:
    """The pretrained distance network of `route: deep`, with an optimiser of its own; None for `route: exact`.

    A run that resumes in `run_dir` has its layers there, and its weights in last.pt.
    """
    if config.loss.route == "exact":
        return None
    assert config.loss.drn_config is not None, "the config's rules ask for it"
    if run_dir and (run_dir / DRN_CONFIG).exists() and (run_dir / "last.pt").exists():
        layers = load_config(run_dir / DRN_CONFIG, kind=DrnConfig).network
        drn = DeepRepresentationNetwork(layers).to(device)
    else:
        drn = load_drn(config.loss.drn_config, config.network.template_subdivisions, device)
    return DeepRoute(drn, config.training.drn_learning_rate, config.training.weight_decay)


def keep_drn_config(config: Config, run_dir: Path) -> None:
    """Put the distance network's config, without weights, into the folder of a run that begins by `route: deep`."""
    own = run_dir / DRN_CONFIG
    if config.loss.drn_config is not None and not own.exists():
        save_config(load_config(config.loss.drn_config, kind=DrnConfig), own)
