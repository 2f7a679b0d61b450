"""The files of one evaluated case: meshes, label maps, pictures, and what is asked for beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from implicitmeshnet.data.dataset import Case
from implicitmeshnet.data.dicom import source_files
from implicitmeshnet.evaluation.case import Result
from implicitmeshnet.predict import preview
from implicitmeshnet.report.figure import ENDINGS as FIGURE_ENDINGS
from implicitmeshnet.report.figure import write_figure
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces import dicom_seg
from implicitmeshnet.surfaces.combined import write_combined, write_multiblock, write_shared_walls
from implicitmeshnet.surfaces.conforming import conforming_surface
from implicitmeshnet.surfaces.figures import colours
from implicitmeshnet.surfaces.files import write_mesh
from implicitmeshnet.surfaces.label_files import write_labelmap

LABELMAP, SEGMENTATION = "_mesh_labelmap", "_unet_segmentation"


@dataclass(frozen=True)
class FileOptions:
    """Which files are written of a case, and how: options of implicitmeshnet_eval.py."""

    mesh_format: str
    space: str  # "LPS" or "RAS", of meshes
    labelmap: str  # what the names of label maps end with
    combined: str | None = None  # the format of all meshes in one file
    conforming: bool = False
    kept_wall_mm: float = 0.0  # of a conforming surface, see `conforming_surface`
    dicom_seg: bool = False
    figure: str | None = None  # its theme


def mesh_stems(case: str, structures: Sequence[str]) -> list[str]:
    """What the names of a case's mesh files begin with: the case, and where there are several the structure."""
    return [case] if len(structures) == 1 else [f"{case}_{name}" for name in structures]


def file_names(case: Case, structures: Sequence[str], options: FileOptions) -> set[str]:
    """The names of all files that `write_files` may write of a case in which these structures are wanted."""
    names = {f"{stem}_mesh.{options.mesh_format}" for stem in mesh_stems(case.name, structures)}
    names |= {f"{case.name}{kind}.{options.labelmap}" for kind in (LABELMAP, SEGMENTATION)}
    names.add(f"{case.name}_preview.png")
    if options.combined:
        names.add(f"{case.name}_combined.{options.combined}")
    if options.conforming:
        names.add(f"{case.name}_conforming.vtp")
    if options.dicom_seg and case.series:
        names.add(f"{case.name}_seg.dcm")
    if options.figure:
        names |= {f"{case.name}_figure.{ending}" for ending in FIGURE_ENDINGS}
    return names


def write_files(out: Path, result: Result, options: FileOptions) -> None:
    """Write one case's files, those of `file_names`; without the DICOM SEG where its source images do not allow it."""
    name = result.case.name
    surfaces = result.surfaces
    structures = surfaces.structures
    palette = [colours(structures.names)[each] for each in structures.names]
    stems = mesh_stems(name, structures.names)
    # The longest name first: where it is too long for the file system, nothing of the case is left.
    for kind, labels in ((SEGMENTATION, surfaces.segmentation), (LABELMAP, surfaces.labelmap)):
        write_labelmap(out / f"{name}{kind}.{options.labelmap}", labels, surfaces.grid, structures, palette)
    for stem, (vertices, faces) in zip(stems, result.meshes, strict=True):
        write_mesh(out / f"{stem}_mesh.{options.mesh_format}", vertices, faces, options.space)
    if options.combined:
        write_together(out / f"{name}_combined.{options.combined}", result, stems, palette, options.space)
    if options.conforming:
        write_conforming(out / f"{name}_conforming.vtp", result, options.kept_wall_mm, options.space)
    if options.dicom_seg and result.case.series:
        write_seg(out / f"{name}_seg.dcm", result, palette)
    result.clock.lap("write")
    preview(out / f"{name}_preview.png", surfaces, result.labels)
    if options.figure:
        write_figure(out / f"{name}_figure", name, surfaces, result.labels, options.figure)
    result.clock.lap("preview")


def write_together(path: Path, result: Result, stems: Sequence[str], palette: Sequence[str], space: str) -> None:
    """Write all structures of a case in one file, or as .vtm the list of their .vtp files."""
    structures = result.surfaces.structures
    if path.suffix == ".vtm":
        write_multiblock(path, [f"{stem}_mesh.vtp" for stem in stems], structures.names)
    else:
        write_combined(path, result.meshes, structures.names, list(structures.written.values()), palette, space)


def write_conforming(path: Path, result: Result, kept_wall_mm: float, space: str) -> None:
    """Write the surface of a case's structures with shared walls; warnings say what is not as it should be."""
    structures = result.surfaces.structures
    surface = conforming_surface(result.surfaces.meshes, structures, kept_wall_mm)
    values = list(structures.written.values())
    write_shared_walls(path, (surface.vertices, surface.faces), surface.regions, structures.names, values, space)
    for structure in surface.missing:
        spacing = f"{surface.field.spacing_mm:.2g} mm"
        result.warnings.append(f"{path.name}: lacks {structures.names[structure]}, too small for a grid of {spacing}")
    if surface.field.critical:
        places = surface.field.critical
        result.warnings.append(f"{path.name}: at {places} places the surface around a region touches itself")


def write_seg(path: Path, result: Result, palette: Sequence[str]) -> None:
    """Write a case's label map as DICOM SEG; where its source images do not allow it, a warning says why."""
    assert result.case.series is not None
    surfaces = result.surfaces
    try:
        with source_files(result.case.series) as files:
            dicom_seg.write_dicom_seg(path, surfaces.labelmap, surfaces.grid, files, surfaces.structures, palette)
    except InputError as error:
        result.warnings.append(str(error))
