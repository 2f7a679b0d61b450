"""Graph convolutions over one fixed triangulation, and the decoder stage made of them.

Feature tensors are (S, N, V, C): structures, batch, vertices, channels. Every structure has weights of its own. Layers
take the slice of structures that their features belong to: all in one batched product on a GPU, one after the other on
a CPU, where a structure's tensors stay in the cache and take the memory that the last one's left.
"""

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.mesh import Neighbours


class NeighbourSum(torch.autograd.Function):
    """y[v] = sum over d of weight[v, d] x[index[v, d]] for x (..., V, C); the operator must be symmetric."""

    @staticmethod
    def forward(ctx, features, index, weight):
        ctx.save_for_backward(index, weight)
        rows = features.reshape(-1, features.shape[-1])
        copies = rows.shape[0] // len(index)
        first = torch.arange(copies, device=index.device)[:, None, None] * len(index)
        bags = (index + first).view(-1, index.shape[1])  # (copies * V, D)
        weights = weight.to(rows.dtype).repeat(copies, 1)
        return F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights).view(features.shape)

    @staticmethod
    def backward(ctx, gradient):
        return NeighbourSum.apply(gradient.contiguous(), *ctx.saved_tensors), None, None


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
        both = torch.bmm(features.flatten(1, 2), self.weight[structures])
        own, around = both.view(*features.shape[:3], -1).chunk(2, -1)
        return own + NeighbourSum.apply(around.contiguous(), self.index, self.laplacian) + self.bias[structures]


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
        mixed = torch.bmm(features.flatten(1, 2), self.weight[structures]).view(*features.shape[:3], -1)
        return NeighbourSum.apply(mixed, self.index, self.adjacency) + self.bias[structures]


class GraphResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), layer norm over the channels of each vertex; (S, N, V, C) -> same."""

    def __init__(self, structures: int, channels: int, neighbours: Neighbours):
        super().__init__()
        self.convolutions = nn.ModuleList(ChebyshevConv(structures, channels, channels, neighbours) for _ in range(2))

    def forward(self, features, structures=slice(None)):
        update = features
        for convolution in self.convolutions:
            update = convolution(F.leaky_relu(F.layer_norm(update, update.shape[-1:]), 0.01), structures)
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
        parts = [self._run(part, slice(first * at_once, (first + 1) * at_once))
                 for first, part in enumerate(features.split(at_once))]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _run(self, features, structures):
        hidden = self.input(features, structures)
        for block in self.blocks:
            hidden = block(hidden, structures)
        normed = F.layer_norm(hidden, hidden.shape[-1:])
        return hidden, self.displacement_factor * self.output(normed, structures)
