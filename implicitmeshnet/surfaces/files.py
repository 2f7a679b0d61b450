"""Meshes to files that name their space (PLY, STL, OBJ, VTP), and back.

A file says its space where 3D Slicer writes and looks for it (Slicer, Libs/MRML/Core/vtkMRMLModelStorageNode.cxx):
`SPACE=LPS` in a PLY comment, the STL header or an OBJ comment; a string array SPACE in the field data of a VTP.
"""

import base64
import logging
import re
import warnings
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import trimesh

from implicitmeshnet.script import InputError, atomic_path
from implicitmeshnet.surfaces.soundness import mesh_volume_ml

SIGNS = {"LPS": (-1.0, -1.0, 1.0), "RAS": (1.0, 1.0, 1.0)}
"""Factors from world RAS to a space, or back. LPS is a half turn about z, so faces keep their outer side."""
REASON_LETTERS = 200
"""How much our errors quote of another program's."""
SPACE_BYTES = 1024
"""The beginning of a mesh file, in which its space is looked for."""
NOT_A_NUMBER = ("string or file could not be read to its end", "invalid value encountered in cast")
"""Warnings of numpy about text that is no number, which it would otherwise read as some other number."""

# What trimesh logs about a damaged file stands in our own errors.
logging.getLogger("trimesh").addHandler(logging.NullHandler())


