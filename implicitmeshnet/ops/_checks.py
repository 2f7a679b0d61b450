"""Checks of the ops' arguments: each error is one sentence that names the argument, what was wanted and found."""

import operator

import torch


def as_shape(shape, smallest: int, name: str = "shape") -> list[int]:
    """An int or three ints -> three ints of at least `smallest`; ValueError otherwise."""
    try:
        sizes = [operator.index(n) for n in shape] if hasattr(shape, "__iter__") else [operator.index(shape)] * 3
    except TypeError:
        sizes = []
    if len(sizes) != 3 or any(not smallest <= n < 2**31 for n in sizes):
        raise ValueError(f"{name}: wanted one or three integers of at least {smallest}, found {shape}")
    return sizes


def _check_tensor(value, name):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: wanted a tensor, found {type(value).__name__}")


def check_points(vertices, name: str = "vertices"):
    """Raise TypeError or ValueError unless vertices is (..., 3) in float32 or float64."""
    _check_tensor(vertices, name)
    if vertices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: wanted float32 or float64, found {vertices.dtype}")
    if vertices.ndim == 0 or vertices.shape[-1] != 3:
        raise ValueError(f"{name}: wanted a last dimension of 3, found shape {tuple(vertices.shape)}")


def check_batched_points(vertices):
    """`check_points`, and three dimensions (B, V, 3)."""
    check_points(vertices)
    if vertices.ndim != 3:
        raise ValueError(f"vertices: wanted shape (B, V, 3), found {tuple(vertices.shape)}")


def as_faces(faces, device):
    """Faces (F, 3) of any integer type -> int64; TypeError or ValueError otherwise."""
    _check_tensor(faces, "faces")
    if faces.dtype.is_floating_point or faces.dtype.is_complex or faces.dtype == torch.bool:
        raise TypeError(f"faces: wanted integers, found {faces.dtype}")
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces: wanted shape (F, 3), found {tuple(faces.shape)}")
    if faces.device != device:
        raise ValueError(f"faces: wanted them on {device} like the vertices, found {faces.device}")
    return faces.long()
