"""Template spheres and what is known of a fixed triangulation: edges, neighbours, areas, Laplacian."""

from dataclasses import dataclass

import torch
import trimesh
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of every vertex of a mesh, in rows padded with weight 0 to the largest number of them, D."""

    index: torch.Tensor  # (V, D) int64
    weight: torch.Tensor  # (V, D) float32, 1 where a neighbour stands

    @property
    def degree(self) -> torch.Tensor:  # (V, 1)
        return self.weight.sum(1, keepdim=True)


def icosphere(subdivisions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit icosphere: vertices (V, 3) float32, faces (F, 3) int64 counter-clockwise from outside.

    Closed, genus 0, V = 10 * 4^subdivisions + 2 and F = 20 * 4^subdivisions.
    """
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = torch.tensor(sphere.vertices, dtype=torch.float32)
    faces = torch.tensor(sphere.faces, dtype=torch.int64)
    return vertices, faces


def mirror_images(template: torch.Tensor) -> torch.Tensor:
    """Which vertex of an `icosphere`, or of an ellipsoid along the axes, is each one's mirror image in X: (V,) int64.

    template (V, 3). Vertices in this order lie where they lay, but every face runs the other way around.
    """
    around = (template - template.mean(0)).cpu().numpy()
    _, images = cKDTree(around).query(around * [-1, 1, 1])
    return torch.from_numpy(images)


def edges(faces: torch.Tensor) -> torch.Tensor:
    """The undirected edges (E, 2) of faces (F, 3), each once, lower vertex first."""
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return directed.sort(1).values.unique(dim=0)


def neighbours(faces: torch.Tensor, vertex_count: int) -> Neighbours:
    """The padded neighbour lists of a triangulation, faces (F, 3)."""
    # Each edge in both directions, sorted by its source: a vertex's neighbours stand in one run.
    undirected = edges(faces)
    source, target = torch.cat([undirected, undirected.flip(1)]).T
    order = source.argsort(stable=True)
    source = source[order]
    target = target[order]
    # A neighbour's slot is its place in that run.
    degree = torch.bincount(source, minlength=vertex_count)
    first = degree.cumsum(0) - degree
    slot = torch.arange(len(source)) - first[source]
    index = torch.zeros(vertex_count, int(degree.max()), dtype=torch.int64)
    weight = torch.zeros(index.shape)
    index[source, slot] = target
    weight[source, slot] = 1.0
    return Neighbours(index, weight)


def vertex_areas(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """A third of the area of the faces around each vertex: (..., V, 3) and (F, 3) -> (..., V), squared units of V."""
    double = torch.linalg.vector_norm(face_normals(vertices, faces), dim=-1)  # (..., F) twice the areas
    third = double / 6
    areas = torch.zeros_like(vertices[..., 0])
    return areas.index_add(-1, faces.flatten(), third.repeat_interleave(3, -1))


def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Outward normals of the vertices, as long as their share of the area: (..., V, 3) and (F, 3) -> (..., V, 3)."""
    third = face_normals(vertices, faces) / 6  # (..., F, 3)
    normals = torch.zeros_like(vertices)
    return normals.index_add(-2, faces.flatten(), third.repeat_interleave(3, -2))


def face_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Outward normals (..., F, 3) of vertices (..., V, 3) and faces (F, 3), twice as long as the faces' areas."""
    a, b, c = (vertices[..., faces[:, corner], :] for corner in range(3))
    return torch.linalg.cross(b - a, c - a)


def signed_volumes(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """What closed meshes hold, negative where they are inside out: (..., V, 3), (F, 3) -> (...), cubed units of V."""
    centred = vertices - vertices.mean(-2, keepdim=True)
    a, b, c = (centred[..., faces[:, corner], :] for corner in range(3))
    return (a * torch.linalg.cross(b, c)).sum((-2, -1)) / 6
