"""Graph convolutions over one fixed triangulation, and the decoder stage made of them.

Feature tensors are (S, N, V, C): structures, batch, vertices, channels. Every structure has weights of its own. Layers
take the slice of structures that their features belong to: all in one batched product on a GPU, one after the other on
a CPU, where a structure's tensors stay in the cache and take the memory that the last one's left.
"""

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.mesh import Neighbours
from implicitmeshnet.ops import layer_norm_leaky_relu, neighbour_sum


def linear_map(features, weight, bias=None):
    """features (S, N, V, C) times weight (S, C, K), plus bias (S, K): (S, N, V, K).

    On a CPU a structure's product runs as a convolution with one tap, which oneDNN computes: at the network's sizes
    twice as fast as the BLAS library behind torch.bmm on the AMD processor measured, in all three directions.
    """
    if features.device.type != "cpu":
        product = torch.bmm(features.flatten(1, 2), weight).view(*features.shape[:3], -1)
        return product if bias is None else product + bias[:, None, None]
    biases = [None] * len(features) if bias is None else bias
    parts = [
        F.conv2d(x[None].permute(0, 3, 1, 2), w.T[:, :, None, None], b).permute(0, 2, 3, 1)
        for x, w, b in zip(features, weight, biases, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ChebyshevConv(nn.Module):
    """Chebyshev graph convolution with K = 2: x W0 + L x W1, L = -D^(-1/2) A D^(-1/2), the normalised Laplacian
    rescaled with its largest eigenvalue taken as 2 (Defferrard et al. 2016, equation 5; Kipf and Welling 2017,
    equation 6).

    (S, N, V, in_channels) -> (S, N, V, out_channels).
    """

    def __init__(self, structures: int, in_channels: int, out_channels: int, neighbours: Neighbours):
        super().__init__()
        degree = neighbours.degree[:, 0]
        weight = -neighbours.weight * (degree[:, None] * degree[neighbours.index]).clamp(min=1) ** -0.5
        self.register_buffer("index", neighbours.index, persistent=False)
        self.register_buffer("laplacian", weight, persistent=False)
        bound = (3 / in_channels) ** 0.5  # unit gain over the two terms together
        self.weight = nn.Parameter(torch.empty(structures, in_channels, 2 * out_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(structures, 1, 1, out_channels))

    def forward(self, features, structures=slice(None)):
        bias = F.pad(self.bias[structures].flatten(1), (0, self.bias.shape[-1]))  # of the vertex's own half
        both = linear_map(features, self.weight[structures], bias)
        return neighbour_sum(both, self.index, self.laplacian, own=True)


class GCNConv(nn.Module):
    """Graph convolution D^(-1/2) (A + I) D^(-1/2) x W, the vertex itself among its neighbours (Kipf and Welling 2017,
    equation 8).

    (S, N, V, in_channels) -> (S, N, V, out_channels).
    """

    def __init__(self, structures: int, in_channels: int, out_channels: int, neighbours: Neighbours):
        super().__init__()
        degree = neighbours.degree[:, 0] + 1
        weight = neighbours.weight * (degree[:, None] * degree[neighbours.index]) ** -0.5
        own = torch.arange(len(degree))[:, None]
        self.register_buffer("index", torch.cat([own, neighbours.index], 1), persistent=False)
        self.register_buffer("adjacency", torch.cat([1 / degree[:, None], weight], 1), persistent=False)
        bound = (3 / in_channels) ** 0.5
        self.weight = nn.Parameter(torch.empty(structures, in_channels, out_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(structures, 1, 1, out_channels))

    def forward(self, features, structures=slice(None)):
        mixed = linear_map(features, self.weight[structures])
        return neighbour_sum(mixed, self.index, self.adjacency) + self.bias[structures]


class GraphResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), layer norm over the channels of each vertex; (S, N, V, C) -> same."""

    def __init__(self, structures: int, channels: int, neighbours: Neighbours, kind=ChebyshevConv, dropout=0.0):
        super().__init__()
        self.convolutions = nn.ModuleList(kind(structures, channels, channels, neighbours) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features, structures=slice(None)):
        update = features
        for convolution in self.convolutions:
            update = convolution(self.dropout(layer_norm_leaky_relu(update)), structures)
        return features + update


class GraphDecoderStage(nn.Module):
    """One input convolution, three residual blocks and one output convolution that moves the vertices.

    Features (S, N, V, in_channels) -> hidden features (S, N, V, channels) and displacements (S, N, V, 3) in
    normalised units, all zero before training.
    """

    def __init__(self, structures, in_channels, channels, displacement_factor, neighbours: Neighbours):
        super().__init__()
        self.displacement_factor = displacement_factor
        self.input = ChebyshevConv(structures, in_channels, channels, neighbours)
        self.blocks = nn.ModuleList(GraphResidualBlock(structures, channels, neighbours) for _ in range(3))
        self.output = ChebyshevConv(structures, channels, 3, neighbours)
        nn.init.zeros_(self.output.weight)

    def forward(self, features):
        at_once = 1 if features.device.type == "cpu" else len(features)
        parts = [
            self._run(part, slice(first * at_once, (first + 1) * at_once))
            for first, part in enumerate(features.split(at_once))
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _run(self, features, structures):
        hidden = self.input(features, structures)
        for block in self.blocks:
            hidden = block(hidden, structures)
        normed = layer_norm_leaky_relu(hidden, slope=1)
        return hidden, self.displacement_factor * self.output(normed, structures)
