"""Times the graph layers against PyTorch Geometric's, with the same weights; prints tables.

    python benchmarks/graph_layers.py [--rounds 3] [--threads N] [--device cpu | cuda | mps]

2562 vertices, batch 2, float32: one Chebyshev layer (K = 2) and one GCN layer at the network's widths, and the graph
decoder's three stages (paper's widths) for seven structures. All rows take turns within a round; medians. The floor is
the arithmetic of the linear maps alone, timed as one matrix product of their size. PyTorch Geometric's rows need
`pip install torch_geometric`.
"""

import torch
from timing import SYNCHRONIZE, Row, measure, parse_arguments
from torch import nn

from implicitmeshnet.mesh import edges, icosphere, neighbours
from implicitmeshnet.models.graph import ChebyshevConv, GCNConv, GraphDecoderStage, linear_map
from implicitmeshnet.script import InputError, run_script

BATCH, STRUCTURES = 2, 7
WIDTHS = [(1024, 288), (288, 288)]
STAGES = [(387, 288), (435, 96), (163, 32)]  # channels in and hidden


class PygStage(nn.Module):
    """A decoder stage of one structure, made of ChebConv over the disjoint union of the batch's graphs."""

    def __init__(self, stage, structure, make):
        super().__init__()
        convolutions = [stage.input, *(c for block in stage.blocks for c in block.convolutions), stage.output]
        self.layers = nn.ModuleList(make(convolution, structure) for convolution in convolutions)
        self.factor = stage.displacement_factor

    def forward(self, features, edge_index):
        hidden = self.layers[0](features, edge_index)
        for first, second in zip(self.layers[1:-1:2], self.layers[2:-1:2], strict=True):
            update = hidden
            for layer in (first, second):
                normed = nn.functional.layer_norm(update, update.shape[-1:])
                update = layer(nn.functional.leaky_relu(normed, 0.01), edge_index)
            hidden = hidden + update
        normed = nn.functional.layer_norm(hidden, hidden.shape[-1:])
        return hidden, self.factor * self.layers[-1](normed, edge_index)


def as_pyg(convolution, structure=0):
    """PyTorch Geometric's layer with the weights of one structure of ours."""
    from torch_geometric import nn as pyg

    weight, bias = convolution.weight[structure], convolution.bias[structure].flatten()
    if isinstance(convolution, ChebyshevConv):
        own, around = weight.chunk(2, -1)
        layer = pyg.ChebConv(weight.shape[0], own.shape[1], K=2)
        weights = zip(layer.lins, (own, around), strict=True)
    else:
        layer = pyg.GCNConv(*weight.shape)
        weights = [(layer.lin, weight)]
    for linear, ours in weights:
        linear.weight = nn.Parameter(ours.detach().T.contiguous())
    layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def union_of_graphs(faces, count):
    """The edges of a batch of equal graphs as one graph, (2, E)."""
    one = torch.cat([edges(faces), edges(faces).flip(1)]).T
    return torch.cat([one + item * count for item in range(BATCH)], 1)


def row_pair(name, compute, parameters):
    """Forward, and forward + backward by all parameters and inputs."""
    gradient = torch.ones_like(compute())
    return [
        Row(name, lambda: compute().detach(), torch.Tensor.double),
        Row(name + ", + backward", lambda: torch.autograd.grad(compute(), parameters, gradient)),
    ]


def print_table(title, rows, rounds, device):
    results = measure(rows, rounds, SYNCHRONIZE[device.type])
    print(f"\n{title:<36}{'median ms':>11}{'cores':>7}{'+ backward':>12}{'times ours':>14}{'difference':>12}")
    for index in range(0, len(rows) - 1, 2):
        forward, both = results[index], results[index + 1]
        times = f"{forward.ms / results[0].ms:.1f} / {both.ms / results[1].ms:.1f}"
        difference = (forward.value - results[0].value).abs().max() / results[0].value.abs().max()
        print(f"{rows[index].name:<36}{forward}{both.ms:>12.2f}{times:>14}{difference:>12.1e}")
    print(f"{rows[-1].name:<36}{results[-1]}")


def product(rows, inner, columns, device):
    features, weight = torch.randn(1, 1, rows, inner, device=device), torch.randn(1, inner, columns, device=device)
    return Row("floor: the linear map", lambda: linear_map(features, weight))


def layer_table(kind, widths, around, edge_index, rounds, device):
    layer = kind(1, *widths, around).to(device)
    count = len(around.index)
    features = torch.randn(1, BATCH, count, widths[0], device=device, requires_grad=True)
    peer = as_pyg(layer).to(device)
    flat = features.detach()[0].flatten(0, 1).requires_grad_()
    rows = row_pair("ours", lambda: layer(features)[0].flatten(0, 1), [features, *layer.parameters()])
    rows += row_pair("PyTorch Geometric", lambda: peer(flat, edge_index), [flat, *peer.parameters()])
    columns = layer.weight.shape[-1]
    title = f"{kind.__name__}, {widths[0]} to {widths[1]}"
    print_table(title, [*rows, product(BATCH * count, widths[0], columns, device)], rounds, device)


def decoder_table(around, edge_index, rounds, device):
    count = len(around.index)
    stages = [GraphDecoderStage(STRUCTURES, *widths, 0.01, around).to(device) for widths in STAGES]
    for stage in stages:
        nn.init.normal_(stage.output.weight, std=0.1)
    inputs = [torch.randn(STRUCTURES, BATCH, count, width, device=device, requires_grad=True) for width, _ in STAGES]
    peers = [[PygStage(stage, s, as_pyg).to(device) for s in range(STRUCTURES)] for stage in stages]

    def ours():
        return torch.cat([out for stage, x in zip(stages, inputs, strict=True) for out in stage(x)], -1)

    def theirs():
        columns = []
        for stage, x in zip(peers, inputs, strict=True):
            parts = [one(part.flatten(0, 1), edge_index) for one, part in zip(stage, x.unbind(), strict=True)]
            columns += [torch.stack(part).view(STRUCTURES, BATCH, count, -1) for part in zip(*parts, strict=True)]
        return torch.cat(columns, -1)

    parameters = [p for stage in stages for p in stage.parameters()]
    peer_parameters = [p for stage in peers for one in stage for p in one.parameters()]
    rows = row_pair("ours", ours, [*inputs, *parameters])
    rows += row_pair("PyTorch Geometric", theirs, [*inputs, *peer_parameters])
    multiplications = sum(2 * w * (c + 6 * w + 3) for c, w in STAGES)  # of one vertex
    floor = product(BATCH * count, 512, multiplications // 512, device)._replace(share=1 / STRUCTURES)
    print_table(f"decoder, {STRUCTURES} structures", [*rows, floor], rounds, device)


def main():
    arguments, device = parse_arguments(__doc__.splitlines()[0])
    try:
        import torch_geometric  # noqa: F401
    except ImportError as error:
        raise InputError("torch_geometric: wanted it (pip install torch_geometric), found none") from error
    torch.manual_seed(0)
    vertices, faces = icosphere(4)
    around, edge_index = neighbours(faces, len(vertices)), union_of_graphs(faces, len(vertices)).to(device)
    print(f"{device}, {arguments.threads} threads, {len(vertices)} vertices, batch {BATCH}")
    for kind in (ChebyshevConv, GCNConv):
        for widths in WIDTHS:
            layer_table(kind, widths, around, edge_index, arguments.rounds, device)
    decoder_table(around, edge_index, arguments.rounds, device)


if __name__ == "__main__":
    run_script(main)
