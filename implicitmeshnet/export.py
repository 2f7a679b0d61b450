"""Meshes to files that name their space (PLY, STL, OBJ, VTP), and meshes to label maps on an image's grid.

A file says its space where 3D Slicer writes and looks for it (Slicer, Libs/MRML/Core/vtkMRMLModelStorageNode.cxx):
`SPACE=LPS` in a PLY comment, the STL header or an OBJ comment; a string array SPACE in the field data of a VTP.
"""

import base64
import re
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.ndimage import distance_transform_edt, find_objects

from implicitmeshnet.coordinates import transform
from implicitmeshnet.io import InputError, atomic_path
from implicitmeshnet.metrics import mesh_volume_ml
from implicitmeshnet.ops import mesh2sdf, sample_trilinear, voxelize
from implicitmeshnet.volume import Grid

LATTICE = 64
"""Points along each axis at which overlapping meshes are measured."""
SIGNS = {"LPS": (-1.0, -1.0, 1.0), "RAS": (1.0, 1.0, 1.0)}  # world RAS <-> space; a rotation, so faces keep their side


def write_mesh(path, vertices_mm, faces, space="LPS"):
    """Write a mesh, vertices (V, 3) in world mm RAS and faces (F, 3), in the format of the suffix, in LPS or RAS.

    Coordinates are float32. Raises InputError for another suffix or space, and where the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENCODERS:
        raise InputError(f"{path}: wanted a mesh file name that ends in {', '.join(ENCODERS)}, found {suffix!r}")
    if space not in SIGNS:
        raise InputError(f"space: wanted {' or '.join(SIGNS)}, found {space!r}")
    vertices = (np.asarray(vertices_mm) * SIGNS[space]).astype("<f4")
    content = ENCODERS[suffix](vertices, np.asarray(faces).astype("<i4"), space)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_mesh(path):
    """Read a .ply, .stl or .obj: vertices (V, 3) float64 in world mm RAS, faces (F, 3) int64.

    The space is the one that the file names, else LPS, as 3D Slicer assumes. Vertices of an STL, which repeats them
    for each face, are merged. Raises InputError where the file is missing or no such mesh.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ply", ".stl", ".obj"):
        raise InputError(f"{path}: wanted a mesh file name that ends in .ply, .stl, .obj, found {suffix!r}")
    try:
        named = re.search(rb"SPACE=(LPS|RAS)", Path(path).read_bytes()[:1024])
        mesh = trimesh.load_mesh(path, process=suffix == ".stl", maintain_order=True)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces, dtype=np.int64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file makes trimesh raise anything
        raise InputError(f"{path}: wanted a triangle mesh, found a file that cannot be parsed: {error}") from error
    return vertices * SIGNS[named[1].decode() if named else "LPS"], faces


def orient_outward(vertices, faces):
    """The faces (F, 3), all turned around where the mesh's signed volume is negative (after a mirroring affine)."""
    return faces[:, ::-1] if mesh_volume_ml(vertices, faces) < 0 else faces


def mesh_to_mask(vertices_mm, faces, grid: Grid) -> np.ndarray:
    """The voxels of `grid` whose centres lie inside a mesh in world mm RAS: bool (X, Y, Z)."""
    mask = np.zeros(grid.shape, dtype=bool)
    box, inside = _voxelize_in_box(vertices_mm, faces, grid)
    mask[box] = inside
    return mask


def own_parts(masks, members) -> list[np.ndarray]:
    """Masks, bool (X, Y, Z), each without those that it holds beside its own; `members` are DataConfig.members."""
    return [mask & ~np.any([masks[index] for index in inner], axis=0) if inner else mask
            for mask, (_, *inner) in zip(masks, members, strict=True)]


