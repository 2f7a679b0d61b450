"""The pairs of faces that cross or touch, decided exactly: schema, fake kernel and public function."""

import torch

from implicitmeshnet.ops._checks import as_faces, check_device, check_size, check_tensor
from implicitmeshnet.ops._kernels import define
from implicitmeshnet.ops.reference_meeting import crossing_pairs as reference

LARGEST_WHOLE = 2**24
"""In size: so that areas fit 64 bits, and whether faces meet is decided exactly."""


def _fake(vertices: torch.Tensor, faces: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return faces.new_empty(torch.library.get_ctx().new_dynamic_size(), 2)


_crossing_pairs = define("crossing_pairs(Tensor vertices, Tensor faces, Tensor chosen) -> Tensor", reference, _fake)


def crossing_pairs(vertices: torch.Tensor, faces: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """The pairs of faces that have more in common than the vertices that they share.

    vertices (V, 3) int64, whole numbers up to 2^24 in size, faces (F, 3) integers -> int64 (P, 2), ascending, each pair
    once with the lower face first. Faces that share a vertex or an edge meet there; all others may not even touch. A
    face without area is paired with itself. Only pairs are looked for that have a `chosen` face, bool (F,), by default
    all. Not differentiable. Raises ValueError or TypeError that names the argument.
    """
    check_tensor(vertices, "vertices")
    if vertices.dtype != torch.int64:
        raise TypeError(f"vertices: wanted int64, found {vertices.dtype}")
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices: wanted shape (V, 3), found {tuple(vertices.shape)}")
    if vertices.device.type != "meta" and vertices.numel() and vertices.abs().max() > LARGEST_WHOLE:
        found = int(vertices.abs().max())
        raise ValueError(f"vertices: wanted whole numbers up to {LARGEST_WHOLE} in size, found {found}")
    faces = as_faces(faces, vertices)
    if chosen is None:
        chosen = torch.ones(len(faces), dtype=torch.bool, device=faces.device)
    check_tensor(chosen, "chosen")
    if chosen.dtype != torch.bool:
        raise TypeError(f"chosen: wanted bool, found {chosen.dtype}")
    check_device(chosen, vertices, "chosen")
    check_size(chosen, (len(faces),), "chosen")
    return _crossing_pairs(vertices, faces, chosen)
