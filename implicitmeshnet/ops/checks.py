"""Argument checks shared by the operators: errors name the argument, what was wanted and what was found."""

import torch


def check_shape(shape) -> list[int]:
    """An int or three ints as [X, Y, Z]."""
    sizes = [shape] * 3 if isinstance(shape, int) else [int(size) for size in shape]
    if len(sizes) != 3 or min(sizes) < 2:
        raise ValueError(f"shape: wanted an int or three ints, each at least 2, found {shape}")
    return sizes


def check_points(name: str, points: torch.Tensor, dimensions: int):
    wanted = "(B, V, 3)" if dimensions == 3 else "(V, 3)"
    if points.dim() != dimensions or points.shape[-1] != 3:
        raise ValueError(f"{name}: wanted shape {wanted}, found {tuple(points.shape)}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: wanted float32 or float64, found {points.dtype}")


def check_faces(faces: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """Faces (F, 3) as int64 on the vertices' device, with the range checked where that needs no synchronisation."""
    if faces.dim() != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise ValueError(f"faces: wanted shape (F, 3) with at least one face, found {tuple(faces.shape)}")
    if faces.is_floating_point() or faces.is_complex() or faces.dtype == torch.bool:
        raise TypeError(f"faces: wanted integers, found {faces.dtype}")
    if faces.device != vertices.device:
        raise ValueError(f"faces: wanted the vertices' device {vertices.device}, found {faces.device}")
    if faces.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in faces.aminmax())
        if low < 0 or high >= vertices.shape[-2]:
            found = low if low < 0 else high
            raise ValueError(f"faces: wanted vertex indices 0 to {vertices.shape[-2] - 1}, found {found}")
    return faces.long()
