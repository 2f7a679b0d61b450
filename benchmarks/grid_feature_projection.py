"""Times splat and gather against what else spreads features over voxels or reads them; prints tables.

    python benchmarks/grid_feature_projection.py [--rounds 3] [--threads N] [--device cpu | cuda | mps]

2562 vertices of a sphere of radius 0.5, batch 2. All rows take turns within a round; medians. Forward + backward asks
for both gradients, positions and features, of a fixed random gradient in the layout of the row's result.

- torch.zeros: the floor that memory sets, fresh from the system where the volume is large; ours asks for huge pages.
  To give the peers huge pages too, set THP_MEM_ALLOC_ENABLE=1.
- max error: against the float64 reference.
- torch_scatter is shown where installed (pip install torch_scatter).
"""

import torch
from timing import SYNCHRONIZE, Row, measure, parse_arguments

from implicitmeshnet.coordinates import to_grid_sample
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import compiled, reference, sample_trilinear, splat_trilinear
from implicitmeshnet.script import run_script

BATCH = 2
SPLATS = [(128, 64), (128, 32), (3, 64)]  # channels, voxels along an axis
LEVELS = [(64, 16), (128, 8), (256, 4)]  # channels and sizes of a pyramid


def by_index_add(vertices, features, size, channels_last):
    """The trilinear weights in torch, added into rows of channels (B, XYZ, C)."""
    index, weight, _ = reference.trilinear(vertices, (size,) * 3)
    parts = (weight[..., None] * features[:, :, None]).flatten(1, 2)
    volume = features.new_zeros(len(vertices) * size**3, features.shape[-1])
    first = torch.arange(len(vertices), device=index.device)[:, None, None] * size**3
    volume = volume.index_add(0, (index + first).flatten(), parts.flatten(0, 1))
    volume = volume.view(len(vertices), size, size, size, -1).permute(0, 4, 1, 2, 3)
    return volume if channels_last else volume.contiguous()


def by_scatter_add(vertices, features, size, scatter_add):
    """The same into planes (B, C, XYZ)."""
    index, weight, _ = reference.trilinear(vertices, (size,) * 3)
    parts = (weight[..., None] * features[:, :, None]).flatten(1, 2).transpose(1, 2)  # (B, C, 8 V)
    index = index.flatten(1)[:, None].expand_as(parts)
    return scatter_add(parts, index, size**3).view(len(vertices), features.shape[-1], size, size, size)


def torch_scatter_add(parts, index, count):
    return parts.new_zeros(*parts.shape[:2], count).scatter_add(-1, index, parts)


class GridSampleSplat(torch.autograd.Function):
    """grid_sample's own backward as a splat; its forward is the features' gradient (the positions' is left out)."""

    @staticmethod
    def forward(ctx, vertices, features, size):
        ctx.save_for_backward(vertices)
        volume = features.new_zeros(len(vertices), features.shape[-1], size, size, size)
        grid = to_grid_sample(vertices)[:, :, None, None]
        return torch.ops.aten.grid_sampler_3d_backward(
            features.transpose(1, 2)[..., None, None].contiguous(), volume, grid, 0, 1, True, [True, False]
        )[0]

    @staticmethod
    def backward(ctx, grad):
        return None, read_grid_sample(grad, ctx.saved_tensors[0]), None


def read_grid_sample(volume, vertices):
    grid = to_grid_sample(vertices)[:, :, None, None]
    found = torch.nn.functional.grid_sample(volume, grid, align_corners=True, padding_mode="border")
    return found[..., 0, 0].transpose(1, 2)


