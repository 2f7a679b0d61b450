"""Times mesh2sdf, forward and backward, against what else computes a signed distance; prints tables.

    python benchmarks/signed_distance.py [--meshes b c] [--sizes 64 128] [--rounds 3] [--threads N] [--ghz 4.0]
                                  [--peers all | none | NAME ...] [--faces] [--device cpu | cuda | mps]

Mesh b has 5120 faces, c 20480: icospheres of radius 0.5, smoothly displaced by 0.1. Distances are in half sides of the
grid's cube. All rows take turns within a round, so that a busy machine slows them alike; a quick row's turn lasts
0.1 s; medians of all calls are shown. Peers (benchmarks/peers.py) get their trees built before the clock starts, where
they have one; ours has nothing to prepare. On 2 cores the two sizes of mesh b take 3 minutes, nearly all the peers'.

- cores: processor time over wall time; an upper bound of what a row uses, as threads that wait by spinning count too.
- max error: of |distance| against mesh2sdf in float64 on the CPU, at 4096 voxels; wrong signs among the same.
- exact: max error at most 3e-6 and no wrong sign; a peer that gives no sign is judged by its distances.
- backward: torch.autograd.grad(sdf, vertices, a fixed random gradient), without the forward.
- write outputs: the floor that memory sets; filling 8 bytes a voxel (sdf and face) of memory that is in use already,
  and of memory fresh from the system, which every first touch of a page makes slower.
- arithmetic floor: voxels / 16 x 6 x 30 / (2 x GHz x threads) seconds: a vector holds 16 voxels, at least 6 faces stay
  in question for each, a test takes about 30 instructions, and a core issues 2 vector instructions a cycle.
- memory: what a call's peak adds to the resident memory of a fresh process.

--threads also holds the process to as many cores, where the system can, as not every peer has a setting of its own.
--faces times ours alone over meshes from 12 to 81920 faces. On cuda and mps the peers are brute force in torch over all
faces, and Warp on cuda.
"""

import argparse
import mmap
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor

import peers
import torch
import trimesh
from peers import Problem
from timing import SYNCHRONIZE, Row, at_least, hold_threads, measure

from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.weights import pick_device
from implicitmeshnet.ops import compiled, mesh2sdf, voxelize
from implicitmeshnet.script import InputError, core_count, run_script

SUBDIVISIONS = {"b": 4, "c": 5}
SAMPLE = 4096  # voxels
EXACT = 3e-6  # half sides


def displaced_sphere(subdivisions):
    vertices, faces = icosphere(subdivisions)
    x, y, _ = vertices.split(1, 1)
    return vertices * (0.5 + 0.1 * torch.sin(3 * x + 1) * torch.cos(4 * y)), faces


def make_problem(mesh, size, device, threads):
    sample = torch.randperm(size**3, generator=torch.Generator().manual_seed(0))[:SAMPLE]
    return Problem(*mesh, size, sample, device, threads)


def ours(problem):
    """Rows: forward, forward + backward, backward."""
    constant, faces, size = problem.vertices.to(problem.device), problem.faces.to(problem.device), problem.size
    leaf = constant.clone().requires_grad_()
    gradient = torch.randn([size] * 3, generator=torch.Generator().manual_seed(1)).to(problem.device)
    ready = mesh2sdf(leaf, faces, size)
    return [
        Row("ours, forward", lambda: mesh2sdf(constant, faces, size), problem.pick),
        Row("ours, forward + backward", lambda: torch.autograd.grad(mesh2sdf(leaf, faces, size), leaf, gradient)),
        Row("ours, backward", lambda: torch.autograd.grad(ready, leaf, gradient, retain_graph=True)),
    ]


def floor(problem):
    """Rows that write as many bytes as the forward does: two values of 4 bytes a voxel."""
    kept = torch.empty(2 * problem.size**3, device=problem.device)
    rows = [Row("write outputs, reused memory", lambda: kept.fill_(1))]
    if problem.device.type == "cpu":  # torch.empty would give freed memory again
        rows.append(
            Row(
                "write outputs, fresh memory",
                lambda: torch.frombuffer(mmap.mmap(-1, kept.nbytes), dtype=torch.float32).fill_(1),
            )
        )
    return rows


