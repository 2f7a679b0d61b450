"""Several networks of the same structures as one: their vertices and their probabilities are averaged."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from implicitmeshnet.models.localiser import CoarsePass
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, Prediction


class Ensemble(nn.Module):
    """Image (B, C, X, Y, Z) in [-1, 1] -> Prediction of one stage: the mean vertices of the networks' last stages.

    The networks have the same structures and template faces, and one grid. The segmentation's logits are the logarithms
    of the mean probabilities.
    """

    def __init__(self, networks: Sequence[ImplicitMeshNet]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.decoder = networks[0].decoder  # whose faces are those of all
        localisers = [network.localiser for network in networks if network.localiser is not None]
        self.localiser = CoarseEnsemble(localisers) if localisers else None

    def forward(self, image: torch.Tensor) -> Prediction:
        predictions = [network(image) for network in self.networks]
        vertices = torch.stack([prediction.vertices for prediction in predictions]).mean(0)
        return Prediction([vertices], mean_logits([prediction.segmentation for prediction in predictions]))


class CoarseEnsemble(CoarsePass):
    """Overview (B, C, X, Y, Z) -> the logarithms (B, 2, X, Y, Z) of several coarse passes' mean probabilities."""

    def __init__(self, members: Sequence[CoarsePass]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return mean_logits([member(image) for member in self.members])


def mean_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logarithm of the mean of the probabilities of several logits, each (B, classes, X, Y, Z); finite."""
    logarithms = torch.stack([each.log_softmax(1) for each in logits])
    return logarithms.logsumexp(0) - math.log(len(logits))
