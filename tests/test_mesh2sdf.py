"""The exact signed distance against analytic shapes, an independent brute force in float64, and its reference."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import bumpy_sphere

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import Mesh2SDF, compiled, mesh2sdf, reference

SHAPES = [(16, 16, 16), (17, 5, 33), (2, 3, 4), (20, 24, 9)]
TORUS_RADII = 0.5, 0.2
FLOAT32_ERROR = 3e-7 if compiled() else 1e-6  # of the cube's half side, times the distance where that is above 1


def grid(shape):
    axes = [np.linspace(-1, 1, n) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def mesh(kind):
    """A closed mesh in float64 vertices and int64 faces."""
    if kind == "box":
        made = trimesh.creation.box((1.0, 0.8, 1.2))
    elif kind == "torus":
        made = trimesh.creation.torus(*TORUS_RADII, major_sections=96, minor_sections=48)
    else:
        made = trimesh.creation.icosphere(subdivisions=int(kind), radius=0.5)
    return torch.tensor(made.vertices), torch.tensor(made.faces)


def bumpy(subdivisions, dtype=torch.float64, seed=0):
    phase = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 6
    return bumpy_sphere(subdivisions, phase, dtype)


def brute_force(points, vertices, faces):
    """Unsigned distances in float64 by another route than the op: plane where the foot is inside, else the edges."""
    corners = vertices[faces]  # (F, 3, 3)
    points, best = points[:, None], np.full((len(points), len(faces)), np.inf)
    for k in range(3):
        a, way = corners[:, k], corners[:, (k + 1) % 3] - corners[:, k]
        t = ((points - a) * way).sum(-1) / np.maximum((way * way).sum(-1), 1e-300)
        best = np.minimum(best, np.linalg.norm(points - a - np.clip(t, 0, 1)[..., None] * way, axis=-1))
    a, u, v = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    uu, uv, vv, way = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1), points - a
    determinant = uu * vv - uv * uv
    flat = determinant > 1e-20
    pu, pv, scale = (way * u).sum(-1), (way * v).sum(-1), 1 / np.where(flat, determinant, 1)
    s, t = (vv * pu - uv * pv) * scale, (uu * pv - uv * pu) * scale
    foot = np.linalg.norm(way - s[..., None] * u - t[..., None] * v, axis=-1)
    return np.where(flat & (s >= 0) & (t >= 0) & (s + t <= 1), foot, best).min(1)


def winding_number(points, vertices, faces):
    """By solid angles (van Oosterom and Strackee 1983), (N,)."""
    a, b, c = (vertices[faces[:, k]] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
    volume = (a * np.cross(b, c)).sum(-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return np.arctan2(volume, below).sum(1) / (2 * np.pi)


def closed_mesh(kind, generator):
    """A closed mesh of random size, place and orientation; float64 vertices and int64 faces."""
    if kind == "torus":
        made = trimesh.creation.torus(0.5, generator.uniform(0.02, 0.4), 8, 6)
    elif kind in ("box", "plate"):
        extents = generator.uniform(0.3, 1.5, 3)
        extents[generator.integers(3)] *= 1 if kind == "box" else 10 ** generator.uniform(-5, -1)
        made = trimesh.creation.box(extents)
    else:
        made = trimesh.creation.icosphere(subdivisions=int(generator.integers(3)), radius=generator.uniform(0.1, 0.9))
    vertices, faces = made.vertices.copy(), made.faces.copy()
    if kind == "template":
        vertices *= 1 + 0.3 * np.sin(generator.uniform(1, 6, 3) * vertices[:, [1, 2, 0]] + generator.uniform(0, 6, 3))
    if kind != "aligned":
        vertices = vertices @ np.linalg.qr(generator.normal(size=(3, 3)))[0]
    vertices += generator.uniform(-0.4, 0.4, 3)
    return vertices, faces if generator.integers(2) else faces[:, ::-1].copy()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_has_its_analytic_distance(shape):
    vertices, faces = mesh("box")
    outside = np.abs(grid(shape)) - np.array([0.5, 0.4, 0.6])
    truth = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)
    np.testing.assert_allclose(mesh2sdf(vertices, faces, shape), truth, atol=1e-14)
    sdf = mesh2sdf(vertices.float(), faces, shape)
    assert sdf.dtype == torch.float32
    np.testing.assert_allclose(sdf, truth, atol=3e-7)


def test_sphere_and_torus_up_to_their_tessellation():
    shape = (24, 21, 19)
    points = grid(shape)
    sphere = mesh2sdf(*mesh("4"), shape).numpy()
    np.testing.assert_allclose(sphere, np.linalg.norm(points, axis=-1) - 0.5, atol=1e-3)
    torus = mesh2sdf(*mesh("torus"), shape).numpy()
    ring = np.linalg.norm(points[..., :2], axis=-1) - TORUS_RADII[0]
    truth = np.hypot(ring, points[..., 2]) - TORUS_RADII[1]
    np.testing.assert_allclose(torus, truth, atol=2e-3)


def test_hand_worked_distances_to_one_triangle():
    """Above the inside, beyond an edge and beyond a corner of the triangle (0,0,0), (1,0,0), (0,1,0)."""
    vertices, faces = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64), torch.tensor([[0, 1, 2]])
    sdf = mesh2sdf(vertices, faces, (9, 9, 9)).abs()  # voxel i at -1 + i / 4
    assert sdf[5, 5, 6] == pytest.approx(0.5)
    assert sdf[6, 2, 4] == pytest.approx(0.5)
    assert sdf[8, 8, 4] == pytest.approx(2**-0.5)
    assert sdf[2, 2, 4] == pytest.approx(2**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(shape, dtype):
    vertices = torch.stack([bumpy(2, dtype, seed)[0] for seed in range(2)])
    faces = bumpy(2)[1]
    expected, _ = reference.mesh2sdf(vertices, faces, shape)
    sdf = mesh2sdf(vertices, faces, shape)
    torch.testing.assert_close(sdf, expected, atol=16 * torch.finfo(dtype).eps, rtol=0)
    assert torch.equal(sdf < 0, expected < 0)


@pytest.mark.parametrize("kind", ["box", "torus", "4", "template", "plate"])
def test_float32_is_accurate_to_3e_7(kind):
    vertices, faces = bumpy(4) if kind == "template" else mesh("box" if kind == "plate" else kind)
    vertices = (vertices * torch.tensor([1, 1, 1e-3 if kind == "plate" else 1])).float()
    truth = mesh2sdf(vertices.double(), faces, (65, 34, 47))
    sdf = mesh2sdf(vertices, faces, (65, 34, 47)).double()
    assert ((sdf - truth).abs() <= FLOAT32_ERROR * truth.abs().clamp(min=1)).all()
    assert ((sdf < 0) == (truth < 0))[truth.abs() > 1e-6].all()


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["template", "torus", "box", "plate", "aligned"]),
    st.sampled_from([(9, 5, 9), (5, 17, 3), (4, 6, 7)]),
)
def test_random_closed_meshes_have_the_distance_and_sign_of_brute_force(seed, kind, shape):
    """Distance and sign against brute force; 'aligned' ones have vertices, and so edges, on the grid's lines."""
    vertices, faces = closed_mesh(kind, np.random.default_rng(seed))
    if kind == "aligned":
        half = (np.array(shape) - 1) / 2
        vertices = np.round(vertices * half) / half
    vertices = torch.tensor(vertices, dtype=torch.float32)
    exact, points = vertices.double().numpy(), grid(shape).reshape(-1, 3)
    sdf = mesh2sdf(vertices, torch.tensor(faces), shape).double().flatten().numpy()
    distance = brute_force(points, exact, faces)
    assert (np.abs(np.abs(sdf) - distance) <= FLOAT32_ERROR * np.maximum(distance, 1)).all()
    off = distance > 1e-6
    assert ((sdf < 0) == (np.abs(winding_number(points, exact, faces)) > 0.5))[off].all()


