"""Where the segmentation shows a wall around an enclosed structure."""

import numpy as np
from meshes import structures_of

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces.walls import walls_mm

SPHERE, FACES = (tensor.double().numpy() for tensor in icosphere(2))
FACES = FACES.astype(int)


def test_a_wall_is_where_the_enclosers_own_class_follows_outward():
    """A ball of radius 8 in one of 12, whose class is seen on the right alone; on the left another follows."""
    voxel_from_world = np.eye(4)
    voxel_from_world[:3, 3] = 20
    points = np.stack(np.meshgrid(*[np.arange(41) - 20] * 3, indexing="ij"), -1)
    radius = np.linalg.norm(points, axis=-1)
    classes = np.zeros((41, 41, 41), np.uint8)
    classes[radius < 12] = 3
    classes[(radius < 12) & (points[..., 0] > 0)] = 1
    classes[radius < 8] = 2
    structures = structures_of(500, 420, 600, encloses={0: (1,)})
    meshes = np.stack([12 * SPHERE, 8 * SPHERE, 3 * SPHERE])
    found = walls_mm(meshes, FACES, structures, classes, voxel_from_world, 0.7)
    assert found.shape == (3, len(SPHERE))
    assert (found[1, SPHERE[:, 0] > 0.2] == 0.7).all()
    assert not found[1, SPHERE[:, 0] < -0.2].any()
    assert not found[[0, 2]].any()
    beyond = walls_mm(meshes + 1000, FACES, structures, classes, voxel_from_world, 0.7)
    assert not beyond.any()
