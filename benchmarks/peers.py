"""What else computes the distance from a whole grid to a mesh: one function a peer, for `signed_distance.py`.

A peer takes a Problem and returns a Row. Whatever its library allows beforehand (trees, copies of the points in its own
types) is done before the clock starts; `compute` then gives the whole grid. A peer that is missing raises ImportError.

    pip install fcpw pysdf meshlib libigl open3d point-cloud-utils warp-lang mesh2sdf vtk
"""

import contextlib
import functools
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from timing import Row

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._kernels import cuda_kernels


class Problem(NamedTuple):
    """A mesh, a grid over the cube [-1, 1]^3 and the voxels where results are judged."""

    vertices: torch.Tensor  # (V, 3) float32, on the CPU
    faces: torch.Tensor  # (F, 3) int64, on the CPU
    size: int  # voxels along each axis
    sample: torch.Tensor  # flat indices of voxels
    device: torch.device
    threads: int

    def points(self):
        """All voxel centres, (size^3, 3) float32 on the CPU."""
        return reference.grid_points([self.size] * 3, self.vertices)

    def arrays(self):
        """Vertices, faces (int32) and points as numpy arrays."""
        return self.vertices.numpy(), self.faces.numpy().astype(np.int32), self.points().numpy()

    def pick(self, result):
        """A whole grid's result at the sample, (S,) float64."""
        return torch.as_tensor(result).flatten()[self.sample.to(getattr(result, "device", "cpu"))].cpu().double()