def meshes_to_labelmap(meshes, values, grid: Grid, members=None) -> np.ndarray:
    """Label map int16 (X, Y, Z) of several meshes, each (vertices_mm (V, 3), faces (F, 3)) with its value.

    A voxel inside several meshes goes to the one in which it lies deepest, by the meshes' signed distances; ties go to
    the mesh that comes first. `members` are DataConfig.members: where a mesh that holds others wins, what lies in one
    of these too goes to that one.
    """
    parts = [_voxelize_in_box(vertices_mm, faces, grid) for vertices_mm, faces in meshes]
    return _deepest_wins(parts, values, grid, lambda contested: _depths_in_meshes_mm(meshes, grid, contested), members)


def masks_to_labelmap(masks, values, grid: Grid) -> np.ndarray:
    """Label map int16 (X, Y, Z) of several masks, each bool (X, Y, Z) with its value.

    A voxel in several masks goes to the one in which it lies deepest, by the distance in mm to the nearest voxel
    outside (the image's edge counts as outside); ties go to the mask that comes first.
    """
    boxes = [(find_objects(mask.view(np.uint8)) or [(slice(0, 0),) * 3])[0] for mask in masks]
    parts = [(box, mask[box]) for box, mask in zip(boxes, masks, strict=True)]
    return _deepest_wins(parts, values, grid, lambda contested: _depths_in_masks_mm(parts, grid, contested))


def _deepest_wins(parts, values, grid: Grid, depths_mm, members=None) -> np.ndarray:
    """The label map of masks, each given in a box of the grid: slices, and the bool array there.

    `depths_mm` takes the voxels (N, 3) that several masks claim to how deep they lie in each: an iterable of (N,).
    """
    owner, claims = np.full(grid.shape, -1, dtype=np.int16), np.zeros(grid.shape, dtype=np.int16)
    order = sorted(range(len(parts)), key=lambda index: -len(members[index]) if members else 0)  # the enclosed last
    for index in order:
        box, inside = parts[index]
        owner[box][inside] = index
        claims[box] += inside
    for outer, (_, *inner) in enumerate(members or ()):
        for index in inner:  # it may lie there
            box, (one, other) = _common_box(parts[outer], parts[index])
            claims[box] -= one & other
    contested = np.argwhere(claims > 1)
    if len(contested):
        claimed = _claims(parts, contested)  # (S, N)
        depths = np.where(claimed, np.stack(list(depths_mm(contested))), -np.inf)
        deepest = depths.argmax(0)
        for outer, (_, *inner) in enumerate(members or ()):
            for index in inner:
                deepest[(deepest == outer) & claimed[index]] = index
        owner[tuple(contested.T)] = deepest
    return np.array([*values, 0], dtype=np.int16)[owner]


def _common_box(*parts):
    """Where the boxes of masks overlap, and each mask there."""
    boxes = [box for box, _ in parts]
    common = tuple(slice(low := max(ends.start for ends in axis), max(low, min(ends.stop for ends in axis)))
                   for axis in zip(*boxes, strict=True))
    shift = [[slice(ends.start - own.start, ends.stop - own.start) for ends, own in zip(common, box, strict=True)]
             for box in boxes]
    return common, [inside[tuple(part)] for part, (_, inside) in zip(shift, parts, strict=True)]


def _claims(parts, voxels) -> np.ndarray:
    """Which of the masks, each in its box, hold each of the voxels (N, 3): bool (S, N)."""
    claimed = np.zeros((len(parts), len(voxels)), dtype=bool)
    for row, (box, inside) in zip(claimed, parts, strict=True):
        offset = voxels - [part.start for part in box]
        within = ((offset >= 0) & (offset < inside.shape)).all(1)
        row[within] = inside[tuple(offset[within].T)]
    return claimed


def _depths_in_masks_mm(parts, grid: Grid, voxels):
    for box, inside in parts:
        depth_mm = distance_transform_edt(np.pad(inside, 1), sampling=grid.spacing_mm)
        offset = np.clip(voxels - [part.start for part in box], -1, inside.shape) + 1  # the padding, 0, when outside
        yield depth_mm[tuple(offset.T)].astype(np.float32)


