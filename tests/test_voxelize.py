"""Voxelisation by winding number: analytic shapes, ties on the grid, open and overlapping meshes, its reference."""

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import box, sphere, tensors

from implicitmeshnet.ops import compiled, reference, voxelize


def random_soup(seed, shape, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(30, 3, generator=generator, dtype=torch.float64) * torch.tensor(shape) * scale
    faces = torch.randint(30, (40, 3), generator=generator)
    return (vertices - 0.5 * (scale - 1) * torch.tensor(shape)).to(dtype), faces


def test_a_box_between_voxel_centres_is_exact():
    inside = voxelize(*tensors(box([0.5, 1.5, 2.5], [3.5, 6.5, 4.5])), (7, 9, 8))
    assert inside.dtype == torch.bool
    expected = torch.zeros(7, 9, 8, dtype=torch.bool)
    expected[1:4, 2:7, 3:5] = True
    assert torch.equal(inside, expected)


def test_boxes_on_voxel_centres_tile_without_gap_or_overlap():
    """Two boxes that share a face on the grid: every voxel of the whole belongs to exactly one of them."""
    whole = voxelize(*tensors(box([1, 1, 1], [9, 6, 7])), 12)
    for axis, cut in ((0, 4), (1, 3), (2, 5)):
        low, high = [1, 1, 1], [9, 6, 7]
        first, second = high.copy(), low.copy()
        first[axis] = second[axis] = cut
        left, right = voxelize(*tensors(box(low, first)), 12), voxelize(*tensors(box(second, high)), 12)
        assert not (left & right).any()
        assert torch.equal(left | right, whole)
    assert whole.sum() == 8 * 5 * 6


def test_a_sphere_has_its_volume_in_voxels():
    inside = voxelize(*tensors(sphere((31.3, 30.8, 29.6), 20, 4)), 64)
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 20**3, rel=5e-3)


def test_an_octahedron_on_voxel_centres_holds_those_inside_and_no_others():
    """An octahedron whose corners, edges and diagonals all meet columns of voxels."""
    vertices = torch.tensor([[8.0, 4, 4], [0, 4, 4], [4, 8, 4], [4, 0, 4], [4, 4, 8], [4, 4, 0]])
    faces = torch.tensor([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    radius = np.abs(np.indices((9, 9, 9)) - 4).sum(0)
    for order in (faces, faces.flip(1)):
        inside = voxelize(vertices, order, 9).numpy()
        assert inside[radius < 4].all()
        assert not inside[radius > 4].any()


def test_overlap_is_a_union_and_a_hole_needs_the_opposite_orientation():
    (outer, faces), (inner, _) = tensors(sphere((16, 16, 16), 12)), tensors(sphere((16, 16, 16), 6))
    vertices, count = torch.cat([outer, inner]), len(outer)
    solid, hole = voxelize(outer, faces, 33), voxelize(inner, faces, 33)
    assert torch.equal(voxelize(vertices, torch.cat([faces, faces + count]), 33), solid)
    assert torch.equal(voxelize(vertices, torch.cat([faces, faces.flip(1) + count]), 33), solid & ~hole)


def test_open_mesh_counts_from_below():
    """A single face turned down opens its columns, one turned up is met at winding 0 and opens them likewise."""
    vertices = torch.tensor([[-1.0, -1, 2.5], [20, -1, 2.5], [-1, 20, 2.5]])
    for faces in ([[0, 2, 1]], [[0, 1, 2]]):
        inside = voxelize(vertices, torch.tensor(faces), (4, 5, 6))
        assert inside[..., 3:].all()
        assert not inside[..., :3].any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0, 1e4]), st.booleans(), st.booleans())
def test_matches_the_reference_bit_for_bit(seed, scale, single, on_grid):
    shape = (9, 17, 6)
    vertices, faces = random_soup(seed, shape, scale, torch.float32 if single else torch.float64)
    vertices = vertices.round() if on_grid else vertices
    assert torch.equal(voxelize(vertices, faces, shape), reference.voxelize(vertices, faces, shape))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.booleans())
def test_closed_meshes_are_closed_along_every_axis(seed, on_grid):
    """No leaks: permuting the axes leaves a closed mesh's inside the same, away from its surface."""
    generator = torch.Generator().manual_seed(seed)
    vertices, faces = tensors(sphere((8, 8, 8), 6, 1))
    vertices = vertices + torch.rand(vertices.shape, generator=generator, dtype=torch.float64)
    if on_grid:
        vertices = vertices.round()
    inside = voxelize(vertices, faces, 17)
    triangles = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
    points = np.argwhere(np.ones((17, 17, 17), dtype=bool))
    _, distance, _ = trimesh.proximity.closest_point_naive(triangles, points[::7])
    clear = np.zeros(17**3, dtype=bool)
    clear[::7] = distance > 1e-6
    for order in ((1, 2, 0), (2, 0, 1)):
        turned = voxelize(vertices[:, order], faces, 17).permute(*np.argsort(order).tolist())
        assert torch.equal(turned.flatten()[clear], inside.flatten()[clear])
    assert not inside[:, :, [0, -1]].any()


@pytest.mark.skipif(not compiled(), reason="no compiled library, and the reference is slow")
def test_a_ball_in_a_grid_of_80_million_voxels_has_its_volume():
    vertices, faces = tensors(sphere((1, 1, 1), 0.9, 5))
    inside = voxelize(vertices * torch.tensor([255.5, 255.5, 149.5]), faces, (512, 512, 300))
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 0.9**3 * 255.5**2 * 149.5, rel=1e-2)


def test_far_and_degenerate_faces_are_harmless():
    vertices, faces = tensors(box([0.5, 0.5, 0.5], [3.5, 3.5, 3.5]))
    extra = torch.tensor(
        [[1e30, 2, 2], [1e30, 3, 2], [1e30, 2, 3], [-1e300, -1e300, 2], [-1e300, -1e301, 1e300]], dtype=torch.float64
    )
    more = torch.tensor([[8, 9, 10], [11, 12, 11], [0, 0, 0], [0, 1, 1]])
    inside = voxelize(torch.cat([vertices, extra]), torch.cat([faces, more]), 5)
    assert torch.equal(inside, voxelize(vertices, faces, 5))


def test_torchs_own_checks_pass_and_layouts_make_no_difference():
    vertices, faces = tensors(box([0.5, 0.5, 0.5], [3.5, 2.5, 3.5]))
    torch.library.opcheck(torch.ops.implicitmeshnet.voxelize.default, (vertices, faces, [5, 4, 6]))
    strided = vertices.T.contiguous().T
    assert torch.equal(voxelize(strided, faces.int(), 5), voxelize(vertices, faces, 5))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"vertices": torch.full((4, 3), torch.nan)},
            ValueError,
            "vertices: wanted finite coordinates, found NaN or infinity",
        ),
        ({"vertices": torch.zeros(1, 4, 3)}, ValueError, "vertices: wanted shape (V, 3), found (1, 4, 3)"),
        ({"faces": torch.tensor([[0, 1, 9]])}, ValueError, "faces: wanted vertex indices from 0 to 3, found 9"),
        ({"shape": (0, 4, 4)}, ValueError, "shape: wanted one or three integers from 1 to 16777216, found (0, 4, 4)"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    arguments = {"vertices": torch.zeros(4, 3), "faces": torch.tensor([[0, 1, 2]]), "shape": 4} | change
    with pytest.raises(error) as caught:
        voxelize(**arguments)
    assert str(caught.value).splitlines()[0] == text
