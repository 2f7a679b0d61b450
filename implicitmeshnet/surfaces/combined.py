"""All structures of a case in one file: coloured PLY or VTP, a VTM that lists their own VTP files, or shared walls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from implicitmeshnet.script import InputError, atomic_path
from implicitmeshnet.surfaces.files import SIGNS, field_array, field_strings, ply_header, vtp_array, vtp_document
from implicitmeshnet.surfaces.labelmap import Mesh

COMBINED = (".ply", ".vtp", ".vtm")


@dataclass(frozen=True, eq=False)
class Together:
    """S meshes as one, in the space of the file."""

    vertices: np.ndarray  # (V, 3) float32
    faces: np.ndarray  # (F, 3) int32
    owner: np.ndarray  # (V,) which mesh each vertex belongs to
    names: Sequence[str]
    values: Sequence[int]
    colours: np.ndarray  # (S, 3) uint8
    space: str


def write_combined(
    path: Path | str,
    meshes: Sequence[Mesh],
    names: Sequence[str],
    values: Sequence[int],
    colours: Sequence[str],
    space: str = "LPS",
) -> None:
    """Write S meshes, vertices in world mm RAS, as one .ply or .vtp in LPS or RAS.

    Each has a name, a label value and a colour such as "#e4434b". A PLY has the colours at its vertices, and the names
    in comments. A VTP has the label values as point and cell array `structure`, the colours as cell array `colour`, and
    in its field data `structure_names` and `structure_values`. Raises InputError for another suffix, and where the file
    cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENCODERS:
        raise InputError(f"{path}: wanted a file name that ends in {' or '.join(ENCODERS)}, found {suffix!r}")
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    in_space = np.concatenate([np.asarray(vertices) * SIGNS[space] for vertices, _ in meshes]).astype("<f4")
    faces = np.concatenate([corners + start for (_, corners), start in zip(meshes, starts[:-1], strict=True)])
    owner = np.repeat(np.arange(len(meshes)), [len(vertices) for vertices, _ in meshes])
    scene = Together(in_space, faces.astype("<i4"), owner, names, values, _bytes(colours), space)
    content = ENCODERS[suffix](scene)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_shared_walls(
    path: Path | str,
    mesh: Mesh,
    regions: np.ndarray,
    names: Sequence[str],
    values: Sequence[int],
    space: str = "LPS",
) -> None:
    """Write a surface between regions, vertices in world mm RAS, as VTP in LPS or RAS.

    `regions` (F, 2) says which two structures each face lies between, s + 1 for structure s of these names and label
    values and 0 for outside, counter-clockwise seen from the second. The label values become the cell arrays
    `region_inside` and `region_outside`, names and values field data as of `write_combined`. Raises InputError where
    the file cannot be written.
    """
    vertices, faces = mesh
    of_faces = np.array([0, *values], "<i4")[regions]
    cells = vtp_array("Int32", "region_inside", of_faces[:, 0]) + vtp_array("Int32", "region_outside", of_faces[:, 1])
    content = vtp_document(
        (vertices * SIGNS[space]).astype("<f4"),
        faces,
        space,
        _named_values(names, values),
        f'<CellData Scalars="region_inside">\n{cells}</CellData>\n',
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_multiblock(path: Path | str, files: Sequence[str], names: Sequence[str]) -> None:
    """Write a .vtm: a VTK multi-block data set whose blocks, of these names, are VTP files of the same folder.

    Raises InputError where the file cannot be written.
    """
    blocks = ""
    for index, (file, name) in enumerate(zip(files, names, strict=True)):
        blocks += f'<DataSet index="{index}" name={quoteattr(name)} file={quoteattr(file)}/>\n'
    document = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="vtkMultiBlockDataSet" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f"<vtkMultiBlockDataSet>\n{blocks}</vtkMultiBlockDataSet>\n</VTKFile>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(document.encode("utf-8", "surrogateescape"))


def _bytes(colours: Sequence[str]) -> np.ndarray:
    """Colours such as "#e4434b" as (S, 3) uint8."""
    return np.array([list(bytes.fromhex(colour.removeprefix("#"))) for colour in colours], np.uint8)


def _named_values(names: Sequence[str], values: Sequence[int]) -> str:
    """Field data of a VTP that say which structures have which label values."""
    return field_strings("structure_names", names) + field_array("structure_values", np.asarray(values, "<i4"))


def _ply(scene: Together) -> bytes:
    records = np.empty(len(scene.vertices), dtype=[("position", "<f4", 3), ("colour", "u1", 3)])
    records["position"] = scene.vertices
    records["colour"] = scene.colours[scene.owner]
    polygons = np.empty(len(scene.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    polygons["count"] = 3
    polygons["corners"] = scene.faces
    comments = []
    for name, value, colour in zip(scene.names, scene.values, scene.colours, strict=True):
        comments.append(f"structure {value} {name} #{bytes(colour).hex()}")
    header = ply_header(
        len(scene.vertices), len(scene.faces), scene.space, comments, ("uchar red", "uchar green", "uchar blue")
    )
    return header + records.tobytes() + polygons.tobytes()


def _vtp(scene: Together) -> bytes:
    structure = np.asarray(scene.values, "<i4")
    of_faces = scene.owner[scene.faces[:, 0]]
    fields = _named_values(scene.names, scene.values)
    points = vtp_array("Int32", "structure", structure[scene.owner])
    cells = vtp_array("Int32", "structure", structure[of_faces])
    cells += vtp_array("UInt8", "colour", scene.colours[of_faces], ' NumberOfComponents="3"')
    return vtp_document(
        scene.vertices,
        scene.faces,
        scene.space,
        fields,
        f'<PointData Scalars="structure">\n{points}</PointData>\n<CellData Scalars="structure">\n{cells}</CellData>\n',
    )


ENCODERS = {".ply": _ply, ".vtp": _vtp}
