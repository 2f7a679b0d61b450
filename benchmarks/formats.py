"""Format in x format out: how far a mesh lies from that of the NIfTI route, read back by another program's reader.

    PYTHONPATH=$PWD python benchmarks/formats.py [--side=32]

One phantom of two blobs on an oblique, a left-handed and an anisotropic grid is written as NIfTI, NRRD, MetaImage and
DICOM (a folder of unsorted names, a zip), predicted with an untrained network, and its meshes and label maps are
written in each format. A cell is the largest distance in mm over the three grids: of vertices from those of the NIfTI
route in memory, of labelled voxels from their place there; below them is the least Dice of a label map. Wants the
extras `formats` and `dicom`, meshio and VTK; without VTK its columns are left out.
"""

import argparse
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from faults.project import NETWORK
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from implicitmeshnet.config import load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dicom import only_series, source_files
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.predict import Predictor, Surfaces
from implicitmeshnet.surfaces.combined import write_combined
from implicitmeshnet.surfaces.dicom_seg import write_dicom_seg
from implicitmeshnet.surfaces.figures import colours
from implicitmeshnet.surfaces.files import write_mesh
from implicitmeshnet.surfaces.label_files import write_labelmap

INPUTS = ("nii.gz", "nrrd", "mha", "mhd", "dicom", "zip")
MESHES = ("ply", "stl", "obj", "vtp")
LABELMAPS = ("nii.gz", "nrrd", "seg.nrrd", "dcm")
TO_LPS = np.array([-1.0, -1.0, 1.0])
SIDE = 32


def grids(side: int = SIDE) -> dict[str, np.ndarray]:
    """Affines (4, 4), voxel -> mm RAS: oblique, left-handed, anisotropic; each with its middle off the origin."""
    turn = Rotation.from_euler("xyz", [12, -8, 25], degrees=True).as_matrix()
    directions = {
        "oblique": turn * (2.0, 2.0, 2.5),
        "left-handed": np.diag([-2.0, 2.5, 2.0]),
        "anisotropic": np.array([[0, 0, -4.0], [1.5, 0, 0], [0, -1.5, 0]]),
    }
    affines = {}
    for name, matrix in directions.items():
        affine = np.eye(4)
        affine[:3, :3] = matrix
        affine[:3, 3] = (15.5, -21.25, 33.0) - matrix @ np.full(3, side / 2)
        affines[name] = affine
    return affines


