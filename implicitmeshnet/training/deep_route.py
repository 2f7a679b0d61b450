"""The deep route: a DeepRepresentationNetwork and the mesh network train in turns."""

import torch

from implicitmeshnet.config import Config
from implicitmeshnet.models.drn import DeepRepresentationNetwork, drn_loss
from implicitmeshnet.models.weights import load_drn
from implicitmeshnet.training.run import take_step


class DeepRoute:
    """A pretrained DeepRepresentationNetwork in turns with a mesh network: frozen for its step, then trained on the
    meshes that it just predicted."""

    def __init__(self, drn: DeepRepresentationNetwork, learning_rate: float, weight_decay: float):
        self.drn = drn
        self.optimizer = torch.optim.AdamW(drn.parameters(), learning_rate, weight_decay=weight_decay)

    def distance(self, vertices, shape):
        """vertices (B, V, 3) -> SDF (B, X, Y, Z) on a grid of `shape`; the weights stand still."""
        return self.drn.eval().requires_grad_(False).distance(vertices, shape)

    def step(self, vertices, epoch: int):
        """One step of the network towards the exact distance of vertices (B, V, 3); the loss, a scalar."""
        loss = drn_loss(self.drn.train().requires_grad_(True), vertices)[0]
        take_step(loss, self.drn, self.optimizer, epoch)
        return loss.detach()


def load_deep_route(config: Config, device) -> DeepRoute | None:
    """The pretrained distance network of `route: deep`, with an optimiser of its own; None for `route: exact`."""
    if config.loss.route == "exact":
        return None
    drn = load_drn(config.loss.drn_config, config.network.template_subdivisions, device)
    return DeepRoute(drn, config.training.drn_learning_rate, config.training.weight_decay)
