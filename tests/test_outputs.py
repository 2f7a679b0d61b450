"""What the evaluation writes on request, read back by other programs; statistics; chosen structures."""

import csv
import json
from types import SimpleNamespace

import meshes
import nibabel as nib
import numpy as np
import pytest
import trimesh
from formats import (
    MESHES,
    TO_LPS,
    farthest_mm,
    grids,
    phantom,
    placed,
    read_labels_independently,
    read_mesh_independently,
    read_seg_independently,
    untrained,
    vtk_mesh,
    write_input,
    write_series,
)
from scripts import call, run

import implicitmeshnet_eval
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.evaluation.rows import REPAIRED
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces import combined, dicom_seg, figures, label_files, separation, subdivide, walls
from implicitmeshnet.surfaces.case_figure import volume_text
from implicitmeshnet.surfaces.combined import write_combined
from implicitmeshnet.surfaces.crossing import crossing_faces
from implicitmeshnet.surfaces.files import read_mesh, write_mesh
from implicitmeshnet.surfaces.label_files import write_labelmap
from implicitmeshnet.surfaces.labelmap import mesh_to_mask
from implicitmeshnet.surfaces.quality import QUALITY, triangle_quality
from implicitmeshnet.surfaces.soundness import is_closed, mesh_area_mm2, mesh_volume_ml

SIDE = 20
AFFINES = grids(SIDE)
COLOURS = ["#e4434b", "#ff8fb1"]
STRUCTURES = Structures(("LV", "LA"), ((500,), (420,)), ((), ()))