def installed(names, problem, missing):
    """The rows of the peers `names`; adds those that cannot be imported to `missing`, with the reason if odd."""
    rows = []
    for name in names:
        try:
            rows.append(peers.ON_DEVICE[problem.device.type][name](problem))
        except ImportError as error:
            missing[name.split("-")[0]] = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
    return rows


def judge(row, value, truth):
    """max |error| of the distances, the number of wrong signs (None without sign) and whether the row is exact."""
    error = (value.abs() - truth.abs()).abs().max().item()
    wrong = ((value < 0) != (truth < 0)).sum().item() if row.signed else None
    return error, wrong, error <= EXACT and not wrong


def sdf_table(problem, names, arguments, missing):
    synchronize = SYNCHRONIZE[problem.device.type]
    warm_up = problem._replace(size=8, sample=torch.arange(8**3))
    measure(ours(warm_up) + installed(names, warm_up, missing), 1, synchronize)
    rows = ours(problem) + floor(problem) + installed(names, problem, missing)
    results = measure(rows, arguments.rounds, synchronize)
    truth = mesh2sdf(problem.vertices.double(), problem.faces, problem.size).flatten()[problem.sample]
    print(f"{'':<30}{'median ms':>11}{'cores':>7}{'x ours':>9}{'max error':>11}{'wrong signs':>13}{'exact':>7}")
    exact_peers = []
    for row, result in zip(rows, results, strict=True):
        line = f"{row.name:<30}{result}{result.ms / results[0].ms:>9.2f}"
        if result.value is not None:
            error, wrong, exact = judge(row, result.value, truth)
            line += f"{error:>11.1e}{'no sign' if wrong is None else wrong:>13}{'yes' if exact else 'no':>7}"
            if exact and row is not rows[0]:
                exact_peers.append((result.ms, row))
        print(line + f"  {row.note}".rstrip())
    summarise(results, exact_peers, problem, arguments)


def summarise(results, exact_peers, problem, arguments):
    forward, _, backward = (result.ms for result in results[:3])
    for kind, rivals in (("", exact_peers), (" with sign", [rival for rival in exact_peers if rival[1].signed])):
        for best, row in sorted(rivals, key=lambda rival: rival[0])[:1]:
            print(f"fastest exact peer{kind}: {row.name}, {best / forward:.1f} times ours, forward")
    print(f"ours, backward / forward: {backward / forward:.2f}")
    if problem.device.type == "cpu":
        least = problem.size**3 / 16 * 6 * 30 / (2 * arguments.ghz * 1e9 * problem.threads) * 1e3
        print(f"arithmetic floor at {arguments.ghz:g} GHz: {least:.2f} ms; ours, forward: {forward / least:.1f} times")


def face_meshes():
    """Name -> mesh: spheres from 1280 faces up, one large coarse mesh, one open mesh."""
    meshes = {f"sphere of {20 * 4**n} faces": displaced_sphere(n) for n in (3, 4, 5, 6)}
    box = trimesh.creation.box(extents=(1.4, 1.2, 1.0))
    meshes["box of 12 faces"] = torch.tensor(box.vertices, dtype=torch.float32), torch.tensor(box.faces)
    vertices, faces = displaced_sphere(4)
    cut = faces[(vertices[faces][..., 2] < 0.25).all(1)]
    return meshes | {f"open sphere of {len(cut)} faces": (vertices, cut)}


def face_table(size, device, arguments):
    """Ours over meshes, which take turns as the rows do."""
    meshes = face_meshes()
    rows = [row for mesh in meshes.values() for row in ours(make_problem(mesh, size, device, arguments.threads))]
    results = measure(rows, arguments.rounds, SYNCHRONIZE[device.type])
    print(f"\n{f'ours at {size}^3':<30}{'forward ms':>11}{'backward ms':>13}")
    for name, forward, backward in zip(meshes, results[::3], results[2::3], strict=True):
        print(f"{name:<30}{forward.ms:>11.2f}{backward.ms:>13.2f}")