def test_an_open_mesh_counts_on_to_the_far_side():
    """A square facing down at z = 0: above it the winding number is 1, as nothing ends it; elsewhere 0."""
    corners = torch.tensor([[-0.6, -0.6, 0.1], [0.6, -0.6, 0.1], [0.6, 0.6, 0.1], [-0.6, 0.6, 0.1]])
    inside = mesh2sdf(corners, torch.tensor([[0, 2, 1], [0, 3, 2]]), 9) < 0
    assert torch.equal(
        inside, torch.tensor((np.abs(grid((9, 9, 9))[..., :2]).max(-1) < 0.6) & (grid((9, 9, 9))[..., 2] > 0.1))
    )


def test_shared_and_doubled_faces_keep_their_distance():
    """Three leaves on one edge, and every face twice: not manifold, but no less a set of triangles."""
    corners = torch.tensor([[0, 0, -0.7], [0, 0, 0.7], [0.8, 0.1, 0], [-0.5, 0.6, 0], [-0.3, -0.8, 0.2]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 2], [1, 0, 3], [2, 2, 2], [0, 1, 1]])
    sdf = mesh2sdf(corners, faces, (9, 8, 7)).abs().flatten()
    truth = brute_force(grid((9, 8, 7)).reshape(-1, 3), corners.numpy(), faces.numpy())
    np.testing.assert_allclose(sdf, truth, atol=1e-14)