def two_balls(affine) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two spheres about a quarter of the image apart, world mm RAS."""
    middle = affine[:3, :3] @ np.full(3, SIDE / 2) + affine[:3, 3]
    return [meshes.sphere(middle + shift, 9.0, 2) for shift in ((-11, 0, 2), (8, 3, 0))]


def labels_of(affine) -> tuple[np.ndarray, Grid]:
    grid = Grid((SIDE, SIDE + 2, SIDE - 2), affine)
    labels = np.zeros(grid.shape, np.int16)
    for mesh, value in zip(two_balls(affine), (500, 420), strict=True):
        labels[mesh_to_mask(*mesh, grid)] = value
    return labels, grid


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("reader", ["meshio", "trimesh", "vtk"])
def test_other_readers_find_each_mesh_where_it_is(tmp_path, grid, reader):
    pytest.importorskip("vtk" if reader == "vtk" else reader, reason="not installed")
    ((vertices, faces), *_) = two_balls(AFFINES[grid])
    for ending in MESHES:
        if ending == "vtp" and reader != "vtk":
            continue
        write_mesh(tmp_path / f"a.{ending}", vertices, faces)
        found = read_mesh_independently(tmp_path / f"a.{ending}", reader) * TO_LPS
        assert farthest_mm(found, vertices) < 1e-4


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("reader", ["meshio", "vtk"])
def test_other_readers_find_each_mesh_right_side_out_in_either_space(tmp_path, grid, space, reader):
    pytest.importorskip(reader, reason="not installed")
    ((vertices, faces), *_) = two_balls(AFFINES[grid])
    for ending in MESHES:
        if ending == "vtp" and reader != "vtk":
            continue
        path = tmp_path / f"a.{ending}"
        write_mesh(path, vertices, faces, space)
        found = read_mesh_independently(path, reader) * (TO_LPS if space == "LPS" else 1)
        assert farthest_mm(found, vertices) < 1e-4
        assert volume_independently_ml(path, reader) == pytest.approx(mesh_volume_ml(vertices, faces), rel=1e-4)
        assert f"SPACE={space}".encode() in path.read_bytes() or ending == "vtp"


def volume_independently_ml(path, reader) -> float:
    """What the faces of a mesh file enclose by another program, negative where they are inside out."""
    if reader == "meshio":
        import meshio

        mesh = meshio.read(path)
        corners = mesh.points[mesh.cells_dict["triangle"]].astype(float)
    else:
        from vtk.util.numpy_support import vtk_to_numpy

        points, data = vtk_mesh(path)
        corners = points[vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)]
    return float(np.linalg.det(corners).sum()) / 6000


def test_meshio_finds_the_colours_of_a_combined_ply(tmp_path):
    meshio = pytest.importorskip("meshio", reason="meshio is not installed")
    balls = two_balls(AFFINES["anisotropic"])
    write_combined(tmp_path / "a.ply", balls, ("LV", "LA"), (500, 420), COLOURS)
    mesh = meshio.read(tmp_path / "a.ply")
    colours = np.stack([mesh.point_data[name] for name in ("red", "green", "blue")], 1)
    colours = colours.astype(np.uint8)  # meshio takes a PLY's uchar for a signed byte
    np.testing.assert_array_equal(colours[[0, -1]], [(0xE4, 0x43, 0x4B), (0xFF, 0x8F, 0xB1)])


def test_a_combined_ply_has_each_structures_colour_at_its_vertices(tmp_path):
    balls = two_balls(AFFINES["oblique"])
    write_combined(tmp_path / "a.ply", balls, ("LV", "LA"), (500, 420), COLOURS)
    mesh = trimesh.load_mesh(tmp_path / "a.ply", process=False)
    np.testing.assert_allclose(mesh.vertices * TO_LPS, np.concatenate([each for each, _ in balls]), atol=1e-4)
    count = len(balls[0][0])
    assert (mesh.visual.vertex_colors[:count, :3] == (0xE4, 0x43, 0x4B)).all()
    assert (mesh.visual.vertex_colors[count:, :3] == (0xFF, 0x8F, 0xB1)).all()
    assert is_closed(mesh.faces)
    assert mesh.volume / 1000 == pytest.approx(sum(mesh_volume_ml(*ball) for ball in balls), rel=1e-5)
    ours, _ = read_mesh(tmp_path / "a.ply")
    np.testing.assert_allclose(ours, mesh.vertices * TO_LPS)
    assert b"comment structure 500 LV #e4434b" in (tmp_path / "a.ply").read_bytes()


def test_a_combined_vtp_says_which_structure_each_point_and_face_is_of(tmp_path):
    pytest.importorskip("vtk", reason="VTK is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    balls = two_balls(AFFINES["left-handed"])
    write_combined(tmp_path / "a.vtp", balls, ("LV", "LA & <rest>"), (500, 420), COLOURS, "RAS")
    points, data = vtk_mesh(tmp_path / "a.vtp")
    np.testing.assert_allclose(points, np.concatenate([each for each, _ in balls]), atol=1e-4)
    counts = [len(each) for each, _ in balls], [len(each) for _, each in balls]
    for attributes, sizes in zip((data.GetPointData(), data.GetCellData()), counts, strict=True):
        np.testing.assert_array_equal(vtk_to_numpy(attributes.GetArray("structure")), np.repeat([500, 420], sizes))
    colour = vtk_to_numpy(data.GetCellData().GetArray("colour"))
    np.testing.assert_array_equal(colour[[0, -1]], [(0xE4, 0x43, 0x4B), (0xFF, 0x8F, 0xB1)])
    names = data.GetFieldData().GetAbstractArray("structure_names")
    assert [names.GetValue(number) for number in range(2)] == ["LV", "LA & <rest>"]
    assert vtk_to_numpy(data.GetFieldData().GetArray("structure_values")).tolist() == [500, 420]
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "RAS"


def test_a_vtm_lists_the_structures_own_files(tmp_path):
    vtk = pytest.importorskip("vtk", reason="VTK is not installed")
    for name, mesh in zip(("LV", "LA"), two_balls(AFFINES["oblique"]), strict=True):
        write_mesh(tmp_path / f"a_{name}_mesh.vtp", *mesh)
    combined.write_multiblock(tmp_path / "a.vtm", ["a_LV_mesh.vtp", "a_LA_mesh.vtp"], ["LV", "LA"])
    reader = vtk.vtkXMLMultiBlockDataReader()
    reader.SetFileName(str(tmp_path / "a.vtm"))
    reader.Update()
    blocks = reader.GetOutput()
    assert [blocks.GetMetaData(number).Get(vtk.vtkCompositeDataSet.NAME()) for number in range(2)] == ["LV", "LA"]
    assert blocks.GetBlock(1).GetNumberOfPoints() == len(two_balls(AFFINES["oblique"])[1][0])


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("ending", label_files.ENDINGS)
def test_simpleitk_finds_each_label_where_it_is(tmp_path, grid, ending):
    pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    labels, where = labels_of(AFFINES[grid])
    write_labelmap(tmp_path / f"a.{ending}", labels, where, STRUCTURES, COLOURS)
    found, affine = read_labels_independently(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(affine, where.affine, atol=1e-5)


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("ending", ["nrrd", "seg.nrrd"])
def test_vtk_reads_each_nrrds_voxels_spacing_and_origin(tmp_path, grid, ending):
    """Its reader leaves the directions to others, and takes positions as they stand there, in LPS."""
    vtk = pytest.importorskip("vtk", reason="VTK is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    labels, where = labels_of(AFFINES[grid])
    write_labelmap(tmp_path / f"a.{ending}", labels, where, STRUCTURES, COLOURS)
    reader = vtk.vtkNrrdReader()
    assert reader.CanReadFile(str(tmp_path / f"a.{ending}"))
    reader.SetFileName(str(tmp_path / f"a.{ending}"))
    reader.Update()
    image = reader.GetOutput()
    assert image.GetDimensions() == labels.shape
    voxels = vtk_to_numpy(image.GetPointData().GetScalars())
    np.testing.assert_array_equal(voxels.reshape(labels.shape, order="F"), labels)
    np.testing.assert_allclose(image.GetSpacing(), where.spacing_mm, atol=1e-9)
    np.testing.assert_allclose(image.GetOrigin(), TO_LPS * where.affine[:3, 3], atol=1e-9)


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("form", ["QForm", "SForm"])
def test_vtk_finds_each_nifti_label_where_it_is(tmp_path, grid, form):
    vtk = pytest.importorskip("vtk", reason="VTK is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    labels, where = labels_of(AFFINES[grid])
    write_labelmap(tmp_path / "a.nii.gz", labels, where, STRUCTURES, COLOURS)
    reader = vtk.vtkNIFTIImageReader()
    reader.SetFileName(str(tmp_path / "a.nii.gz"))
    reader.Update()
    voxels = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(labels.shape, order="F")
    matrix = getattr(reader, f"Get{form}Matrix")()
    affine = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    spacing = reader.GetOutput().GetSpacing()  # VTK's matrices take mm, and its slices may run the other way
    for value in (500, 420):
        found = transform(affine, np.argwhere(voxels == value) * spacing)
        assert farthest_mm(found, transform(where.affine, np.argwhere(labels == value).astype(float))) < 1e-3


def test_a_slicer_segmentation_has_names_colours_and_extents(tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    labels, grid = labels_of(AFFINES["oblique"])
    labels[labels == 420] = 0
    write_labelmap(tmp_path / "a.seg.nrrd", labels, grid, STRUCTURES, COLOURS)
    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    first = [f"{side.min()} {side.max()}" for side in np.nonzero(labels)]
    assert tags["Segment0_Extent"] == " ".join(first)
    assert tags["Segment1_Extent"] == "0 -1 0 -1 0 -1"  # none of it
    assert [tags[f"Segment{number}_Name"] for number in range(2)] == ["LV", "LA"]
    assert [tags[f"Segment{number}_LabelValue"] for number in range(2)] == ["500", "420"]
    colour = np.array(tags["Segment0_Color"].split(), float) * 255
    np.testing.assert_allclose(colour, (0xE4, 0x43, 0x4B), atol=0.01)
    assert "~SCT^123037004^Anatomical Structure~SCT^87878005^Left ventricle of heart~" in tags["Segment0_Tags"]
    assert tags["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert tags["Segmentation_SourceRepresentation"] == "Binary labelmap"
    assert tags["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"


@pytest.mark.parametrize("grid", ["oblique", "anisotropic"])  # slices of a series are right-handed
def test_a_dicom_seg_lies_on_its_images_with_dice_1(tmp_path, grid):
    for module in ("highdicom", "SimpleITK"):
        pytest.importorskip(module, reason="the extras are not installed")
    labels, where = labels_of(AFFINES[grid])
    sources = write_series(tmp_path / "in", phantom(SIDE), AFFINES[grid], SliceThickness=9)
    dicom_seg.write_dicom_seg(tmp_path / "a.dcm", labels, where, sources, STRUCTURES, COLOURS)
    numbers, affine, names = read_seg_independently(tmp_path / "a.dcm")
    assert names == ["LV", "LA"]
    found = np.array([0, 500, 420])[numbers]
    apart_mm, least_dice = placed(found, affine, SimpleNamespace(labelmap=labels, grid=where, structures=STRUCTURES))
    assert apart_mm < 1e-3
    assert least_dice == 1
    import pydicom

    written, image = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(sources[0])
    assert written.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert written.StudyInstanceUID == image.StudyInstanceUID
    referenced = {
        each.ReferencedSOPInstanceUID for each in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == {pydicom.dcmread(path).SOPInstanceUID for path in sources}
    assert [each.SegmentedPropertyTypeCodeSequence[0].CodeValue for each in written.SegmentSequence] == [
        "87878005",
        "82471001",
    ]


def test_a_dicom_seg_on_images_without_uids_or_of_nothing_is_one_sentence(tmp_path):
    pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
    labels, grid = labels_of(AFFINES["oblique"])
    sources = write_series(tmp_path / "in", phantom(SIDE), AFFINES["oblique"])
    with pytest.raises(InputError, match="wanted a structure in the label map for a DICOM SEG, found none"):
        dicom_seg.write_dicom_seg(tmp_path / "a.dcm", labels * 0, grid, sources, STRUCTURES, COLOURS)
    sources = write_series(tmp_path / "bare", phantom(SIDE), AFFINES["oblique"], FrameOfReferenceUID=None)
    with pytest.raises(InputError, match="wanted FrameOfReferenceUID in the source image of a DICOM SEG, found none"):
        dicom_seg.write_dicom_seg(tmp_path / "a.dcm", labels, grid, sources, STRUCTURES, COLOURS)
    assert not (tmp_path / "a.dcm").exists()


@pytest.mark.parametrize("times", [0, 1, 2])
def test_subdivision_keeps_a_mesh_closed_with_four_faces_for_one(times):
    vertices, faces = meshes.sphere(radius=20, subdivisions=2)
    finer = subdivide.subdivide(vertices, faces, times)
    assert len(finer[1]) == len(faces) * 4**times
    assert is_closed(finer[1])
    assert mesh_volume_ml(*finer) == pytest.approx(mesh_volume_ml(vertices, faces), rel=0.05)
    assert np.linalg.norm(finer[0], axis=1).max() <= 20 + 1e-9  # a sphere shrinks


def test_the_surface_of_a_box_is_that_of_its_sides():
    assert mesh_area_mm2(*meshes.box((1, 2, 3), (2, 4, 6))) == pytest.approx(2 * (1 * 2 + 2 * 3 + 1 * 3))


def test_the_scripts_choices_are_what_the_package_writes():
    assert [f".{name}" for name in implicitmeshnet_eval.COMBINED_FORMATS] == list(combined.COMBINED)
    assert label_files.ENDINGS == implicitmeshnet_eval.LABELMAP_FORMATS
    assert implicitmeshnet_eval.FINEST_SUBDIVISION == subdivide.FINEST
    assert (implicitmeshnet_eval.GAP_MM, implicitmeshnet_eval.WALL_MM) == (separation.GAP_MM, walls.WALL_MM)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An untrained network's config, a labelled NIfTI and a DICOM series."""
    folder = tmp_path_factory.mktemp("outputs")
    data = phantom(SIDE)
    labels = (data > 150) * np.int16(500) - (data > 550) * np.int16(80)
    for kind, values in (("image", data), ("label", labels)):
        path = write_input(folder, "nii.gz", values, AFFINES["oblique"])
        (folder / "in").mkdir(exist_ok=True)
        path.rename(folder / f"in/a_{kind}.nii.gz")
    return SimpleNamespace(folder=folder, config=untrained(folder), data=data)