def voxelize_table(shape, mesh, arguments, missing):
    """Mesh b filled, against VTK; on the CPU."""
    vertices, faces = transform(voxel_from_normalised(shape), mesh[0]).contiguous(), mesh[1]
    rows = [Row("ours, voxelize", lambda: voxelize(vertices, faces, shape), torch.Tensor.clone)]
    try:
        rows.append(peers.vtk_stencil(vertices, faces, shape))
    except ImportError:
        missing["vtk"] = ""
    results = measure(rows, arguments.rounds, SYNCHRONIZE["cpu"])
    title = "voxelize at " + " x ".join(map(str, shape))
    print(f"\n{title:<30}{'median ms':>11}{'cores':>7}{'x ours':>9}{'voxels that differ':>20}")
    for row, result in zip(rows, results, strict=True):
        differing = (result.value != results[0].value).sum().item()
        print(f"{row.name:<30}{result}{result.ms / results[0].ms:>9.2f}{differing:>20}")


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bytes_a_voxel(size, backward):
    """What one call adds to the peak; for a process of its own, as a peak never falls."""
    vertices, faces = displaced_sphere(SUBDIVISIONS["b"])
    vertices.requires_grad_(backward)
    gradient = torch.ones([size] * 3)

    def call(size):
        sdf = mesh2sdf(vertices, faces, size)
        return torch.autograd.grad(sdf, vertices, gradient[:size, :size, :size]) if backward else sdf

    call(8)
    before, ballast = peak_bytes(), []
    while peak_bytes() == before:  # fills up to the peak so far, which may be the parent's
        ballast.append(b"\1" * 2**18)
    before = peak_bytes()
    call(size)
    return (peak_bytes() - before) / size**3


def memory_line(size):
    found = []
    for backward in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(bytes_a_voxel, size, backward).result())
    print(f"memory: {found[0]:.1f} bytes a voxel forward, {found[1]:.1f} forward + backward (ours, {size}^3)")


def chosen_peers(wanted, device):
    """The names that --peers means."""
    known = list(peers.ON_DEVICE[device.type])
    names = {("all",): known, ("none",): []}.get(tuple(wanted), wanted)
    for name in names:
        if name not in known:
            raise InputError(f"--peers: wanted all, none or some of {', '.join(known)} on {device}, found {name}")
    return names


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meshes", nargs="+", choices=list(SUBDIVISIONS), default=["b"])
    parser.add_argument("--sizes", type=at_least(2), nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--threads", type=at_least(1), default=core_count())
    parser.add_argument("--ghz", type=float, default=4.0, help="of the cores, for the arithmetic floor")
    parser.add_argument("--peers", nargs="+", default=["all"], metavar="NAME", help="all, none or names")
    parser.add_argument("--faces", action="store_true", help="also time ours over the number of faces")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main():
    arguments, missing = parse_arguments(), {}
    device = pick_device(arguments.device)
    names = chosen_peers(arguments.peers, device)
    hold_threads(arguments.threads)
    print(f"{device}, {arguments.threads} threads, compiled for the CPU: {compiled()}")
    if device.type == "cpu":
        for size in arguments.sizes:
            memory_line(size)
    for key in arguments.meshes:
        mesh = displaced_sphere(SUBDIVISIONS[key])
        for size in arguments.sizes:
            print(f"\nmesh {key}, {len(mesh[1])} faces, {size}^3")
            sdf_table(make_problem(mesh, size, device, arguments.threads), names, arguments, missing)
    for size in arguments.sizes if arguments.faces else []:
        face_table(size, device, arguments)
    if device.type == "cpu":
        for shape in ((128, 128, 128), (512, 512, 300)):
            voxelize_table(shape, displaced_sphere(SUBDIVISIONS["b"]), arguments, missing)
    if missing:
        print("\nnot installed: " + ", ".join(name + reason for name, reason in missing.items()))


if __name__ == "__main__":
    run_script(main)
