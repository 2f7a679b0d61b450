"""The meshes, and the structures that they belong to, of which several test files build their cases."""

import numpy as np
import torch
import trimesh

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.structures import Structures


def structures_of(
    *values: int | tuple[int, ...],
    encloses: dict[int, tuple[int, ...]] | None = None,
    ignore: tuple[int, ...] = (),
) -> Structures:
    """Structures "S0", "S1", ... with these label values; `encloses` says, by number, who holds whom."""
    groups = tuple(value if isinstance(value, tuple) else (value,) for value in values)
    names = tuple(f"S{number}" for number in range(len(groups)))
    held = tuple((encloses or {}).get(number, ()) for number in range(len(groups)))
    return Structures(names, groups, held, ignore)


def sphere(centre=(0.0, 0.0, 0.0), radius: float = 1.0, subdivisions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An icosphere of trimesh, which is none of ours: float64 vertices (V, 3) and faces (F, 3), outward."""
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.array(mesh.vertices) * radius + centre, np.array(mesh.faces)


def box(low, high) -> tuple[np.ndarray, np.ndarray]:
    """An axis-aligned box between two corners: float64 vertices (8, 3) and faces (12, 3), outward."""
    mesh = trimesh.creation.box(bounds=[low, high])
    return np.array(mesh.vertices), np.array(mesh.faces)


def bumpy_sphere(
    subdivisions: int, phase: torch.Tensor, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """A smoothly displaced sphere in the cube that touches no special position of a grid: vertices, faces.

    `phase` moves the bumps and the sphere; with dimensions before those of the vertices it makes a batch.
    """
    vertices, faces = icosphere(subdivisions)
    vertices = vertices.double()
    radii = 0.5 + 0.06 * torch.sin(4 * vertices[:, [1, 2, 0]] + phase)
    return (vertices * radii + 0.01 * phase).to(dtype), faces


def tensors(mesh: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """A mesh as the operators take it."""
    vertices, faces = mesh
    return torch.tensor(vertices), torch.tensor(faces)
