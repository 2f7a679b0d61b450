"""How well and how fast a pretrained DeepRepresentationNetwork measures distances; prints a table.

    python benchmarks/drn_quality.py --config=configs_implicitmeshnet/drn_small.json [--phantoms=data/phantom/test]

Held-out shapes: spheres with the paper's deformations; bent ellipsoids, tubes and cups of ours. Phantom structures:
template spheres pulled onto each label by descent through the exact distance. Error within 3 voxels of the surface,
share of voxels on the right side, Dice of the zero level; medians of the time per mesh beside Mesh2SDF.
"""

import argparse
from dataclasses import replace

import torch
from timing import SYNCHRONIZE, Row, hold_threads, measure

from implicitmeshnet.config import DataConfig, DrnConfig, LossConfig, load_config
from implicitmeshnet.data.dataset import find_cases, training_sample
from implicitmeshnet.data.ellipsoids import template_statistics
from implicitmeshnet.mesh import icosphere, neighbours
from implicitmeshnet.models.drn import sdf_quality
from implicitmeshnet.models.weights import load_drn, pick_device
from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.phantom.patient import LABELS
from implicitmeshnet.script import keep_freed_memory, run_script
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.losses import laplacian_loss, occupancy_logits, occupancy_loss, structure_masks
from implicitmeshnet.training.random_shapes import random_shapes

HELD_OUT_SEED = 2**33
SHAPES = 64
KINDS = ("ellipsoids", "tubes", "cups")
CASES = 3
BOX_MM = 166.4  # of configs_implicitmeshnet/whole_heart.json
DRAWN = 4  # shapes at once
STEPS = 150


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--phantoms", help="folder of labelled phantoms")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    config, device = load_config(arguments.config, kind=DrnConfig), pick_device(arguments.device)
    hold_threads(arguments.threads)
    keep_freed_memory()
    subdivisions = config.network.template_subdivisions
    drn = load_drn(arguments.config, subdivisions, device)
    sphere, faces = icosphere(subdivisions)
    print(
        f"{device}, {arguments.threads} threads, {config.network.shape}, {len(sphere)} vertices,"
        f" {sum(p.numel() for p in drn.parameters())} weights"
    )
    print(f"{'meshes':<28}{'count':>7}{'error voxels':>14}{'sign':>9}{'Dice':>9}")
    for kind in ("spheres", *KINDS):
        shapes = replace(config.shapes, **{name: float(name == kind) for name in KINDS})
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        judge(f"held-out {kind}", drn, random_shapes(sphere, SHAPES, shapes, generator), device)
    if arguments.phantoms:
        meshes = phantom_meshes(arguments.phantoms, config.network.shape, sphere, faces, device)
        for name, vertices in zip(LABELS, meshes, strict=True):
            judge(f"phantom {name}", drn, vertices, device)
    generator = torch.Generator().manual_seed(0)
    vertices = random_shapes(sphere, 1, config.shapes, generator).to(device)
    rows = times("DeepRepresentationNetwork", lambda v: drn(v)[-1], vertices)
    rows += times("Mesh2SDF", lambda v: mesh2sdf(v, drn.faces, list(config.network.shape)), vertices)
    print(f"\n{'time per mesh, ms':<28}{'forward':>10}{'+ backward':>12}")
    rows.append(Row("drawing a shape", lambda: random_shapes(sphere, DRAWN, config.shapes, generator), share=DRAWN))
    results = measure(rows, 7, SYNCHRONIZE[device.type])
    for index in (0, 2):
        print(f"{rows[index].name:<28}{results[index].ms:>10.1f}{results[index + 1].ms:>12.1f}")
    print(f"{rows[4].name:<28}{results[4].ms:>10.1f}")


@torch.no_grad()
def judge(name: str, drn, meshes, device):
    """One row: mean quality over meshes (B, V, 3)."""
    rows = []
    for vertices in meshes.split(1):
        target = mesh2sdf(vertices.to(device), drn.faces, list(drn.shape))
        rows.append(sdf_quality(drn(vertices.to(device))[-1], target))
    means = {}
    for key in rows[0]:
        means[key] = sum(row[key] for row in rows) / len(rows)
    print(f"{name:<28}{len(rows):>7}{means['error_voxels']:>14.3f}{means['sign']:>9.4f}{means['dice']:>9.4f}")


def phantom_meshes(folder: str, shape, sphere, faces, device):
    """Meshes (S, cases, V, 3) of the phantoms' structures, the myocardium's as the epicardium, fitted to their labels
    in the box that the whole-heart network sees."""
    data = DataConfig(
        structures={name: [value] for name, value in LABELS.items()},
        encloses={"Myo": ["LV"]},
        region="found",
        shape=shape,
        spacing_mm=BOX_MM / max(shape),
    )
    samples = [training_sample(case, data) for case in find_cases(folder, labelled=True)[:CASES]]
    statistics = template_statistics([sample.facts.ellipsoids for sample in samples], data)
    centres, radii = (torch.tensor(value, dtype=torch.float32) for value in statistics)
    template = (centres[:, None] + radii[:, None] * sphere).to(device)  # (S, V, 3)
    around, faces, meshes = neighbours(faces, len(sphere)), faces.to(device), []
    temperature = LossConfig().temperature
    for sample in samples:
        masks = structure_masks(sample.label[None].to(device), Structures.of(data))
        vertices = template.clone().requires_grad_()
        optimizer = torch.optim.Adam([vertices], 0.01)
        for _ in range(STEPS):
            logits = occupancy_logits(
                vertices[None], lambda v, grid: mesh2sdf(v, faces, grid), list(masks.shape[2:]), temperature
            )
            loss = occupancy_loss(logits, masks)
            optimizer.zero_grad()
            (loss + 100 * laplacian_loss(vertices, around)).backward()
            optimizer.step()
        meshes.append(vertices.detach())
    return torch.stack(meshes, 1)


def times(name: str, function, vertices):
    leaf = vertices.clone().requires_grad_()
    return [Row(name, lambda: function(vertices)), Row(name, lambda: torch.autograd.grad(function(leaf).sum(), leaf))]


if __name__ == "__main__":
    run_script(main)