def _depths_in_meshes_mm(meshes, grid: Grid, voxels):
    """Exact distances on a lattice over the voxels' box, interpolated linearly to them."""
    points = transform(grid.affine, voxels.astype(np.float64))
    low, high = points.min(0), points.max(0)
    middle, half_mm = (low + high) / 2, max((high - low).max() / 2, 1.0)
    points = torch.from_numpy((points - middle) / half_mm).float()[None]
    for vertices_mm, faces in meshes:
        vertices = torch.from_numpy((np.asarray(vertices_mm, dtype=np.float64) - middle) / half_mm).float()
        faces = torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64)
        sdf = mesh2sdf(vertices, faces, LATTICE)
        depth_mm = -half_mm * sample_trilinear([sdf[None, None]], points)[0, :, 0].numpy()
        yield depth_mm.round(3)  # so that rounding errors do not decide ties


def _voxelize_in_box(vertices_mm, faces, grid: Grid):
    """The slices of the mesh's bounding box in `grid`, and the bool array of what lies inside the mesh there."""
    vertices = transform(np.linalg.inv(grid.affine), np.asarray(vertices_mm, dtype=np.float64))  # voxels
    if not np.isfinite(vertices).all():
        raise InputError("vertices: wanted finite coordinates, found NaN or infinity")
    start = np.clip(np.ceil(vertices.min(0)), 0, grid.shape).astype(int)
    stop = np.clip(np.floor(vertices.max(0)) + 1, start, grid.shape).astype(int)
    box = tuple(slice(*ends) for ends in zip(start, stop, strict=True))
    shape = (stop - start).tolist()
    if 0 in shape:
        return box, np.zeros(shape, dtype=bool)
    faces = torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64)
    return box, voxelize(torch.from_numpy(vertices - start), faces, shape).numpy()


def _ply(vertices, faces, space) -> bytes:
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment ImplicitMeshNet\ncomment SPACE={space}\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    records = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    records["count"], records["corners"] = 3, faces
    return header.encode() + vertices.tobytes() + records.tobytes()


def _stl(vertices, faces, space) -> bytes:
    records = np.zeros(len(faces), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    a, b, c = corners = vertices[faces].transpose(1, 0, 2)  # each (F, 3)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records["normal"], records["corners"] = normals / np.where(lengths > 0, lengths, 1), corners.transpose(1, 0, 2)
    return f"ImplicitMeshNet SPACE={space}".ljust(80).encode() + np.uint32(len(faces)).tobytes() + records.tobytes()


def _obj(vertices, faces, space) -> bytes:
    lines = [f"# ImplicitMeshNet SPACE={space}"]
    lines += ["v {:.9g} {:.9g} {:.9g}".format(*vertex) for vertex in vertices.tolist()]
    lines += ["f {} {} {}".format(*face) for face in (faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _vtp(vertices, faces, space) -> bytes:
    def array(kind, name, values, components=""):
        content = base64.b64encode(np.uint64(values.nbytes).tobytes() + values.tobytes()).decode()
        return f'<DataArray type="{kind}" Name="{name}"{components} format="binary">{content}</DataArray>\n'

    text = " ".join(str(ord(letter)) for letter in f"{space}\0")
    faces = faces.astype("<i8")
    return (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n<PolyData>\n'
        f'<FieldData><Array type="String" Name="SPACE" NumberOfTuples="1" format="ascii">{text}</Array></FieldData>\n'
        f'<Piece NumberOfPoints="{len(vertices)}" NumberOfPolys="{len(faces)}">\n'
        '<Points>\n' + array("Float32", "Points", vertices, ' NumberOfComponents="3"') + '</Points>\n'
        '<Polys>\n' + array("Int64", "connectivity", faces)
        + array("Int64", "offsets", np.arange(1, len(faces) + 1, dtype="<i8") * 3) + '</Polys>\n'
        '</Piece>\n</PolyData>\n</VTKFile>\n'
    ).encode()


ENCODERS = {".ply": _ply, ".stl": _stl, ".obj": _obj, ".vtp": _vtp}