def splats(size):
    """Name -> splat(vertices, features), peers where installed."""
    found = {
        "ours, channels first": lambda v, f: splat_trilinear(v, f, size),
        "ours, channels last": lambda v, f: splat_trilinear(v, f, size, channels_last=True),
        "index_add, channels last": lambda v, f: by_index_add(v, f, size, True),
        "scatter_add": lambda v, f: by_scatter_add(v, f, size, torch_scatter_add),
        "backward of grid_sample": lambda v, f: GridSampleSplat.apply(v, f, size),
    }
    try:
        from torch_scatter import scatter_sum

        found["torch_scatter"] = lambda v, f: by_scatter_add(
            v, f, size, lambda parts, index, count: scatter_sum(parts, index, -1, dim_size=count)
        )
    except ImportError:
        print("not installed: torch_scatter")
    return found


def rows_of(functions, leaves, outputs_like):
    """Forward rows and forward + backward rows of functions of the leaves."""
    rows = []
    for name, function in functions.items():
        constants = [leaf.detach() for leaf in leaves]
        rows.append(Row(name, lambda function=function, constants=constants: function(*constants), torch.Tensor.double))
        gradient = outputs_like(function(*constants))
        rows.append(
            Row(
                name + ", + backward",
                lambda function=function, gradient=gradient: torch.autograd.grad(
                    function(*leaves), leaves, gradient, allow_unused=True
                ),
            )
        )
    return rows


def random_like(output):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(output.shape, generator=generator).to(output.device)
    return torch.empty_like(output).copy_(values)


def print_table(title, rows, floor, truth, rounds, device):
    synchronize = SYNCHRONIZE[device.type]
    results = measure([*rows, floor], rounds, synchronize)
    forwards = {row.name: result for row, result in zip(rows, results, strict=False)}
    print(f"\n{title:<44}{'median ms':>11}{'cores':>7}{'+ backward':>12}{'max error':>11}")
    for name, result in forwards.items():
        if name.endswith(", + backward"):
            continue
        error = (result.value.cpu() - truth).abs().max().item()
        print(f"{name:<44}{result}{forwards[name + ', + backward'].ms:>12.2f}{error:>11.1e}")
    print(f"{floor.name:<44}{results[-1]}")


def splat_table(channels, size, arguments, device):
    vertices, _ = icosphere(4)
    vertices = (0.5 * vertices).expand(BATCH, -1, -1).contiguous().to(device).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*vertices.shape[:2], channels, generator=generator).to(device).requires_grad_()
    rows = rows_of(splats(size), [vertices, features], random_like)
    floor = Row("torch.zeros of the volume", lambda: torch.zeros(BATCH, channels, size, size, size, device=device))
    truth = reference.splat(vertices.detach().cpu().double(), features.detach().cpu().double(), (size,) * 3)
    print_table(f"splat, {channels} channels, {size}^3", rows, floor, truth, arguments.rounds, device)


def gather_table(layout, arguments, device):
    vertices, _ = icosphere(4)
    vertices = (0.5 * vertices).expand(BATCH, -1, -1).contiguous().to(device).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    volumes = [
        torch.randn(BATCH, c, n, n, n, generator=generator).to(device).contiguous(memory_format=layout).requires_grad_()
        for c, n in LEVELS
    ]
    functions = {
        "ours, all levels in one call": lambda v, *w: sample_trilinear(w, v),
        "grid_sample, level by level": lambda v, *w: torch.cat([read_grid_sample(volume, v) for volume in w], -1),
    }
    rows = rows_of(functions, [vertices, *volumes], random_like)
    width = sum(c for c, _ in LEVELS)
    floor = Row("torch.zeros of the result", lambda: torch.zeros(*vertices.shape[:2], width, device=device))
    truth = reference.gather([v.detach().cpu().double() for v in volumes], vertices.detach().cpu().double())
    name = "channels last" if layout == torch.channels_last_3d else "channels first"
    print_table(f"gather, levels {LEVELS}, {name}", rows, floor, truth, arguments.rounds, device)


def main():
    arguments, device = parse_arguments(__doc__.splitlines()[0])
    print(f"{device}, {arguments.threads} threads, compiled for the CPU: {compiled()}")
    for channels, size in SPLATS:
        splat_table(channels, size, arguments, device)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        gather_table(layout, arguments, device)


if __name__ == "__main__":
    run_script(main)