def evaluate(project, out, *options, source=None):
    source = source or project.folder / "in"
    arguments = [f"--implicitmeshnet_config={project.config}", f"--input={source}", f"--output={out}", "--device=cpu"]
    call(implicitmeshnet_eval, *arguments, *options)


def test_statistics_are_of_every_case_and_beside_them_the_metrics_where_a_label_is(project, tmp_path):
    both = tmp_path / "in"
    both.mkdir()
    for name, new in (("a_image", "a_image"), ("a_label", "a_label"), ("a_image", "b_image")):
        (both / f"{new}.nii.gz").write_bytes((project.folder / f"in/{name}.nii.gz").read_bytes())
    evaluate(project, tmp_path / "out", source=both)
    rows = list(csv.DictReader((tmp_path / "out/statistics.csv").open()))
    assert [(row["case"], row["structure"]) for row in rows] == [("a", "LV"), ("a", "LA"), ("b", "LV"), ("b", "LA")]
    assert rows[0]["dice"]
    assert not rows[2]["dice"]
    vertices, faces = read_mesh(tmp_path / "out/b_LV_mesh.ply")
    assert float(rows[2]["mesh_volume_ml"]) == pytest.approx(mesh_volume_ml(vertices, faces), rel=1e-4)
    assert float(rows[2]["surface_mm2"]) == pytest.approx(mesh_area_mm2(vertices, faces), rel=1e-4)
    tree = json.loads((tmp_path / "out/statistics.json").read_text())
    assert [case["case"] for case in tree["cases"]] == ["a", "b"]
    assert tree["failed"] == {}
    assert tree["cases"][1]["structures"]["LV"]["surface_mm2"] == pytest.approx(float(rows[2]["surface_mm2"]), rel=1e-4)
    metrics = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert set(metrics[0]) == set(rows[0]) - {"surface_mm2", *REPAIRED, *QUALITY}
    assert [row["faces_crossing_others"] for row in rows] == ["0"] * 4
    assert float(rows[0]["move_p95_mm"]) >= float(rows[0]["move_mean_mm"]) >= 0
    for key, value in triangle_quality(vertices, faces).items():
        assert float(rows[2][key]) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("ending", ["ply", "stl", "obj"])