def test_many_faces_at_the_same_distance_give_that_distance():
    """A sphere around the grid's centre, where all faces are equally close."""
    vertices, faces = icosphere(4)
    sdf = mesh2sdf(0.9 * vertices, faces, 5)
    assert sdf[2, 2, 2] == pytest.approx(-0.9 * float(vertices[faces].mean(1).norm(dim=1).min()), abs=1e-3)


def test_float64_matches_an_independent_brute_force():
    vertices, faces = bumpy(3)
    points = grid((33, 18, 21))
    sdf = mesh2sdf(vertices, faces, points.shape[:3]).numpy()
    sample = np.random.default_rng(0).choice(sdf.size, 300, replace=False)
    truth = brute_force(points.reshape(-1, 3)[sample], vertices.numpy(), faces.numpy())
    np.testing.assert_allclose(np.abs(sdf).ravel()[sample], truth, atol=1e-13)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 1e-4, 0.3, 3.0]), st.sampled_from(["any", "sliver", "point"]))
def test_any_soup_of_triangles_has_the_distance_of_brute_force(seed, size, kind):
    """Slivers, points, collinear faces and faces beyond the grid keep their distance, in both precisions."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-1, 1, (6, 1, 3)) + size * generator.uniform(-1, 1, (6, 3, 3))
    if kind == "sliver":
        corners[:, 2] = corners[:, 0] + generator.uniform(-1, 2, (6, 1)) * (corners[:, 1] - corners[:, 0])
    if kind == "point":
        corners[:, 1:] = corners[:, :1]
    vertices = torch.tensor(corners.reshape(-1, 3), dtype=torch.float32)
    faces = torch.arange(18).view(6, 3)
    points = grid((7, 5, 6))
    truth = brute_force(points.reshape(-1, 3), vertices.double().numpy(), faces.numpy())
    extent = max(1.0, float(vertices.abs().max()))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-8)):
        sdf = mesh2sdf(vertices.to(dtype), faces, (7, 5, 6)).abs().flatten()
        np.testing.assert_allclose(sdf, truth, atol=tolerance * extent)


@pytest.mark.parametrize("flip", [False, True])
def test_faces_on_the_grid_are_signed_right(flip):
    """A box whose faces, edges and corners fall on voxel centres, in both orientations."""
    corners = trimesh.creation.box((1.0, 1.0, 1.0))
    faces = torch.tensor(corners.faces.copy())
    sdf = mesh2sdf(torch.tensor(corners.vertices), faces.flip(1) if flip else faces, 9)  # centres at multiples of 1/4
    truth = np.abs(grid((9, 9, 9))).max(-1) - 0.5
    assert ((sdf.numpy() < 0) == (truth < 0))[truth != 0].all()
    assert (sdf[torch.tensor(truth == 0)].abs() <= 1e-15).all()


def test_overlapping_spheres_give_their_union():
    vertices, faces = mesh("2")
    both = torch.cat([vertices - 0.2, vertices + 0.2])
    sdf = mesh2sdf(both, torch.cat([faces, faces + len(vertices)]), 21)
    inside = (mesh2sdf(vertices - 0.2, faces, 21) < 0) | (mesh2sdf(vertices + 0.2, faces, 21) < 0)
    assert torch.equal(sdf < 0, inside)


@pytest.mark.parametrize("shape", [(5, 4, 6), (9, 3, 17)])
def test_gradient_matches_finite_differences(shape):
    vertices, faces = bumpy(1)
    vertices = torch.stack([vertices, 0.8 * vertices]).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: mesh2sdf(v, faces, shape), (vertices,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_matches_the_reference(dtype):
    """For the same closest faces; near ties, rounding may choose another one of them."""
    vertices, faces = bumpy(2, dtype)
    sdf, face = reference.mesh2sdf(vertices[None], faces, (17, 5, 33))
    grad = torch.randn(sdf.shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) * (sdf.abs() > 1e-2)
    arguments = grad, vertices[None], faces, sdf, face
    found, expected = torch.ops.implicitmeshnet.mesh2sdf_backward(*arguments), reference.mesh2sdf_backward(*arguments)
    torch.testing.assert_close(found, expected, atol=2e-5 if dtype == torch.float32 else 1e-12, rtol=0)


def test_gradient_on_the_surface_is_the_face_normal():
    vertices = torch.tensor([[-0.9, -0.9, 0], [0.9, -0.9, 0], [0, 0.9, 0]], requires_grad=True)
    sdf = mesh2sdf(vertices, torch.tensor([[0, 1, 2]]), 3)
    assert sdf[1, 1, 1] == 0
    sdf[1, 1, 1].backward()
    torch.testing.assert_close(vertices.grad.sum(0), torch.tensor([0.0, 0.0, -1.0]))


def test_moving_the_mesh_moves_the_field():
    """The gradients of a translation add up to minus the field's own gradient."""
    vertices, faces = bumpy(2)
    vertices.requires_grad_()
    (grad,) = torch.autograd.grad(mesh2sdf(vertices, faces, 9)[1, 2, 3], vertices)
    assert grad.sum(0).norm() == pytest.approx(1, abs=1e-12)


