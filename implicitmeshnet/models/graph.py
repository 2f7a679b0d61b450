"""Graph convolutions over one fixed triangulation, and the decoder stage made of them.

Feature tensors are (S, N, V, C): structures, batch, vertices, channels. Every structure has weights of its own, so a
layer is told which structures its features belong to, as a slice. On a GPU that is all of them at once, in one batched
product. On a CPU it is one after the other, because the tensors of one structure fit the cache and reuse the memory
that the structure before has freed.
"""

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.mesh import Neighbours
from implicitmeshnet.ops import layer_norm_leaky_relu, neighbour_sum

ALL = slice(None)
"""The slice of all structures."""
WIDE = 128
"""Channels out from which a linear map on a CPU is a convolution."""


def linear_map(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """features (S, N, V, C) times weight (S, C, K), plus bias (S, K): (S, N, V, K)."""
    if features.device.type == "cpu" and weight.shape[-1] >= WIDE:
        return _linear_map_on_cpu(features, weight, bias)
    product = torch.bmm(features.flatten(1, 2), weight)
    product = product.view(*features.shape[:3], -1)
    return product if bias is None else product + bias[:, None, None]


def _linear_map_on_cpu(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear_map` as one convolution with a 1 x 1 kernel for each structure.

    oneDNN computes these. From WIDE channels on it takes half the time of the BLAS library behind torch.bmm, forward
    and for both gradients, on one AMD processor, and 0.9 to 1.15 of it on another. There its gradients of narrower
    maps take twice to ten times as long, on two threads.
    """
    biases: torch.Tensor | list[None] = [None] * len(features) if bias is None else bias
    parts = []
    for own, matrix, own_bias in zip(features, weight, biases, strict=True):
        channels_first = own[None].permute(0, 3, 1, 2)
        kernel = matrix.T[:, :, None, None]
        product = F.conv2d(channels_first, kernel, own_bias)
        parts.append(product.permute(0, 2, 3, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ChebyshevConv(nn.Module):
    """Chebyshev graph convolution with K = 2: x W0 + L x W1, L = -D^(-1/2) A D^(-1/2), the normalised Laplacian
    rescaled with its largest eigenvalue taken as 2 (Defferrard et al. 2016, equation 5; Kipf and Welling 2017,
    equation 6).

    (S, N, V, in_channels) -> (S, N, V, out_channels).
    """

    index: torch.Tensor  # (V, D) int64, the neighbours of each vertex
    laplacian: torch.Tensor  # (V, D), the entries of L for them

    def __init__(self, structures: int, in_channels: int, out_channels: int, neighbours: Neighbours):
        super().__init__()
        degree = neighbours.degree[:, 0]
        products = degree[:, None] * degree[neighbours.index]
        weight = -neighbours.weight * products.clamp(min=1) ** -0.5
        self.register_buffer("index", neighbours.index, persistent=False)
        self.register_buffer("laplacian", weight, persistent=False)
        # W0 and W1 side by side; the bound gives the two terms together unit gain.
        self.weight = _uniform_weight(structures, in_channels, 2 * out_channels)
        self.bias = nn.Parameter(torch.zeros(structures, 1, 1, out_channels))

    def forward(self, features: torch.Tensor, structures: slice = ALL) -> torch.Tensor:
        bias = self.bias[structures].flatten(1)
        padded = F.pad(bias, (0, bias.shape[-1]))  # the bias belongs to x W0 alone
        both = linear_map(features, self.weight[structures], padded)
        return neighbour_sum(both, self.index, self.laplacian, own=True)


class GCNConv(nn.Module):
    """Graph convolution D^(-1/2) (A + I) D^(-1/2) x W, the vertex itself among its neighbours (Kipf and Welling 2017,
    equation 8).

    (S, N, V, in_channels) -> (S, N, V, out_channels).
    """

    index: torch.Tensor  # (V, 1 + D) int64, each vertex and its neighbours
    adjacency: torch.Tensor  # (V, 1 + D), the entries of the normalised A + I for them

    def __init__(self, structures: int, in_channels: int, out_channels: int, neighbours: Neighbours):
        super().__init__()
        degree = neighbours.degree[:, 0] + 1
        products = degree[:, None] * degree[neighbours.index]
        weight = neighbours.weight * products**-0.5
        own = torch.arange(len(degree))[:, None]
        own_weight = 1 / degree[:, None]
        self.register_buffer("index", torch.cat([own, neighbours.index], 1), persistent=False)
        self.register_buffer("adjacency", torch.cat([own_weight, weight], 1), persistent=False)
        self.weight = _uniform_weight(structures, in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(structures, 1, 1, out_channels))

    def forward(self, features: torch.Tensor, structures: slice = ALL) -> torch.Tensor:
        mixed = linear_map(features, self.weight[structures])
        return neighbour_sum(mixed, self.index, self.adjacency) + self.bias[structures]


def _uniform_weight(structures: int, in_channels: int, out_channels: int) -> nn.Parameter:
    """Weights (S, in_channels, out_channels), uniform with the variance 1 / in_channels."""
    bound = (3 / in_channels) ** 0.5
    weight = torch.empty(structures, in_channels, out_channels)
    return nn.Parameter(weight.uniform_(-bound, bound))


class GraphResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), layer norm over the channels of each vertex; (S, N, V, C) -> same.

    `kind` is the class of its two graph convolutions.
    """

    def __init__(
        self,
        structures: int,
        channels: int,
        neighbours: Neighbours,
        kind: type[ChebyshevConv] | type[GCNConv] = ChebyshevConv,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.convolutions = nn.ModuleList(kind(structures, channels, channels, neighbours) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor, structures: slice = ALL) -> torch.Tensor:
        update = features
        for convolution in self.convolutions:
            activated = layer_norm_leaky_relu(update)
            update = convolution(self.dropout(activated), structures)
        return features + update


class GraphDecoderStage(nn.Module):
    """One input convolution, three residual blocks and one output convolution that moves the vertices.

    Features (S, N, V, in_channels) -> hidden features (S, N, V, channels) and displacements (S, N, V, 3) in
    normalised units, all zero before training.
    """

    def __init__(
        self, structures: int, in_channels: int, channels: int, displacement_factor: float, neighbours: Neighbours
    ):
        super().__init__()
        self.displacement_factor = displacement_factor
        self.input = ChebyshevConv(structures, in_channels, channels, neighbours)
        self.blocks = nn.ModuleList(GraphResidualBlock(structures, channels, neighbours) for _ in range(3))
        self.output = ChebyshevConv(structures, channels, 3, neighbours)
        nn.init.zeros_(self.output.weight)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at_once = 1 if features.device.type == "cpu" else len(features)  # structures, see the module's docstring
        hidden = []
        displacements = []
        for turn, own in enumerate(features.split(at_once)):
            first = turn * at_once
            own_hidden, own_displacements = self._run(own, slice(first, first + at_once))
            hidden.append(own_hidden)
            displacements.append(own_displacements)
        return torch.cat(hidden), torch.cat(displacements)

    def _run(self, features: torch.Tensor, structures: slice) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.input(features, structures)
        for block in self.blocks:
            hidden = block(hidden, structures)
        normed = layer_norm_leaky_relu(hidden, slope=1)  # of slope 1: the norm alone
        return hidden, self.displacement_factor * self.output(normed, structures)