def test_meshes_that_come_as_close_as_float32_allows_cross_nothing_in_their_files_either(tmp_path, ending):
    sphere, faces = (tensor.double().numpy() for tensor in icosphere(2))
    faces = faces.astype(int)
    centres = np.array([[[300, -200, 1000 / 7]], [[319.8, -199.9, 1000 / 7]]])
    crossing = 10 * sphere + centres
    parted = separation.separate(crossing, faces, sphere, [(), ()], gap_mm=0.001)
    vertices = np.zeros((0, 3))
    numbered = np.zeros((0, 3), dtype=int)
    for number, mesh in enumerate(parted):
        write_mesh(tmp_path / f"{number}.{ending}", mesh, faces)
        read, corners = read_mesh(tmp_path / f"{number}.{ending}")
        numbered = np.vstack([numbered, corners + len(vertices)])
        vertices = np.vstack([vertices, read])
    assert not crossing_faces(vertices, numbered).any()
    assert crossing_faces(crossing.reshape(-1, 3), np.vstack([faces, faces + len(sphere)])).any()


def test_chosen_structures_alone_are_written_and_measured(project, tmp_path):
    evaluate(project, tmp_path / "out")
    everything = read_labels_independently(tmp_path / "out/a_mesh_labelmap.nii.gz")[0]
    evaluate(project, tmp_path / "out", "--structures", "LA")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "mesh" in path.name) == [
        "a_mesh.ply",
        "a_mesh_labelmap.nii.gz",
    ]
    alone = read_labels_independently(tmp_path / "out/a_mesh_labelmap.nii.gz")[0]
    np.testing.assert_array_equal(alone, np.where(everything == 420, 420, 0))
    rows = list(csv.DictReader((tmp_path / "out/statistics.csv").open()))
    assert [row["structure"] for row in rows] == ["LA"]
    predictor = Predictor.from_config(project.config, device="cpu", structures=["LA"])
    surfaces = predictor(project.folder / "in/a_image.nii.gz")
    assert surfaces.names == ("LA",)
    assert set(surfaces.agreement) == {"LA"}
    with pytest.raises(InputError, match="structures: wanted some of LV, LA, found 'RV'"):
        evaluate(project, tmp_path / "out", "--structures", "LA", "RV")


