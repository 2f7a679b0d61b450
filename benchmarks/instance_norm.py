"""instance_norm_leaky_relu at the sizes of the UNet's blocks beside torch's layers, forward and forward + backward.

    python benchmarks/instance_norm.py [--rounds=3] [--threads=N] [--device=cpu]

Both end a residual block: norm, sum with the skip connection, leaky ReLU, on bfloat16 volumes with channels last. The
batch norm kernel runs item by item, which keeps the layout; the difference is to float64.
"""

import torch
import torch.nn.functional as F
from timing import SYNCHRONIZE, Row, measure, parse_arguments

from implicitmeshnet.ops import instance_norm_leaky_relu
from implicitmeshnet.script import keep_freed_memory, run_script

SIZES = [(16, 64), (32, 32), (64, 16), (128, 8)]  # channels, and voxels along an axis
BATCH = 2


def by_batch_norm(volume, weight, bias, residual):
    items = [F.batch_norm(item, None, None, weight, bias, training=True) for item in volume.split(1)]
    return F.leaky_relu(torch.cat(items) + residual, 0.01, inplace=True)


def by_instance_norm(volume, weight, bias, residual):
    return F.leaky_relu(F.instance_norm(volume, weight=weight, bias=bias) + residual, 0.01, inplace=True)


def row_pair(name, function, inputs):
    gradient = torch.ones_like(inputs[0])
    return [
        Row(name, lambda: function(*inputs).detach(), torch.Tensor.double),
        Row(name + ", + backward", lambda: torch.autograd.grad(function(*inputs), inputs, gradient)),
    ]


def print_table(channels, side, rounds, device):
    layout = torch.channels_last_3d
    shape = (BATCH, channels, side, side, side)
    volume, residual = torch.randn(2, *shape, device=device, dtype=torch.bfloat16)
    weight, bias = torch.randn(2, channels, device=device)
    inputs = [volume.to(memory_format=layout), weight, bias, residual.to(memory_format=layout)]
    wanted = by_instance_norm(*(each.double().cpu() for each in inputs))
    inputs = [each.detach().requires_grad_() for each in inputs]
    rows = row_pair("ours", instance_norm_leaky_relu, inputs)
    rows += row_pair("torch, batch norm", by_batch_norm, inputs)
    rows += row_pair("torch, instance norm", by_instance_norm, inputs)
    results = measure(rows, rounds, SYNCHRONIZE[device.type])
    print(f"\n{f'{channels} channels, {side}^3':<24}{'median ms':>11}{'cores':>7}{'+ backward':>12}{'difference':>12}")
    for row, forward, both in zip(rows[::2], results[::2], results[1::2], strict=True):
        difference = (forward.value.cpu() - wanted).abs().max()
        print(f"{row.name:<24}{forward}{both.ms:>12.2f}{difference:>12.1e}")


def main():
    arguments, device = parse_arguments(__doc__.splitlines()[0])
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"{device}, {arguments.threads} threads, batch {BATCH}")
    for channels, side in SIZES:
        print_table(channels, side, arguments.rounds, device)


if __name__ == "__main__":
    run_script(main)
