"""Vertices that slide over their surfaces, by rotations of the template sphere, until they correspond best.

A network keeps its template turned as the image is, so the vertices of a heart that lies turned in the scanner lie
elsewhere on it, and the model takes that for shape. A mesh is a map of the template sphere to a surface; the sphere
before it may turn without any change of the surface. The turn is sought that brings the vertices nearest to the mean
shape's, of each structure for itself, as Styner et al. (IPMI 2003) do it with spherical parameterisations; between the
template's vertices a surface is what its faces are, so the mesh loses what a new vertex cuts off between two old ones.
"""

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from implicitmeshnet.shape_model.cohort import Cohort
from implicitmeshnet.shape_model.model import align, rotation_onto

ROUNDS = 5
"""Of turning all spheres towards the mean of the round before; the third moves little."""
STEPS = 2
"""Of Gauss and Newton for each sphere and round."""
PROBE = 0.05
"""Radians that a sphere is turned by, to see how its vertices move; an edge of the paper's template is 0.07."""
LARGEST_STEP = 0.3
"""Radians; beyond it the surface is not nearly linear."""
TRIED_FACES = 8
"""Nearest faces among which the one behind a point of the sphere is: a vertex has six, or five."""


class Sphere:
    """The template: unit vectors (V, 3) and faces (F, 3)."""

    def __init__(self, directions: np.ndarray, faces: np.ndarray):
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.faces = faces
        corners = self.directions[faces]  # (F, 3 corners, 3)
        self.weights_of = np.linalg.inv(corners.transpose(0, 2, 1))  # (F, 3, 3): a direction to its share of corners
        self.middles = cKDTree(corners.mean(axis=1))

    def turned(self, vertices: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """The vertices (V, 3) that a mesh has when the sphere is turned before it is mapped, rows times (3, 3)."""
        directions = self.directions @ rotation
        _, near = self.middles.query(directions, k=TRIED_FACES)
        weights = np.einsum("vkij,vj->vki", self.weights_of[near], directions)
        best = weights.min(axis=2).argmax(axis=1)  # the face in which no corner has a negative share
        place = np.arange(len(directions))
        share = weights[place, best].clip(0)
        share /= share.sum(axis=1, keepdims=True)
        return np.einsum("vc,vci->vi", share, vertices[self.faces[near[place, best]]])

    def best_turn(self, vertices: np.ndarray, target: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """A rotation (3, 3), from one nearby, that brings the vertices of a mesh nearer to a target, both (V, 3)."""
        for _ in range(STEPS):
            moves = [self._move(vertices, rotation, axis) for axis in np.eye(3)]
            missing = target - self.turned(vertices, rotation)
            step, *_ = np.linalg.lstsq(np.stack(moves, axis=-1).reshape(-1, 3), missing.ravel(), rcond=None)
            step *= LARGEST_STEP / max(float(np.linalg.norm(step)), LARGEST_STEP)
            rotation = _about(step) @ rotation
        return rotation

    def _move(self, vertices: np.ndarray, rotation: np.ndarray, axis: np.ndarray) -> np.ndarray:
        """How the vertices (V, 3) move when the sphere turns about an axis, a radian."""
        ahead = self.turned(vertices, _about(PROBE * axis) @ rotation)
        behind = self.turned(vertices, _about(-PROBE * axis) @ rotation)
        return (ahead - behind) / (2 * PROBE)


def slide(cohort: Cohort, sphere: Sphere) -> Cohort:
    """The cohort with other vertices on the same surfaces, such that they lie nearest to those of the mean shape."""
    meshes = cohort.parts.split(cohort.points)  # (N, S, V, 3)
    rotations = np.tile(np.eye(3), (*meshes.shape[:2], 1, 1))
    points = cohort.points
    for _ in range(ROUNDS):
        mean = align(points).mean(axis=0)
        slid = np.empty_like(meshes)
        for case, shape in enumerate(points):
            targets = cohort.parts.split(_onto(mean, shape))
            for structure, vertices in enumerate(meshes[case]):
                turn = sphere.best_turn(vertices, targets[structure], rotations[case, structure])
                rotations[case, structure] = turn
                slid[case, structure] = sphere.turned(vertices, turn)
        points = slid.reshape(cohort.points.shape)
    return replace(cohort, points=points)


def _onto(mean: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The mean (P, 3), centred at 0, moved and turned onto a shape."""
    centre = shape.mean(axis=0)
    return mean @ rotation_onto(mean, shape - centre) + centre


def _about(vector: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(vector).as_matrix()