def test_labels_of_other_values_are_measured_and_written(project, tmp_path):
    evaluate(project, tmp_path / "usual")
    source = tmp_path / "in"
    source.mkdir()
    (source / "a_image.nii.gz").write_bytes((project.folder / "in/a_image.nii.gz").read_bytes())
    labels = nib.load(project.folder / "in/a_label.nii.gz")
    values = np.asarray(labels.dataobj)
    others = np.where(values == 500, 3, np.where(values == 420, 7, 0)).astype(np.int16)
    nib.save(nib.Nifti1Image(others, labels.affine), source / "a_label.nii.gz")
    evaluate(project, tmp_path / "out", "--label_values", "LV=3", "LA=2,7", source=source)
    measured = []
    for folder in ("usual", "out"):
        rows = csv.DictReader((tmp_path / folder / "metrics.csv").open())
        measured.append([(row["structure"], row["dice"], row["assd_mm"], row["hd95_mm"]) for row in rows])
    assert measured[0] == measured[1]
    assert float(measured[0][0][1]) > 0
    written = read_labels_independently(tmp_path / "out/a_mesh_labelmap.nii.gz")[0]
    wanted = read_labels_independently(tmp_path / "usual/a_mesh_labelmap.nii.gz")[0]
    np.testing.assert_array_equal(written, np.where(wanted == 500, 3, np.where(wanted == 420, 2, 0)))


