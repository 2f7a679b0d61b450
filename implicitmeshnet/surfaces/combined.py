"""All structures of a case in one coloured file: PLY, VTP, or a VTM that lists the structures' own VTP files."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from implicitmeshnet.script import InputError, atomic_path
from implicitmeshnet.surfaces.files import SIGNS, field_array, field_strings, ply_header, vtp_array, vtp_document
from implicitmeshnet.surfaces.labelmap import Mesh

COMBINED = (".ply", ".vtp", ".vtm")


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
    content = ENCODERS[suffix](in_space, faces.astype("<i4"), owner, names, values, _bytes(colours), space)
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


def _ply(
    vertices: np.ndarray,
    faces: np.ndarray,
    owner: np.ndarray,
    names: Sequence[str],
    values: Sequence[int],
    colours: np.ndarray,
    space: str,
) -> bytes:
    records = np.empty(len(vertices), dtype=[("position", "<f4", 3), ("colour", "u1", 3)])
    records["position"] = vertices
    records["colour"] = colours[owner]
    polygons = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    polygons["count"] = 3
    polygons["corners"] = faces
    comments = []
    for name, value, colour in zip(names, values, colours, strict=True):
        comments.append(f"structure {value} {name} #{bytes(colour).hex()}")
    header = ply_header(len(vertices), len(faces), space, comments, ("uchar red", "uchar green", "uchar blue"))
    return header + records.tobytes() + polygons.tobytes()


def _vtp(
    vertices: np.ndarray,
    faces: np.ndarray,
    owner: np.ndarray,
    names: Sequence[str],
    values: Sequence[int],
    colours: np.ndarray,
    space: str,
) -> bytes:
    structure = np.asarray(values, "<i4")
    of_faces = owner[faces[:, 0]]
    fields = field_strings("structure_names", names) + field_array("structure_values", structure)
    points = vtp_array("Int32", "structure", structure[owner])
    cells = vtp_array("Int32", "structure", structure[of_faces])
    cells += vtp_array("UInt8", "colour", colours[of_faces], ' NumberOfComponents="3"')
    return vtp_document(
        vertices,
        faces,
        space,
        fields,
        f'<PointData Scalars="structure">\n{points}</PointData>\n<CellData Scalars="structure">\n{cells}</CellData>\n',
    )


ENCODERS = {".ply": _ply, ".vtp": _vtp}