@pytest.mark.skipif(not compiled(), reason="no compiled library: the reference leaves summation order to torch")
def test_same_bits_on_any_number_of_threads():
    vertices, faces = bumpy(3, torch.float32)
    grad = torch.randn(33, 20, 18, generator=torch.Generator().manual_seed(0))
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf = vertices.clone().requires_grad_()
            sdf = mesh2sdf(leaf, faces, grad.shape)
            results.append((sdf.detach(), *torch.autograd.grad(sdf, leaf, grad)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


def test_torchs_own_checks_of_an_operator_pass():
    vertices, faces = bumpy(1, torch.float32)
    vertices = vertices[None].requires_grad_()
    torch.library.opcheck(torch.ops.implicitmeshnet.mesh2sdf.default, (vertices, faces, [5, 4, 6]))
    sdf, face = torch.ops.implicitmeshnet.mesh2sdf(vertices.detach(), faces, [5, 4, 6])
    arguments = torch.ones_like(sdf), vertices.detach(), faces, sdf, face
    torch.library.opcheck(torch.ops.implicitmeshnet.mesh2sdf_backward.default, arguments)


def test_layouts_types_and_batches_make_no_difference():
    vertices, faces = bumpy(2, torch.float32)
    expected = Mesh2SDF(np.int64(12))(vertices, faces)
    assert expected.shape == (12, 12, 12)
    strided = vertices.repeat_interleave(2, 0)[::2].T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(mesh2sdf(strided, faces.int().T.contiguous().T, (12, 12, 12)), expected)
    batch = mesh2sdf(vertices.expand(3, -1, -1), faces, 12)
    assert torch.equal(batch, expected.expand(3, -1, -1, -1))
    assert mesh2sdf(vertices.expand(0, -1, -1), faces, (4, 5, 6)).shape == (0, 4, 5, 6)


def test_vertices_that_are_not_finite_give_nan_for_their_item_only():
    vertices, faces = bumpy(1, torch.float32)
    batch = torch.stack([vertices] * 3)
    batch[1, 4, 2], batch[2, 0, 0] = torch.nan, torch.inf
    sdf = mesh2sdf(batch.requires_grad_(), faces, 8)
    assert sdf[0].isfinite().all()
    assert sdf[1:].isnan().all()
    sdf.sum().backward()  # no crash
    huge = mesh2sdf(vertices * 1e6, faces, 4)
    assert huge.isfinite().all()
    assert mesh2sdf(vertices * 1e20, faces, 4).isnan().all()


def test_a_mesh_far_larger_than_the_grid_keeps_its_sign():
    """One face of a tetrahedron of thousands of voxels cuts the grid in two."""
    corners = torch.tensor([[0, 0, 1], [0.9, 0, -0.5], [-0.5, 0.8, -0.5], [-0.4, -0.85, -0.5]]).double()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    corners = 1e3 * corners @ turn
    corners = corners - corners[:3].mean(0)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    points = grid((16, 17, 15)).reshape(-1, 3)
    sdf = mesh2sdf(corners, faces, (16, 17, 15)).flatten().numpy()
    inside = np.abs(winding_number(points, corners.numpy(), faces.numpy())) > 0.5
    assert ((sdf < 0) == inside)[np.abs(sdf) > 1e-2].all()
    assert 0.2 < inside.mean() < 0.8


def test_a_coarse_grid_signs_finely():
    """Two voxels an axis, and a face 4e-6 from one of them."""
    box = trimesh.creation.box((1.0, 3.0, 3.0))  # from 4e-6 to 1 + 4e-6 along X
    vertices = torch.tensor(box.vertices) + torch.tensor([0.5 + 4e-6, 0.0137, 0.0071], dtype=torch.float64)
    assert mesh2sdf(vertices, torch.tensor(box.faces), 2)[-1, 0, 0] == pytest.approx(-4e-6, rel=1e-6)


def test_a_second_derivative_is_refused():
    vertices, faces = bumpy(1)
    leaf = vertices.requires_grad_()
    (grad,) = torch.autograd.grad(mesh2sdf(leaf, faces, 4).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="mesh2sdf: wanted a first derivative"):
        grad.square().sum().backward()


def test_a_vertex_that_no_face_uses_changes_nothing():
    vertices, faces = bumpy(2, torch.float32)
    more = torch.cat([vertices, torch.full((1, 3), 1e6)])
    assert torch.equal(mesh2sdf(more, faces, 9), mesh2sdf(vertices, faces, 9))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"vertices": torch.zeros(4, 2)}, ValueError, "vertices: wanted a last dimension of 3, found shape (4, 2)"),
        ({"vertices": torch.zeros(3)}, ValueError, "vertices: wanted shape (B, V, 3) or (V, 3), found (3,)"),
        ({"vertices": torch.zeros(4, 3).half()}, TypeError, "vertices: wanted float32 or float64, found torch.float16"),
        ({"faces": torch.zeros(0, 3).long()}, ValueError, "faces: wanted at least one face, found none"),
        ({"faces": torch.tensor([[0, 1, 4]])}, ValueError, "faces: wanted vertex indices from 0 to 3, found 4"),
        ({"faces": torch.tensor([[0, 1, -1]])}, ValueError, "faces: wanted vertex indices from 0 to 3, found -1"),
        ({"faces": torch.zeros(2, 4).long()}, ValueError, "faces: wanted shape (F, 3), found (2, 4)"),
        ({"faces": torch.zeros(2, 3)}, TypeError, "faces: wanted integers, found torch.float32"),
        ({"shape": (4, 4)}, ValueError, "shape: wanted one or three integers from 2 to 16777216, found (4, 4)"),
        ({"shape": 4.0}, ValueError, "shape: wanted one or three integers from 2 to 16777216, found 4.0"),
        (
            {"shape": (4, None, 4)},
            ValueError,
            "shape: wanted one or three integers from 2 to 16777216, found (4, None, 4)",
        ),
        (
            {"shape": (2**63, 2, 2)},
            ValueError,
            "shape: wanted one or three integers from 2 to 16777216, found (9223372036854775808, 2, 2)",
        ),
        ({"vertices": np.zeros((4, 3))}, TypeError, "vertices: wanted a tensor, found ndarray"),
        ({"faces": np.zeros((1, 3), int)}, TypeError, "faces: wanted a tensor, found ndarray"),
        ({"shape": 1}, ValueError, "shape: wanted one or three integers from 2 to 16777216, found 1"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    arguments = {"vertices": torch.zeros(4, 3), "faces": torch.tensor([[0, 1, 2]]), "shape": 4} | change
    with pytest.raises(error) as caught:
        mesh2sdf(**arguments)
    assert str(caught.value).splitlines()[0] == text


def test_descent_turns_a_sphere_into_a_box():
    vertices, faces = icosphere(2)
    vertices = (0.4 * vertices).requires_grad_()
    target = torch.tensor((np.abs(grid((20, 20, 20))) < [0.55, 0.45, 0.5]).all(-1)).float()
    optimiser = torch.optim.Adam([vertices], lr=0.01)
    for _ in range(40):
        logits = -40 * mesh2sdf(vertices, faces, 20)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inside = (mesh2sdf(vertices, faces, 20) < 0).float()
    assert 2 * (inside * target).sum() / (inside.sum() + target.sum()) >= 0.98


@pytest.mark.parametrize("inside", [False, True])
def test_the_gradient_pulls_the_closest_face_towards_a_misclassified_voxel(inside):
    """A step down a voxel's loss moves its distance by |gradient|^2 towards the right side."""
    vertices, faces = bumpy(2)
    leaf = vertices.requires_grad_()
    voxel = (5, 6, 7) if inside else (1, 6, 7)  # within the mesh and beyond it
    value = mesh2sdf(leaf, faces, 13)[voxel]
    assert (value < 0) == inside
    loss = -value if inside else value  # the label says the contrary
    (grad,) = torch.autograd.grad(loss, leaf)
    step = 1e-4
    moved = mesh2sdf((vertices - step * grad).detach(), faces, 13)[voxel]
    gained = float(moved - value.detach()) * (1 if inside else -1)
    assert gained == pytest.approx(step * float(grad.square().sum()), rel=1e-3)


def test_compiles_without_a_break():
    vertices, faces = bumpy(2, torch.float32)

    def loss(vertices):
        return torch.relu(mesh2sdf(vertices * 1.1, faces, (9, 8, 7))).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = vertices.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(results[0], results[1])


def test_autocast_keeps_the_vertices_precision():
    vertices, faces = bumpy(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mesh2sdf(vertices, faces, 9), mesh2sdf(vertices, faces, 9).float())
        assert mesh2sdf(vertices, faces, 9).dtype == torch.float32


@pytest.mark.slow
def test_uncompiled_package_imports_silently_warns_once_and_agrees(tmp_path):
    package = Path(reference.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    vertices, faces = bumpy(1, torch.float32)
    torch.save({"vertices": vertices, "faces": faces}, tmp_path / "mesh.pt")
    program = (
        "import torch\nfrom implicitmeshnet.ops import compiled, mesh2sdf\nprint(compiled())\n"
        "mesh = torch.load('mesh.pt')\n"
        "sdf = [mesh2sdf(mesh['vertices'].requires_grad_(), mesh['faces'], 8) for _ in range(2)][1]\n"
        "sdf.sum().backward()\ntorch.save(sdf.detach(), 'sdf.pt')\n"
    )
    run = subprocess.run([sys.executable, "-W", "always", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
    assert run.stderr.count("UserWarning") == 1
    assert "install a C++ compiler (g++)" in run.stderr
    torch.testing.assert_close(torch.load(tmp_path / "sdf.pt"), mesh2sdf(vertices, faces, 8), atol=2e-6, rtol=0)