def test_what_a_structure_encloses_is_kept_among_the_chosen():
    heart = Structures(("LV", "RV", "Myo"), ((1,), (2,), (3, 4)), ((), (), (0, 1)), (9,))
    assert heart.chosen(["Myo", "RV"]) == Structures(("RV", "Myo"), ((2,), (3, 4)), ((), (0,)), (9,))


def test_a_dicom_series_gives_everything_asked_for_and_a_second_run_clears_it(project, tmp_path):
    for module in ("highdicom", "SimpleITK"):
        pytest.importorskip(module, reason="the extras are not installed")
    write_series(tmp_path / "in/p", project.data, AFFINES["oblique"])
    out = tmp_path / "out"
    options = ["--combined=vtp", "--labelmap=seg.nrrd", "--dicom_seg", "--subdivide=1", "--mesh_format=stl"]
    evaluate(project, out, *options, source=tmp_path / "in")
    case = "p_4_two_blobs"
    wanted = {f"{case}_{ending}" for ending in ("mesh_labelmap.seg.nrrd", "unet_segmentation.seg.nrrd", "preview.png")}
    wanted |= {f"{case}_{ending}" for ending in ("LV_mesh.stl", "LA_mesh.stl", "combined.vtp", "seg.dcm")}
    tables = {".records", "metrics.csv", "statistics.csv", "statistics.json", "report.html"}
    assert {path.name for path in out.iterdir()} == wanted | tables
    labels, affine = read_labels_independently(out / f"{case}_mesh_labelmap.seg.nrrd")
    numbers, of_seg, names = read_seg_independently(out / f"{case}_seg.dcm")
    found = np.array([0, *({"LV": 500, "LA": 420}[name] for name in names)])[numbers]
    reference = SimpleNamespace(labelmap=labels, grid=Grid(labels.shape, affine), structures=STRUCTURES)
    assert placed(found, of_seg, reference)[1] == 1
    _, faces = read_mesh(out / f"{case}_LV_mesh.stl")
    assert len(faces) == 80 * 4
    evaluate(project, out, source=tmp_path / "in")
    wanted = {f"{case}_{ending}" for ending in ("mesh_labelmap.nii.gz", "unet_segmentation.nii.gz", "preview.png")}
    wanted |= {f"{case}_{ending}" for ending in ("LV_mesh.ply", "LA_mesh.ply")}
    assert {path.name for path in out.iterdir()} == wanted | tables


