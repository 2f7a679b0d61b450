"""The deep route: a DeepRepresentationNetwork and the mesh network train in turns."""

from collections.abc import Sequence

import torch

from implicitmeshnet.config import Config
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss
from implicitmeshnet.models.weights import load_drn
from implicitmeshnet.training.run import take_step


class DeepRoute:
    """A pretrained DeepRepresentationNetwork that trains in turns with a mesh network.

    It is frozen while the mesh network takes a step through it, and then takes a step on the meshes just predicted.
    """

    def __init__(self, drn: DeepRepresentationNetwork, learning_rate: float, weight_decay: float):
        self.drn = drn
        self.optimizer = torch.optim.AdamW(drn.parameters(), learning_rate, weight_decay=weight_decay)

    def distance(self, vertices: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The SDF (B, X, Y, Z) on a grid of `shape` of vertices (B, V, 3): differentiable in these, weights frozen."""
        self.drn.eval().requires_grad_(False)
        return self.drn.distance(vertices, shape)

    def step(self, vertices: torch.Tensor, number: int) -> torch.Tensor:
        """One step towards the exact distance of vertices (B, V, 3), in an epoch of that number; its loss, a scalar."""
        self.drn.train().requires_grad_(True)
        loss, *_ = drn_loss(self.drn, vertices)
        take_step(loss, self.drn, self.optimizer, number)
        return loss.detach()


def load_deep_route(config: Config, device: torch.device) -> DeepRoute | None:
    """The pretrained distance network of `route: deep`, with an optimiser of its own; None for `route: exact`."""
    if config.loss.route == "exact":
        return None
    assert config.loss.drn_config is not None, "the config's rules ask for it"
    drn = load_drn(config.loss.drn_config, config.network.template_subdivisions, device)
    return DeepRoute(drn, config.training.drn_learning_rate, config.training.weight_decay)