def write_mesh(path: Path | str, vertices_mm: np.ndarray, faces: np.ndarray, space: str = "LPS") -> None:
    """Write a mesh, vertices (V, 3) in world mm RAS and faces (F, 3), in the format of the suffix, in LPS or RAS.

    Coordinates are stored as float32. Raises InputError for another suffix or space, and where the file cannot be
    written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENCODERS:
        raise InputError(f"{path}: wanted a mesh file name that ends in {', '.join(ENCODERS)}, found {suffix!r}")
    if space not in SIGNS:
        raise InputError(f"space: wanted {' or '.join(SIGNS)}, found {space!r}")
    in_space = np.asarray(vertices_mm) * SIGNS[space]
    corners = np.asarray(faces).astype("<i4")
    encode = ENCODERS[suffix]
    content = encode(in_space.astype("<f4"), corners, space)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_mesh(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Read a .ply, .stl or .obj: vertices (V, 3) float64 in world mm RAS, faces (F, 3) int64.

    The space is the one that the file names, otherwise LPS, as 3D Slicer assumes. An STL repeats its vertices for each
    face; equal ones are merged. Raises InputError where the file is missing or damaged, and where it holds no proper
    mesh: no vertices or no faces, a coordinate that is not finite, or a face with a vertex that does not exist.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PARSERS:
        raise InputError(f"{path}: wanted a mesh file name that ends in {', '.join(PARSERS)}, found {suffix!r}")
    content, vertices, faces = _parse(path, suffix)
    announced = _announced_counts(content) if suffix == ".ply" else (len(vertices), 0)
    _check_mesh(path, vertices, faces, announced)
    if suffix == ".stl":
        vertices, index = np.unique(vertices, axis=0, return_inverse=True)
        faces = index[faces]
    return vertices * SIGNS[_named_space(content)], faces


def _parse(path: Path | str, suffix: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file's content, and its vertices and faces, unchecked. Raises InputError where there is nothing to parse."""
    try:
        content = Path(path).read_bytes()
        parse = PARSERS[suffix]
        return content, *parse(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file makes trimesh raise anything
        reason = _parser_reason(error)
        raise InputError(f"{path}: wanted a triangle mesh, found a file that cannot be parsed: {reason}") from error


def _parser_reason(error: Exception) -> str:
    """Why a file cannot be parsed, in the parser's words as far as they are of use."""
    # To guess an encoding, trimesh would import a package that is not installed.
    if isinstance(error, ImportError):
        return "it is neither text nor as long as its header says"
    words = str(error).split()
    return " ".join(words)[:REASON_LETTERS] or type(error).__name__


def _named_space(content: bytes) -> str:
    named = re.search(rb"SPACE=(LPS|RAS)", content[:SPACE_BYTES])
    return named[1].decode() if named else "LPS"


def _parse_ply(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    return _parse_by_trimesh(content, "ply")


def _parse_stl(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    return _parse_by_trimesh(content, "stl")


def _parse_by_trimesh(content: bytes, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of a PLY or STL, unchecked; raises any exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for message in NOT_A_NUMBER:
            warnings.filterwarnings("error", message)
        mesh = trimesh.load_mesh(BytesIO(content), kind, process=False, maintain_order=True, skip_materials=True)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    faces = getattr(mesh, "faces", ())  # a cloud of points has none
    return vertices, np.asarray(faces, dtype=np.int64)


def _parse_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of an OBJ, unchecked, polygons as fans of triangles.

    Groups, materials, normals and texture are left out. Raises ValueError for a line that cannot be read.
    """
    vertices: list[tuple[float, ...]] = []
    faces: list[tuple[int, ...]] = []
    joined = re.sub(rb"\\\r?\n", b" ", content)  # a line that ends in a backslash goes on
    for number, line in enumerate(joined.splitlines(), 1):
        kind, *values = line.split() or [b""]
        try:
            if kind == b"v":
                vertices.append(_point(values))
            if kind == b"f":
                faces += _fan(values, len(vertices))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return np.array(vertices, dtype=np.float64), np.array(faces, dtype=np.int64)


def _point(values: list[bytes]) -> tuple[float, ...]:
    """The coordinates on a vertex line of an OBJ; a weight or a colour that follows them is left out."""
    x, y, z, *_ = map(float, values)
    return x, y, z


def _fan(values: list[bytes], count: int) -> list[tuple[int, ...]]:
    """The triangles of a polygon, all around its first corner, on a face line of an OBJ with `count` vertices above."""
    first, second, third, *others = [_corner(value, count) for value in values]
    sides = pairwise((second, third, *others))
    return [(first, *side) for side in sides]


def _corner(value: bytes, count: int) -> int:
    """The index of the vertex that a face of an OBJ names, `count` vertices standing above it in the file.

    A positive number counts from the first vertex, which is 1, a negative one back from the last, which is -1.
    """
    index = int(value.partition(b"/")[0])
    return index + count if index < 0 else index - 1


def _announced_counts(content: bytes) -> tuple[int, int]:
    """How many vertices and faces the header of a PLY announces, 0 where it does not say."""
    header = content.partition(b"end_header")[0]
    return _announced(header, b"vertex"), _announced(header, b"face")


def _announced(header: bytes, element: bytes) -> int:
    found = re.search(rb"element\s+%s\s+(\d+)" % element, header)
    return int(found[1]) if found else 0


def _check_mesh(path: Path | str, vertices: np.ndarray, faces: np.ndarray, announced: tuple[int, int]) -> None:
    """Raise InputError for what a file can hold that is no mesh: too little, no numbers, vertices that are not there.

    The parser reads a text PLY that was cut short without complaint, so the counts are compared with those `announced`
    in its header. More faces than announced are right: polygons become several triangles.
    """
    if min(len(vertices), len(faces)) == 0:
        raise InputError(f"{path}: wanted a triangle mesh, found {len(vertices)} vertices and {len(faces)} faces")
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,):
        raise InputError(
            f"{path}: wanted three coordinates a vertex and three vertices a face, found arrays of shape"
            f" {vertices.shape} and {faces.shape}"
        )
    if len(vertices) != announced[0] or len(faces) < announced[1]:
        raise InputError(
            f"{path}: wanted {announced[0]} vertices and {announced[1]} faces, as its header says, found"
            f" {len(vertices)} and {len(faces)}"
        )
    if not np.isfinite(vertices).all():
        raise InputError(f"{path}: wanted finite coordinates, found NaN or infinity")
    missing = (faces < 0) | (faces >= len(vertices))
    if missing.any():
        wrong = faces[missing][0]
        raise InputError(f"{path}: wanted faces of vertices 0 to {len(vertices) - 1}, found one of vertex {wrong}")


def orient_outward(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces (F, 3), all turned around where the signed volume is negative (after a mirroring affine)."""
    return faces[:, ::-1] if mesh_volume_ml(vertices, faces) < 0 else faces


def ply_header(
    vertices: int, faces: int, space: str, comments: Sequence[str] = (), properties: Sequence[str] = ()
) -> bytes:
    """The header of a binary PLY of so many vertices, with further properties of these as "uchar red", and faces."""
    lines = ["ply", "format binary_little_endian 1.0", "comment ImplicitMeshNet", f"comment SPACE={space}"]
    lines += [f"comment {' '.join(comment.split())}" for comment in comments]
    lines += [f"element vertex {vertices}", "property float x", "property float y", "property float z"]
    lines += [f"property {each}" for each in properties]
    lines += [f"element face {faces}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _ply(vertices: np.ndarray, faces: np.ndarray, space: str) -> bytes:
    records = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    records["count"] = 3
    records["corners"] = faces
    return ply_header(len(vertices), len(faces), space) + vertices.tobytes() + records.tobytes()


def _stl(vertices: np.ndarray, faces: np.ndarray, space: str) -> bytes:
    corners = vertices[faces]  # (F, 3 corners, 3)
    a, b, c = corners.transpose(1, 0, 2)  # each (F, 3)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(len(faces), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    records["normal"] = normals / np.where(lengths > 0, lengths, 1)  # zero for a face without area
    records["corners"] = corners
    header = f"ImplicitMeshNet SPACE={space}".ljust(80)
    count = np.uint32(len(faces))
    return header.encode() + count.tobytes() + records.tobytes()


def _obj(vertices: np.ndarray, faces: np.ndarray, space: str) -> bytes:
    lines = [f"# ImplicitMeshNet SPACE={space}"]
    lines += ["v {:.9g} {:.9g} {:.9g}".format(*vertex) for vertex in vertices.tolist()]
    from_one = faces + 1  # an OBJ counts vertices from 1
    lines += ["f {} {} {}".format(*face) for face in from_one.tolist()]
    return ("\n".join(lines) + "\n").encode()


def _vtp(vertices: np.ndarray, faces: np.ndarray, space: str) -> bytes:
    return vtp_document(vertices, faces, space)


def vtp_document(vertices: np.ndarray, faces: np.ndarray, space: str, fields: str = "", arrays: str = "") -> bytes:
    """A VTP of vertices (V, 3) float32 and faces (F, 3), with further XML of its field data, and of its piece."""
    points = vtp_array("Float32", "Points", vertices, ' NumberOfComponents="3"')
    connectivity = vtp_array("Int64", "connectivity", faces.astype("<i8"))
    ends = np.arange(1, len(faces) + 1, dtype="<i8") * 3  # where each face's vertices end in the list of all
    offsets = vtp_array("Int64", "offsets", ends)
    document = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n<PolyData>\n'
        f"<FieldData>{field_strings('SPACE', [space])}{fields}</FieldData>\n"
        f'<Piece NumberOfPoints="{len(vertices)}" NumberOfPolys="{len(faces)}">\n{arrays}'
        f"<Points>\n{points}</Points>\n"
        f"<Polys>\n{connectivity}{offsets}</Polys>\n"
        "</Piece>\n</PolyData>\n</VTKFile>\n"
    )
    return document.encode()


def field_strings(name: str, texts: Sequence[str]) -> str:
    """An array of strings in the field data of a VTP, as VTK writes it: bytes as numbers, a zero behind each string."""
    numbers: list[str] = []
    for text in texts:
        numbers += map(str, [*text.encode("utf-8", "replace"), 0])
    count = f'Name="{name}" NumberOfTuples="{len(texts)}"'
    return f'<Array type="String" {count} format="ascii">{" ".join(numbers)}</Array>'


def field_array(name: str, values: np.ndarray) -> str:
    """An array of whole numbers (N,) in the field data of a VTP."""
    numbers = " ".join(map(str, values.tolist()))
    count = f'Name="{name}" NumberOfTuples="{len(values)}"'
    return f'<DataArray type="Int32" {count} format="ascii">{numbers}</DataArray>'


def vtp_array(kind: str, name: str, values: np.ndarray, components: str = "") -> str:
    """An array as an XML element of a VTP: its length in bytes and its content, in base 64."""
    size = np.uint64(values.nbytes)
    content = base64.b64encode(size.tobytes() + values.tobytes()).decode()
    return f'<DataArray type="{kind}" Name="{name}"{components} format="binary">{content}</DataArray>\n'


PARSERS = {".ply": _parse_ply, ".stl": _parse_stl, ".obj": _parse_obj}
ENCODERS = {".ply": _ply, ".stl": _stl, ".obj": _obj, ".vtp": _vtp}
