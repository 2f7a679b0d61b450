"""Meshes to files that name their space (PLY, STL, OBJ, VTP), and back.

A file says its space where 3D Slicer writes and looks for it (Slicer, Libs/MRML/Core/vtkMRMLModelStorageNode.cxx):
`SPACE=LPS` in a PLY comment, the STL header or an OBJ comment; a string array SPACE in the field data of a VTP.
"""

import base64
import logging
import re
import warnings
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import trimesh

from implicitmeshnet.script import InputError, atomic_path
from implicitmeshnet.surfaces.soundness import mesh_volume_ml

REASON_LETTERS = 200  # of another program's error that ours quotes
logging.getLogger("trimesh").addHandler(logging.NullHandler())  # what it says of a damaged file stands in our errors
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
    for each face, are merged. Raises InputError where the file is missing, damaged or no such mesh: without vertices or
    faces, with a coordinate that is not finite, or with a face of a vertex that is not there.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ply", ".stl", ".obj"):
        raise InputError(f"{path}: wanted a mesh file name that ends in .ply, .stl, .obj, found {suffix!r}")
    try:
        content = Path(path).read_bytes()
        vertices, faces = _parse_obj(content) if suffix == ".obj" else _parse_by_trimesh(content, suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file makes trimesh raise anything
        reason = " ".join(str(error).split())[:REASON_LETTERS] or type(error).__name__
        if isinstance(error, ImportError):  # of a package that guesses encodings
            reason = "it is neither text nor as long as its header says"
        raise InputError(f"{path}: wanted a triangle mesh, found a file that cannot be parsed: {reason}") from error
    claimed = _claimed_counts(content) if suffix == ".ply" else (len(vertices), 0)
    _check_mesh(path, vertices, faces, claimed)
    if suffix == ".stl":
        vertices, index = np.unique(vertices, axis=0, return_inverse=True)
        faces = index[faces]
    named = re.search(rb"SPACE=(LPS|RAS)", content[:1024])
    return vertices * SIGNS[named[1].decode() if named else "LPS"], faces


def _parse_by_trimesh(content: bytes, suffix: str):
    """Vertices (V, 3) float64 and faces (F, 3) int64 of a PLY or STL, unchecked; raises anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for said in ("string or file could not be read to its end", "invalid value encountered in cast"):
            warnings.filterwarnings("error", said)  # numbers that are none, which would else pass as others
        mesh = trimesh.load_mesh(BytesIO(content), suffix[1:], process=False, maintain_order=True, skip_materials=True)
    faces = getattr(mesh, "faces", ())  # a cloud of points has none
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)


def _parse_obj(content: bytes):
    """Vertices (V, 3) float64 and faces (F, 3) int64 of an OBJ, unchecked, polygons as fans of triangles.

    Groups, materials, normals and texture are left out. Raises ValueError for a line that cannot be read.
    """
    vertices, faces = [], []
    joined = re.sub(rb"\\\r?\n", b" ", content)  # a line that ends in a backslash goes on
    for number, line in enumerate(joined.splitlines(), 1):
        kind, *values = line.split() or [b""]
        try:
            if kind == b"v":
                x, y, z, *_ = map(float, values)
                vertices.append((x, y, z))
            if kind == b"f":
                first, second, third, *others = [_corner(value, len(vertices)) for value in values]
                faces += [(first, *pair) for pair in pairwise((second, third, *others))]
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return np.array(vertices, dtype=np.float64), np.array(faces, dtype=np.int64)


def _corner(value: bytes, count: int) -> int:
    """The vertex, from 0, that a face of an OBJ names: from 1, or from the end of the `count` above it if negative."""
    index = int(value.partition(b"/")[0])
    return index + count if index < 0 else index - 1


def _claimed_counts(content: bytes) -> tuple[int, int]:
    """How many vertices and faces the header of a PLY announces, 0 where it does not say."""
    header = content.partition(b"end_header")[0]
    found = [re.search(rb"element\s+%s\s+(\d+)" % name, header) for name in (b"vertex", b"face")]
    vertices, faces = (int(match[1]) if match else 0 for match in found)
    return vertices, faces


def _check_mesh(path, vertices, faces, claimed: tuple[int, int]):
    """Raise InputError for what a file can hold that is no mesh: too little, no numbers, vertices that are not there.

    A PLY cut short as text is parsed without a word, so that its counts are compared with those `claimed`; polygons
    may have become several triangles.
    """
    if min(len(vertices), len(faces)) == 0:
        raise InputError(f"{path}: wanted a triangle mesh, found {len(vertices)} vertices and {len(faces)} faces")
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,):
        raise InputError(
            f"{path}: wanted three coordinates a vertex and three vertices a face, found arrays of shape"
            f" {vertices.shape} and {faces.shape}"
        )
    if len(vertices) != claimed[0] or len(faces) < claimed[1]:
        raise InputError(
            f"{path}: wanted {claimed[0]} vertices and {claimed[1]} faces, as its header says, found"
            f" {len(vertices)} and {len(faces)}"
        )
    if not np.isfinite(vertices).all():
        raise InputError(f"{path}: wanted finite coordinates, found NaN or infinity")
    if faces.min() < 0 or faces.max() >= len(vertices):
        wrong = faces[(faces < 0) | (faces >= len(vertices))][0]
        raise InputError(f"{path}: wanted faces of vertices 0 to {len(vertices) - 1}, found one of vertex {wrong}")


def orient_outward(vertices, faces):
    """The faces (F, 3), all turned around where the mesh's signed volume is negative (after a mirroring affine)."""
    return faces[:, ::-1] if mesh_volume_ml(vertices, faces) < 0 else faces


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
        "<Points>\n" + array("Float32", "Points", vertices, ' NumberOfComponents="3"') + "</Points>\n"
        "<Polys>\n"
        + array("Int64", "connectivity", faces)
        + array("Int64", "offsets", np.arange(1, len(faces) + 1, dtype="<i8") * 3)
        + "</Polys>\n"
        "</Piece>\n</PolyData>\n</VTKFile>\n"
    ).encode()


ENCODERS = {".ply": _ply, ".stl": _stl, ".obj": _obj, ".vtp": _vtp}
MESH_FORMATS = tuple(suffix.removeprefix(".") for suffix in ENCODERS)
