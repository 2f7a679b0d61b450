"""Others' code takes what the separation makes of meshes that cross, and refuses them as they were."""

import cut_open
import judges
import numpy as np
import pytest

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces.separation import separate

SPHERE, FACES = (tensor.double().numpy() for tensor in icosphere(2))
FACES = FACES.astype(int)
ENCLOSES = [(2,), (), ()]
CROSSING = np.stack([10 * SPHERE, 8 * SPHERE + [15, 2, 0], 4 * SPHERE + [0, 7, 0]])
"""A ball, another in its way, and one that it encloses but that sticks out."""


@pytest.fixture(scope="module")
def separated():
    return separate(CROSSING, FACES, SPHERE, ENCLOSES)


def test_manifold3d_finds_nothing_that_two_meshes_share_or_that_sticks_out(separated):
    pytest.importorskip("manifold3d", reason="manifold3d is not installed")
    manifolds, shared_mm3, outside_mm3 = judges.intersected(CROSSING, FACES, ENCLOSES)
    assert manifolds == 3
    assert shared_mm3 > 20
    assert outside_mm3 > 5
    assert judges.intersected(separated, FACES, ENCLOSES) == (3, 0.0, 0.0)


def test_tetgen_fills_the_set_and_refuses_the_one_that_crosses(separated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where TetGen leaves what it refuses
    pytest.importorskip("tetgen", reason="TetGen is not installed")
    assert judges.filled(CROSSING, FACES)[0] == 0
    tetrahedra, inverted, smallest_dihedral_deg, _ = judges.filled(separated, FACES)
    assert tetrahedra > 1000
    assert inverted == 0
    assert 0 < smallest_dihedral_deg < 70.6


def test_vtk_finds_no_contact(separated):
    pytest.importorskip("vtkmodules", reason="VTK is not installed")
    assert judges.contacts(CROSSING, FACES) > 10
    assert judges.contacts(separated, FACES) == 0


def test_a_regular_tetrahedron_has_six_dihedral_angles_of_70_5_degrees():
    corners = np.array([[[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]], dtype=float)
    assert judges.dihedral_angles_deg(corners) == pytest.approx(np.full((1, 6), np.degrees(np.arccos(1 / 3))))
    flat = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]], dtype=float)
    assert judges.dihedral_angles_deg(flat).min() == 0


def test_two_tetrahedra_that_share_a_face_show_the_six_others_from_outside():
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    triangles, owners = cut_open.exposed(corners.astype(float))
    assert sorted(owners) == [0, 0, 0, 1, 1, 1]
    outward = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    from_middle = triangles.mean(1) - 1 / 3  # of the face that they share
    assert ((outward * from_middle).sum(1) > 0).all()