def _brute_force(problem):
    """Every point with every face in plain torch; on a CPU at the sample only."""
    sampled = problem.device.type == "cpu"
    points = problem.points()[problem.sample] if sampled else problem.points().to(problem.device)
    frame = reference.make_frame(problem.vertices.to(problem.device), problem.faces.to(problem.device))
    chunk = max((2**21 if sampled else 2**24) // len(problem.faces), 1)
    return Row(
        "brute force in torch",
        lambda: torch.cat([reference.nearest(frame, part)[0] for part in points.split(chunk)]),
        torch.Tensor.double if sampled else problem.pick,
        False,
        len(points) / problem.size**3,
        f"{len(points)} voxels, scaled up" if sampled else "",
    )


@functools.cache
def _brute_force_library() -> _gpu.CudaKernels:
    """The kernel, compiled here for this machine's GPUs."""
    folder = Path(tempfile.mkdtemp())
    source, target = Path(__file__).with_name("brute_force.cu"), folder / "brute_force.so"
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-arch=native", f"-I{_gpu.CSRC}"]
    subprocess.run(["nvcc", *options, source, "-o", target], check=True)
    return _gpu.CudaKernels(target)


def _brute_force_kernel(problem):
    """Every voxel with every face in a CUDA kernel."""
    kernels = _brute_force_library()
    vertices, faces = problem.vertices.to(problem.device)[None], problem.faces.to(problem.device)
    triangles = _gpu.prepare_triangles(cuda_kernels, vertices, faces)
    distance = torch.empty(problem.size**3, device=problem.device)

    def compute():
        groups = _gpu.groups_of(len(distance))
        sizes = (len(faces), *[problem.size] * 3)
        kernels.run(problem.device, ("brute_force", groups, triangles, distance, *sizes))
        return distance

    return Row("brute force kernel", compute, problem.pick, False)


def _fcpw(problem):
    import fcpw

    vertices, faces, points = problem.arrays()
    scene = fcpw.scene_3D()
    scene.set_object_count(1)
    scene.set_object_vertices(vertices, 0)
    scene.set_object_triangles(faces, 0)
    scene.build(fcpw.aggregate_type.bvh_surface_area, True)
    points, radii = np.asfortranarray(points), np.full(len(points), np.inf, np.float32)

    def closest():
        found = fcpw.interaction_3D_list()
        scene.find_closest_points(points, radii, found)
        return found

    return Row("FCPW", closest, lambda found: torch.tensor([found[i].d for i in problem.sample.tolist()]), False)


def _libigl(problem, sign="PSEUDONORMAL"):
    import igl

    vertices, faces, points = problem.arrays()
    given = points.astype(np.float64), vertices.astype(np.float64), faces.astype(np.int64)
    kind = getattr(igl, f"SIGNED_DISTANCE_TYPE_{sign}")
    name = f"libigl, {sign.lower().replace('_', ' ')}"
    return Row(name, lambda: igl.signed_distance(*given, kind)[0], problem.pick)


def _mesh2sdf_pypi(problem):
    """Its grid is -1 + 2 i / size, so the mesh moves with it."""
    from mesh2sdf import core

    vertices, faces, _ = problem.arrays()
    scale = (problem.size - 1) / problem.size
    moved = ((vertices + 1) * scale - 1).astype(np.float32)
    return Row(
        "mesh2sdf of PyPI", lambda: core.compute(moved, faces, problem.size), lambda sdf: problem.pick(sdf) / scale
    )


def _meshlib(problem):
    from meshlib import mrmeshnumpy, mrmeshpy

    vertices, faces, points = problem.arrays()
    mesh = mrmeshnumpy.meshFromFacesVerts(faces, vertices)
    points = mrmeshpy.VertCoords(mrmeshnumpy.fromNumpyArray(points))
    return Row(
        "MeshLib, projection normal",
        lambda: mrmeshpy.findSignedDistances(mesh, points).vec_,
        lambda sdf: torch.tensor([sdf[i] for i in problem.sample.tolist()]),
    )


def _open3d(problem, rays=1):
    import open3d

    vertices, faces, points = problem.arrays()
    scene = open3d.t.geometry.RaycastingScene(nthreads=problem.threads)
    scene.add_triangles(open3d.core.Tensor(vertices), open3d.core.Tensor(faces.astype(np.uint32)))
    points = open3d.core.Tensor(points)
    return Row(
        f"Open3D, {rays} ray{'s' * (rays > 1)}",
        lambda: scene.compute_signed_distance(points, nthreads=problem.threads, nsamples=rays).numpy(),
        problem.pick,
    )


def _point_cloud_utils(problem):
    import point_cloud_utils

    vertices, faces, points = problem.arrays()
    return Row(
        "point_cloud_utils", lambda: point_cloud_utils.signed_distance_to_mesh(points, vertices, faces)[0], problem.pick
    )


def _pysdf(problem):
    import pysdf

    vertices, faces, points = problem.arrays()
    field = pysdf.SDF(vertices, faces)
    return Row("pysdf", lambda: field(points, n_threads=problem.threads), lambda sdf: -problem.pick(sdf))


def _warp(problem):
    import warp

    warp.config.quiet, warp.config.log_level = True, 40  # older and newer Warp; errors only

    @warp.kernel
    def query(mesh: warp.uint64, points: warp.array(dtype=warp.vec3), sdf: warp.array(dtype=float)):
        i = warp.tid()
        found = warp.mesh_query_point_sign_normal(mesh, points[i], 1e6)
        closest = warp.mesh_eval_position(mesh, found.face, found.u, found.v)
        sdf[i] = found.sign * warp.length(points[i] - closest)

    device, (vertices, faces, points) = str(problem.device), problem.arrays()
    on_cuda = problem.device.type == "cuda"
    mesh = warp.Mesh(warp.array(vertices, warp.vec3, device=device), warp.array(faces.ravel(), int, device=device))
    points = warp.array(points, warp.vec3, device=device)

    def compute():
        # On torch's stream, where the clock is.
        stream = warp.stream_from_torch(torch.cuda.current_stream(problem.device)) if on_cuda else None
        with warp.ScopedStream(stream) if on_cuda else contextlib.nullcontext():
            sdf = warp.empty(len(points), float, device=device)
            warp.launch(query, len(points), [mesh.id, points, sdf], device=device)
        return sdf

    return Row("Warp", compute, lambda sdf: problem.pick(sdf.numpy()))


def vtk_stencil(vertices, faces, shape):
    """The row that fills a mesh, vertices (V, 3) in voxels, as a mask of `shape`."""
    import vtk
    from vtk.util import numpy_support

    points, cells, mesh = vtk.vtkPoints(), vtk.vtkCellArray(), vtk.vtkPolyData()
    points.SetData(numpy_support.numpy_to_vtk(vertices.numpy(), deep=True))
    cells.SetData(3, numpy_support.numpy_to_vtkIdTypeArray(faces.flatten().numpy(), deep=True))
    mesh.SetPoints(points)
    mesh.SetPolys(cells)

    def compute():
        stencil, image = vtk.vtkPolyDataToImageStencil(), vtk.vtkImageStencilToImage()
        stencil.SetInputData(mesh)
        stencil.SetOutputWholeExtent(*(bound for n in shape for bound in (0, n - 1)))
        image.SetInputConnection(stencil.GetOutputPort())
        image.SetOutputScalarTypeToUnsignedChar()
        image.Update()
        return image.GetOutput()

    def read(image):
        mask = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        return torch.from_numpy(mask.astype(bool).reshape(shape[::-1]).transpose())

    return Row("vtkPolyDataToImageStencil", compute, read)


ON_CPU = {
    "fcpw": _fcpw,
    "pysdf": _pysdf,
    "meshlib": _meshlib,
    "libigl": _libigl,
    "libigl-winding": partial(_libigl, sign="FAST_WINDING_NUMBER"),
    "open3d": _open3d,
    "open3d-3-rays": partial(_open3d, rays=3),
    "point_cloud_utils": _point_cloud_utils,
    "warp": _warp,
    "mesh2sdf-pypi": _mesh2sdf_pypi,
    "brute-force": _brute_force,
}
ON_DEVICE = {
    "cpu": ON_CPU,
    "cuda": {"brute-force-kernel": _brute_force_kernel, "warp": _warp, "brute-force": _brute_force},
    "mps": {"brute-force": _brute_force},
}