def test_a_series_that_allows_no_dicom_seg_gives_the_rest_and_a_warning(project, tmp_path, capsys):
    for module in ("highdicom", "SimpleITK"):
        pytest.importorskip(module, reason="the extras are not installed")
    write_series(tmp_path / "in", project.data, AFFINES["oblique"], FrameOfReferenceUID=None)
    evaluate(project, tmp_path / "out", "--dicom_seg", source=tmp_path / "in")
    assert "wanted FrameOfReferenceUID" in capsys.readouterr().err
    tree = json.loads((tmp_path / "out/statistics.json").read_text())
    assert "wanted FrameOfReferenceUID" in tree["cases"][0]["warnings"]
    assert not list((tmp_path / "out").glob("*.dcm"))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--combined=vtm", "--combined: wanted --mesh_format=vtp beside vtm, found ply"),
        ("--dicom_seg", "--dicom_seg: wanted "),
        ("--structures=RV", "structures: wanted some of LV, LA, found 'RV'"),
        ("--label_values=RV=3", "label_values: wanted structures among LV, LA, found 'RV'"),
        ("--label_values=LV=420", "data.structures: wanted distinct label values"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(project, tmp_path, capsys, option, sentence):
    arguments = [f"--implicitmeshnet_config={project.config}", f"--input={project.folder / 'in'}"]
    assert run("implicitmeshnet_eval.py", *arguments, f"--output={tmp_path / 'out'}", option) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_colours_are_those_of_the_previews(project, tmp_path):
    evaluate(project, tmp_path / "out", "--combined=ply")
    mesh = trimesh.load_mesh(tmp_path / "out/a_combined.ply", process=False)
    wanted = bytes.fromhex(figures.colours(["LV", "LA"])["LV"][1:])
    assert bytes(mesh.visual.vertex_colors[0, :3].tolist()) == wanted


def test_shared_walls_are_written_on_request_and_none_stay_of_an_earlier_run(project, tmp_path):
    evaluate(project, tmp_path / "out", "--conforming", "--no-report")
    text = (tmp_path / "out/a_conforming.vtp").read_text()
    for name in ("region_inside", "region_outside", "structure_names", "SPACE"):
        assert f'Name="{name}"' in text
    evaluate(project, tmp_path / "out", "--no-report")
    assert not (tmp_path / "out/a_conforming.vtp").exists()


def test_a_figure_is_written_on_request_and_none_stays_of_an_earlier_run(project, tmp_path):
    evaluate(project, tmp_path / "out", "--figure=light")
    rows = list(csv.DictReader((tmp_path / "out/statistics.csv").open()))
    text = (tmp_path / "out/a_figure.svg").read_text()
    for row in rows:
        assert f">{volume_text(float(row['volume_ml']))}<" in text
    evaluate(project, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*figure*"))


def test_the_report_has_every_case_and_what_made_it_and_none_stays_of_an_earlier_run(project, tmp_path):
    evaluate(project, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    tree = json.loads(page.split('id="report">', 1)[1].split("</script>", 1)[0])
    rows = list(csv.DictReader((tmp_path / "out/statistics.csv").open()))
    for row in rows:
        figures = tree["cases"][0]["structures"][row["structure"]]
        assert figures["volume_ml"] == pytest.approx(float(row["volume_ml"]), rel=1e-4)
    assert tree["cases"][0]["view"]["labelled"]
    assert json.loads(tree["settings"][str(project.config)])["data"]["structures"]
    assert {"command", "device", "torch", "Python"} <= set(tree["settings"])
    evaluate(project, tmp_path / "out", "--no-report")
    assert not (tmp_path / "out/report.html").exists()
