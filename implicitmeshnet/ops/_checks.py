"""Checks of the ops' arguments: each error is one sentence that names the argument, what was wanted and found."""

import operator
from collections.abc import Iterable, Sequence

import torch

LARGEST = 2**24
"""Voxels along an axis: float32 tells no more positions apart, and what the kernels make of them fits 32 bits."""
MOST = 2**31 - 1
"""Faces and vertices of a mesh, which the kernels number in 32 bits."""
HALF = (torch.float16, torch.bfloat16)
FLOATING = (*HALF, torch.float32, torch.float64)


def as_shape(shape: int | Iterable[int], smallest: int, name: str = "shape") -> list[int]:
    """Turn an int or three ints into three ints from `smallest` to LARGEST; ValueError for anything else."""
    values = shape if isinstance(shape, Iterable) else [shape] * 3
    try:
        sizes = [operator.index(n) for n in values]  # refuses floats, and takes numpy's integers
    except TypeError:
        sizes = []
    if len(sizes) != 3 or any(not smallest <= n <= LARGEST for n in sizes):
        raise ValueError(f"{name}: wanted one or three integers from {smallest} to {LARGEST}, found {shape}")
    return sizes


def check_tensor(value: object, name: str) -> None:
    """Raise TypeError unless value is a tensor that holds its numbers one beside the other."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: wanted a tensor, found {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: wanted a dense tensor, found layout {value.layout}")


def check_floating(value: torch.Tensor, name: str) -> None:
    """Do what `check_tensor` does, and raise TypeError unless the numbers are floating, of 16 to 64 bits."""
    check_tensor(value, name)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: wanted float16, bfloat16, float32 or float64, found {value.dtype}")


def check_device(value: torch.Tensor, like: torch.Tensor, name: str, others: str = "the vertices") -> None:
    """Raise ValueError unless value is on the device of `like`, which the error calls `others`."""
    if value.device != like.device:
        raise ValueError(f"{name}: wanted device {like.device} like {others}, found {value.device}")


def check_points(vertices: torch.Tensor, name: str = "vertices") -> None:
    """Raise TypeError or ValueError unless vertices is (..., 3) in float32 or float64."""
    check_tensor(vertices, name)
    if vertices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: wanted float32 or float64, found {vertices.dtype}")
    if vertices.ndim == 0 or vertices.shape[-1] != 3:
        raise ValueError(f"{name}: wanted a last dimension of 3, found shape {tuple(vertices.shape)}")


def check_batched_points(vertices: torch.Tensor) -> None:
    """Do what `check_points` does, and raise ValueError unless there are three dimensions (B, V, 3)."""
    check_points(vertices)
    if vertices.ndim != 3:
        raise ValueError(f"vertices: wanted shape (B, V, 3), found {tuple(vertices.shape)}")


def check_size(tensor: torch.Tensor, shape: Sequence[int], name: str) -> None:
    """Raise ValueError unless a tensor has a shape."""
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name}: wanted shape {tuple(shape)}, found {tuple(tensor.shape)}")


def check_volume(volume: torch.Tensor, vertices: torch.Tensor) -> None:
    """Raise ValueError unless a volume is (B, C, X, Y, Z) with the vertices' B and 1 to LARGEST voxels an axis."""
    shape = tuple(volume.shape)
    if len(shape) != 5 or shape[0] != len(vertices) or 0 in shape[2:]:
        raise ValueError(f"volume: wanted shape ({len(vertices)}, C, X, Y, Z), found {shape}")
    if max(shape[2:]) > LARGEST:
        raise ValueError(f"volume: wanted at most {LARGEST} voxels along an axis, found shape {shape}")


def as_faces(faces: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """Turn faces (F, 3) of any integer type over vertices (..., V, 3) into int64.

    TypeError or ValueError for anything else. Whether the vertices exist is left to the kernels: on a GPU to ask would
    be to wait for it.
    """
    check_tensor(faces, "faces")
    if faces.dtype.is_floating_point or faces.dtype.is_complex or faces.dtype == torch.bool:
        raise TypeError(f"faces: wanted integers, found {faces.dtype}")
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces: wanted shape (F, 3), found {tuple(faces.shape)}")
    check_device(faces, vertices, "faces")
    for name, count in (("faces", len(faces)), ("vertices", vertices.shape[-2])):
        if count > MOST:
            raise ValueError(f"{name}: wanted at most {MOST}, found {count}")
    return faces.long()