def phantom(side: int = SIDE) -> np.ndarray:
    """Two blobs in noise, int16 (side, side + 2, side - 2): no axis can be taken for another."""
    image = np.random.default_rng(0).normal(0, 20, (side, side + 2, side - 2))
    image[side // 5 : side // 2, side // 4 : side // 2, side // 4 : side // 2] += 400
    image[side // 2 : -side // 5, side // 3 : -side // 4, side // 3 : -side // 4] += 700
    return image.round().astype(np.int16)


def write_input(folder: Path, kind: str, data: np.ndarray, affine: np.ndarray) -> Path:
    """Write an int16 volume (X, Y, Z) in a format of INPUTS by another program's writer; the path to hand in."""
    if kind == "nii.gz":
        write_volume(folder / "image.nii.gz", data, affine)
        return folder / "image.nii.gz"
    if kind == "dicom":
        write_series(folder / "image", data, affine)
        return folder / "image"
    if kind == "zip":
        write_series(folder / "unzipped", data, affine)
        with zipfile.ZipFile(folder / "image.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((folder / "unzipped").iterdir()):
                archive.write(path, f"study/{path.name}")
        return folder / "image.zip"
    import SimpleITK

    image = SimpleITK.GetImageFromArray(data.transpose())
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((TO_LPS * affine[:3, 3]).tolist())
    image.SetDirection((TO_LPS[:, None] * affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(folder / f"image.{kind}"))
    return folder / f"image.{kind}"


def write_series(folder: Path, data: np.ndarray, affine: np.ndarray, **tags: object) -> list[Path]:
    """Write an int16 volume (X, Y, Z) as CT slices by pydicom, stored + 1024; their paths, in the order of z.

    File names are shuffled and have no ending. `tags` override attributes of every slice; None deletes one.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = TO_LPS[:, None] * affine[:3, :3] / spacing  # (3, 3) LPS
    names = [f"slice{number:03}" for number in range(data.shape[2])]
    random.Random(0).shuffle(names)
    series = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    paths = []
    for z, name in enumerate(names):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for key, value in series.items():
            setattr(slice_, key, value)
        slice_.Modality = "CT"
        slice_.PatientID = "phantom"
        slice_.PatientPosition = "HFS"
        slice_.SeriesNumber = 4
        slice_.SeriesDescription = "two blobs"
        slice_.InstanceNumber = z + 1
        slice_.Columns, slice_.Rows = data.shape[:2]
        slice_.SamplesPerPixel = 1
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit = 15
        slice_.PixelRepresentation = 0
        slice_.RescaleSlope = 1
        slice_.RescaleIntercept = -1024
        slice_.PixelSpacing = [_number(spacing[1]), _number(spacing[0])]  # between rows, between columns
        slice_.ImageOrientationPatient = [_number(value) for value in directions[:, :2].T.ravel()]
        position = TO_LPS * transform(affine, np.array([0.0, 0.0, z]))
        slice_.ImagePositionPatient = [_number(value) for value in position]
        slice_.PixelData = (data[:, :, z].T + 1024).astype("<u2").tobytes()
        for key, value in tags.items():
            if value is None:
                delattr(slice_, key)
            else:
                setattr(slice_, key, value)
        paths.append(folder / name)
        slice_.save_as(paths[-1], enforce_file_format=True)
    return paths


def _number(value: float) -> str:
    """A number as DICOM's decimal strings hold it, in at most 16 letters."""
    return f"{value:.12f}"[:16]


def read_mesh_independently(path: Path, reader: str) -> np.ndarray:
    """The vertices (V, 3) of a mesh file by meshio, trimesh or VTK, in the file's own space."""
    if reader == "meshio":
        import meshio

        return np.asarray(meshio.read(path).points)
    if reader == "trimesh":
        import trimesh

        return np.asarray(trimesh.load_mesh(path, process=False).vertices)
    return vtk_mesh(path)[0]


def vtk_mesh(path: Path):
    """The points (V, 3) of a mesh file by VTK, and its data set."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    readers = {
        ".ply": vtk.vtkPLYReader,
        ".stl": vtk.vtkSTLReader,
        ".obj": vtk.vtkOBJReader,
        ".vtp": vtk.vtkXMLPolyDataReader,
    }
    reader = readers[path.suffix]()
    reader.SetFileName(str(path))
    reader.Update()
    return vtk_to_numpy(reader.GetOutput().GetPoints().GetData()).astype(float), reader.GetOutput()


def read_labels_independently(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A label map (X, Y, Z) of a file by SimpleITK, and its affine (4, 4) in RAS."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(), np.diag([*TO_LPS, 1.0]) @ affine


def read_seg_independently(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of a DICOM SEG by highdicom the segments' numbers (X, Y, Z), the affine (4, 4) in RAS and the segments' labels.

    highdicom leaves slices out that hold nothing.
    """
    import highdicom

    segmentation = highdicom.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True)  # (Z, Y, X)
    affine = volume.affine[:, [2, 1, 0, 3]]
    labels = [segmentation.get_segment_description(number).segment_label for number in segmentation.segment_numbers]
    return volume.array.transpose(), np.diag([*TO_LPS, 1.0]) @ affine, labels


def farthest_mm(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of a point of either (N, 3) to the nearest of the other: readers of STL sort points anew."""
    there, _ = cKDTree(one).query(other)
    back, _ = cKDTree(other).query(one)
    return float(max(there.max(), back.max()))


def mesh_cells(folder: Path, surfaces: Surfaces, wanted: Surfaces, readers: list[str]) -> dict[str, float]:
    """By format and reader, how far the meshes that a file holds lie from the wanted ones, mm."""
    cells: dict[str, float] = {}
    for ending in MESHES:
        path = folder / f"mesh.{ending}"
        for (vertices, faces), (reference, _) in zip(surfaces.meshes, wanted.meshes, strict=True):
            write_mesh(path, vertices, faces)
            for reader in readers:
                if ending == "vtp" and reader != "vtk":
                    continue
                found = read_mesh_independently(path, reader) * TO_LPS
                key = f"{ending} ({reader})"
                cells[key] = max(cells.get(key, 0), farthest_mm(found, reference))
    palette = colours(surfaces.names)
    for ending in ("ply", "vtp"):
        path = folder / f"all.{ending}"
        values = list(surfaces.structures.written.values())
        write_combined(path, surfaces.meshes, surfaces.names, values, [palette[name] for name in surfaces.names])
        for reader in readers:
            if ending == "ply" or reader == "vtk":
                found = read_mesh_independently(path, reader) * TO_LPS
                cells[f"combined {ending} ({reader})"] = farthest_mm(found, wanted.vertices.reshape(-1, 3))
    return cells


def labelmap_cells(folder: Path, surfaces: Surfaces, wanted: Surfaces, source: Path) -> dict[str, tuple[float, float]]:
    """By format, how far voxels lie from where the wanted label map has them, mm, and the least Dice with it."""
    palette = [colours(surfaces.names)[name] for name in surfaces.names]
    cells = {}
    for ending in LABELMAPS:
        path = folder / f"labels.{ending}"
        if ending != "dcm":
            write_labelmap(path, surfaces.labelmap, surfaces.grid, surfaces.structures, palette)
            labels, affine = read_labels_independently(path)
        elif source.is_dir() or source.suffix == ".zip":
            with source_files(only_series(source)) as files:
                write_dicom_seg(path, surfaces.labelmap, surfaces.grid, files, surfaces.structures, palette)
            numbers, affine, names = read_seg_independently(path)
            labels = np.array([0, *(surfaces.structures.written[name] for name in names)])[numbers]
        else:
            continue
        cells[ending] = placed(labels, affine, wanted)
    return cells


def placed(labels: np.ndarray, affine: np.ndarray, wanted: Surfaces) -> tuple[float, float]:
    """How far labelled voxels lie from voxels of the wanted label map, mm, and the least Dice of a structure."""
    points = transform(affine, np.argwhere(labels).astype(float))
    voxels = transform(np.linalg.inv(wanted.grid.affine), points)
    nearest = np.rint(voxels)
    apart = transform(wanted.grid.affine, nearest) - points
    moved = np.zeros_like(wanted.labelmap)
    moved[tuple(nearest.astype(int).T)] = labels[labels > 0]
    dice = []
    for value in wanted.structures.written.values():
        both = (moved == value).sum() + (wanted.labelmap == value).sum()
        dice.append(2 * ((moved == value) & (wanted.labelmap == value)).sum() / both)
    return float(np.linalg.norm(apart, axis=1).max()), float(min(dice))


def untrained(folder: Path) -> Path:
    """The JSON config of a network of two structures that was never trained, with its weights, in a folder."""
    template = {"template_centres": [[-0.4, 0, 0], [0.4, 0.1, 0]], "template_radii": [[0.4] * 3, [0.5] * 3]}
    config = {
        "data": {"structures": {"LV": [500], "LA": [420]}, "shape": [8, 8, 8], "spacing_mm": 8.0, "region": "centre"},
        "network": NETWORK | template,
        "snapshot": str(folder / "weights.pt"),
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    save_snapshot(folder / "weights.pt", build_network(load_config(path)), load_config(path))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=SIDE, help="voxels along a side; default %(default)s")
    side = parser.parse_args().side
    try:
        import vtk  # noqa: F401

        readers = ["vtk", "meshio", "trimesh"]
    except ImportError:
        print("VTK is not installed: its columns are left out", file=sys.stderr)
        readers = ["meshio", "trimesh"]
    distances: dict[str, dict[str, float]] = {kind: {} for kind in INPUTS}
    dices: dict[str, dict[str, float]] = {kind: {} for kind in INPUTS}
    with tempfile.TemporaryDirectory() as temporary:
        predictor = Predictor.from_config(untrained(Path(temporary)), device="cpu")
        for name, affine in grids(side).items():
            folder = Path(temporary) / name
            folder.mkdir()
            wanted = predictor(write_input(folder, "nii.gz", phantom(side), affine))
            for kind in INPUTS:
                source = write_input(folder, kind, phantom(side), affine)
                surfaces = predictor(source)
                cells = mesh_cells(folder, surfaces, wanted, readers)
                for ending, (apart, dice) in labelmap_cells(folder, surfaces, wanted, source).items():
                    cells[f"labels {ending}"] = apart
                    dices[kind][ending] = min(dices[kind].get(ending, 1), dice)
                for key, apart in cells.items():
                    distances[kind][key] = max(distances[kind].get(key, 0), apart)
    print_table(distances, dices)


def print_table(distances: dict[str, dict[str, float]], dices: dict[str, dict[str, float]]) -> None:
    columns = list(distances["dicom"])
    print("| file, reader | " + " | ".join(INPUTS) + " |")
    print("|---" * (len(INPUTS) + 1) + "|")
    for column in columns:
        cells = [f"{distances[kind][column]:.1e}" if column in distances[kind] else "" for kind in INPUTS]
        print(f"| {column} | " + " | ".join(cells) + " |")
    for ending in LABELMAPS:
        cells = [f"{dices[kind][ending]:.4f}" if ending in dices[kind] else "" for kind in INPUTS]
        print(f"| Dice of {ending} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
