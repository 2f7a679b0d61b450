"""Template spheres and what is known of a fixed triangulation: edges, neighbours, areas, Laplacian."""

from dataclasses import dataclass

import torch
import trimesh


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of every vertex, padded to the largest degree D with weight 0."""

    index: torch.Tensor  # (V, D) int64
    weight: torch.Tensor  # (V, D) float32, 1 where a neighbour stands

    @property
    def degree(self):  # (V, 1)
        return self.weight.sum(1, keepdim=True)


def icosphere(subdivisions: int):
    """The unit icosphere: vertices (V, 3) float32, faces (F, 3) int64 counter-clockwise from outside.

    Closed, genus 0, V = 10 * 4^subdivisions + 2 and F = 20 * 4^subdivisions.
    """
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(sphere.vertices, dtype=torch.float32), torch.tensor(sphere.faces, dtype=torch.int64)


def edges(faces: torch.Tensor) -> torch.Tensor:
    """The undirected edges (E, 2) of faces (F, 3), each once, lower vertex first."""
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return directed.sort(1).values.unique(dim=0)


def neighbours(faces: torch.Tensor, vertex_count: int) -> Neighbours:
    """The padded neighbour lists of a triangulation, faces (F, 3)."""
    undirected = edges(faces)
    source, target = torch.cat([undirected, undirected.flip(1)]).T
    order = source.argsort(stable=True)
    source, target = source[order], target[order]
    degree = torch.bincount(source, minlength=vertex_count)
    slot = torch.arange(len(source)) - (degree.cumsum(0) - degree)[source]
    index = torch.zeros(vertex_count, int(degree.max()), dtype=torch.int64)
    weight = torch.zeros(index.shape)
    index[source, slot], weight[source, slot] = target, 1.0
    return Neighbours(index, weight)


def vertex_areas(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """A third of the area of the faces around each vertex: (..., V, 3) and (F, 3) -> (..., V), squared units of V."""
    third = torch.linalg.vector_norm(face_normals(vertices, faces), dim=-1) / 6  # (..., F)
    areas = torch.zeros_like(vertices[..., 0])
    return areas.index_add(-1, faces.flatten(), third.repeat_interleave(3, -1))


def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Outward normals of the vertices, as long as their share of the area: (..., V, 3) and (F, 3) -> (..., V, 3)."""
    third = face_normals(vertices, faces) / 6  # (..., F, 3)
    return torch.zeros_like(vertices).index_add(-2, faces.flatten(), third.repeat_interleave(3, -2))


def face_normals(vertices, faces):
    """Outward normals (..., F, 3), twice as long as the faces' areas."""
    a, b, c = (vertices[..., faces[:, corner], :] for corner in range(3))
    return torch.linalg.cross(b - a, c - a)
