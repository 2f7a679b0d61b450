"""Where a training step's time goes: every part of it, forward and forward + backward, medians, and peak memory.

    python benchmarks/training_step.py --config=configs_implicitmeshnet/phantom_lv_la.json [--section.key=value ...]

With `--loss.route=deep` a training step of each route follows, optimisers included, taking turns. The image is noise
and the labels are balls, so no data is needed. `--cpu_time` times the parts by the processor's seconds instead of the
clock's, for a busy machine; with OMP_NUM_THREADS=1 the two are the same on an idle one. The floor is the UNet's
arithmetic, 2 operations per multiply-add, backward twice the forward, at the rate that a large matrix product reaches
here in the same type.
"""

import argparse
import resource
import statistics
import time

import torch
from timing import SYNCHRONIZE, Row, measure
from torch.utils.flop_counter import FlopCounterMode

from implicitmeshnet.config import load_config
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.unet import bfloat16_is_fast
from implicitmeshnet.models.weights import pick_device
from implicitmeshnet.script import keep_freed_memory, run_script
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.deep_route import load_deep_route
from implicitmeshnet.training.losses import (
    MeshLoss,
    border_density,
    occupancy_logits,
    occupancy_loss,
    overlap_loss,
    structure_masks,
    surface_loss,
    triangle_loss,
)
from implicitmeshnet.training.run import adamw, take_step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu_time", action="store_true")
    arguments, overrides = parser.parse_known_args()
    config, device = load_config(arguments.config, overrides), pick_device(arguments.device)
    keep_freed_memory()
    config.network.template = "centred"
    structures, shape = len(config.data.structures), config.data.shape
    network = build_network(config).to(device)
    criterion = criterion_of(network, config, None)
    image = torch.randn(config.training.batch_size, 1, *shape, device=device)
    label = balls(shape, structures, config.training.batch_size, device)
    masks = structure_masks(label, Structures.of(config.data))
    border, faces = border_density(masks), network.decoder.faces

    def unet():
        pyramid, logits = network.unet(image)
        return [*pyramid.values(), logits]

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pyramid, logits = network.unet(image)
    gradients = [torch.randn_like(volume) for volume in (*pyramid.values(), logits)]
    pyramid = {level: volume.detach().requires_grad_() for level, volume in pyramid.items()}
    template = network.decoder(pyramid)[-1].detach()

    def logits_of(vertices):
        return occupancy_logits(vertices, criterion.distance, list(shape), config.loss.temperature)

    distances = logits_of(template)
    encloses = criterion.structures.encloses
    parts = {
        "UNet": unet,
        "graph decoder": lambda: sum(stage.square().sum() for stage in network.decoder(pyramid)),
        "occupancy loss (Mesh2SDF)": lambda: occupancy_loss(logits_of(leaf(template)), masks),
        "surface loss": lambda: surface_loss(leaf(template), faces, border),
        "overlap loss": lambda: overlap_loss(leaf(distances), masks, encloses),
        "triangle loss": lambda: triangle_loss(leaf(template), faces),
        "whole step": lambda: criterion(network(image), label, 0.0)[0],
    }
    routes = {"exact": None, "deep": load_deep_route(config, device)}
    rows = [
        Row(name, step_of(network, image, label, config, route))
        for name, route in routes.items()
        if route or name == "exact"
    ]
    print(
        f"batch {len(image)}, grid {shape}, {structures} structures, {template.shape[2]} vertices, {device},"
        f" {torch.get_num_threads()} threads, bfloat16: {bfloat16_is_fast(device.type)}"
    )
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(f"{'part':<28}{'forward ms':>12}{'fwd + bwd ms':>14}")
    for name, part in parts.items():
        given = gradients if part is unet else None
        forward = median_seconds(part, device, arguments.repeats, clock)
        both = median_seconds(lambda part=part, given=given: backward(part(), given), device, arguments.repeats, clock)
        print(f"{name:<28}{1e3 * forward:>12.1f}{1e3 * both:>14.1f}")
    steps = measure(rows, arguments.repeats, SYNCHRONIZE[device.type])
    for row, result in zip(rows, steps, strict=True):
        name, ratio = f"training step, {row.name}", result.ms / steps[0].ms
        print(f"{name:<28}{'':>12}{result.ms:>14.1f}{ratio:>8.2f} x exact")
    rate = operations_per_second(device, torch.bfloat16 if bfloat16_is_fast(device.type) else torch.float32)
    operations = counter.get_total_flops()
    print(
        f"{'floor of the UNet':<28}{1e3 * operations / rate:>12.1f}{3e3 * operations / rate:>14.1f}"
        f"   {operations / 1e9:.1f} GFLOP forward at {rate / 1e9:.0f} GFLOP/s"
    )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU")
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB with the libraries")


def criterion_of(network, config, distance):
    """The loss of a network, on its device."""
    faces, vertex_count = network.decoder.faces, network.decoder.template.shape[1]
    structures = Structures.of(config.data)
    criterion = MeshLoss(faces, vertex_count, config.loss, structures, distance, config.data.half_sides_mm)
    return criterion.to(faces.device)


def step_of(network, image, label, config, deep):
    """A training step, optimisers included, by the exact route, or by the deep one with the distance network's step."""
    criterion = criterion_of(network, config, deep.distance if deep else None)
    optimizer = adamw(network, config.training.learning_rate, config.training.weight_decay)

    def step():
        prediction = network(image)
        take_step(criterion(prediction, label, 0.0)[0], network, optimizer)
        if deep:
            deep.step(prediction.vertices.detach().flatten(0, 1))

    return step


def backward(output, gradients):
    """The backward pass of a loss, or of several results with given gradients, which cost nothing to come by."""
    outputs = output if gradients else [output]
    torch.autograd.backward(outputs, gradients)


def leaf(vertices):
    return vertices.clone().requires_grad_()


def balls(shape, structures: int, batch: int, device):
    """Labels (B, X, Y, Z) of one ball per structure, side by side."""
    axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    label = torch.zeros(shape, dtype=torch.int64, device=device)
    for index in range(structures):
        centre = torch.tensor([0.8 * (index + 0.5) / structures - 0.4, 0.0, 0.0], device=device)
        label[(points - centre).norm(dim=-1) < 0.5 / structures] = index + 1
    return label.expand(batch, -1, -1, -1)


def median_seconds(function, device, repeats: int, clock=time.perf_counter) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times[1:])


def operations_per_second(device, dtype) -> float:
    size = 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 5)


if __name__ == "__main__":
    run_script(main)
