"""Volumes of every format are read as the NIfTI is; DICOM series are told apart, and bad ones refused by name."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from formats import INPUTS, TO_LPS, grids, phantom, untrained, write_input, write_series
from scripts import run
from volumes import BOXES_AFFINE

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data import dicom, itk
from implicitmeshnet.data.dataset import read_case
from implicitmeshnet.data.dicom import find_series
from implicitmeshnet.data.formats import read_image, read_labels
from implicitmeshnet.data.inputs import input_cases
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.volume import in_order_of
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError

SimpleITK = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

SIDE = 20
AFFINES = grids(SIDE)
REAL = Path(__file__).resolve().parents[2] / "shared/data/ct_dicom"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.from_config(untrained(tmp_path_factory.mktemp("network")), device="cpu")


def world_of_all_voxels(volume) -> np.ndarray:  # (X, Y, Z, 3)
    indices = np.moveaxis(np.indices(volume.data.shape), 0, -1)
    return transform(volume.grid.affine, indices.astype(float))


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("kind", INPUTS[1:])
def test_each_format_has_every_voxel_where_the_nifti_has_it(tmp_path, grid, kind, predictor):
    nifti = read_image(write_input(tmp_path, "nii.gz", phantom(SIDE), AFFINES[grid]))
    path = write_input(tmp_path, kind, phantom(SIDE), AFFINES[grid])
    found = in_order_of(read_image(path), nifti.grid)
    np.testing.assert_array_equal(found.data, nifti.data)
    np.testing.assert_allclose(world_of_all_voxels(found), world_of_all_voxels(nifti), atol=1e-4)
    meshes = predictor(path).vertices
    assert np.abs(meshes - predictor(nifti).vertices).max() < 0.01


@pytest.mark.parametrize("grid", AFFINES)
def test_a_series_lies_where_simpleitk_reports_it(tmp_path, grid):
    write_series(tmp_path, phantom(SIDE), AFFINES[grid])
    volume = read_image(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, volume.data)
    for voxel in np.ndindex(2, 2, 2):
        index = [int(corner * (size - 1)) for corner, size in zip(voxel, volume.data.shape, strict=True)]
        wanted = np.multiply(TO_LPS, image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(transform(volume.grid.affine, np.array(index, float)), wanted, atol=1e-4)


def test_labels_of_other_formats_are_whole_numbers(tmp_path):
    labels = (phantom(SIDE) > 200).astype(np.int16) * 500
    path = write_input(tmp_path, "nrrd", labels, AFFINES["oblique"])
    np.testing.assert_array_equal(read_labels(path).data, labels)
    image = SimpleITK.GetImageFromArray(np.full((3, 3, 3), 0.5, np.float32))
    SimpleITK.WriteImage(image, str(tmp_path / "half.mha"))
    with pytest.raises(InputError, match=r"half\.mha: wanted integer label values, found 0\.5"):
        read_labels(tmp_path / "half.mha")


def two_series(folder):
    write_series(folder, phantom(SIDE), AFFINES["oblique"])
    second = write_series(folder / "more", phantom(SIDE)[:, :, ::-1], AFFINES["anisotropic"], SeriesNumber=7)
    for path in second:  # into the same folder, among the first one's
        path.rename(folder / f"{path.name}_x")
    (folder / "more").rmdir()


def test_two_series_in_a_folder_are_two_cases_by_number_and_description(tmp_path):
    two_series(tmp_path / "patient")
    cases = input_cases(tmp_path / "patient")
    assert [case.name for case in cases] == ["patient_4_two_blobs", "patient_7_two_blobs"]
    for case, affine in zip(cases, (AFFINES["oblique"], AFFINES["anisotropic"]), strict=True):
        image, labels = read_case(case)
        assert labels is None
        middle = (np.array(image.data.shape) - 1) / 2
        np.testing.assert_allclose(transform(image.grid.affine, middle), transform(affine, middle), atol=1e-3)
    with pytest.raises(InputError, match=r"patient: wanted one DICOM series, found 2: .*series 4 two blobs"):
        read_image(tmp_path / "patient")


def test_files_without_series_uid_are_a_series_of_their_folder(tmp_path):
    write_series(tmp_path / "in/a", phantom(SIDE), AFFINES["oblique"], SeriesInstanceUID=None)
    write_series(tmp_path / "in/b", phantom(SIDE), AFFINES["oblique"], SeriesInstanceUID=None)
    assert [case.name for case in input_cases(tmp_path / "in")] == ["a_4_two_blobs", "b_4_two_blobs"]


def test_series_of_one_name_are_numbered(tmp_path):
    for folder in ("in/x/CT", "in/y/CT"):
        write_series(tmp_path / folder, phantom(SIDE), AFFINES["oblique"])
    assert [case.name for case in input_cases(tmp_path / "in")] == ["CT_4_two_blobs", "CT_4_two_blobs_2"]


def test_a_label_map_beside_a_series_is_no_case(tmp_path, capsys):
    write_series(tmp_path / "in", phantom(SIDE), AFFINES["oblique"])
    (tmp_path / "in/a_label.nii.gz").touch()
    assert [case.name for case in input_cases(tmp_path / "in")] == ["in_4_two_blobs"]
    assert "left out, as label maps by name: a_label.nii.gz\n" in capsys.readouterr().err


def test_letters_that_no_file_name_should_have_are_replaced_in_a_series_name(tmp_path):
    write_series(tmp_path / "a", phantom(SIDE), AFFINES["oblique"], SeriesDescription="../ax <1> " + "x" * 50)
    (case,) = input_cases(tmp_path / "a")
    assert case.name == "a_4_.._ax_1_" + "x" * 50


def test_a_report_beside_the_images_is_no_case(tmp_path):
    paths = write_series(tmp_path / "a", phantom(SIDE), AFFINES["oblique"])
    report = write_series(tmp_path / "b", phantom(SIDE), AFFINES["oblique"])[0].read_bytes()
    paths[0].with_name("report").write_bytes(report.replace(b"10008.5.1.4.1.1.2\0", b"10008.5.1.4.1.1.88.11\0"[:18]))
    assert len(find_series(tmp_path / "a")) == 1


def remove_one(paths, data, affine):
    paths[5].unlink()


def keep_one(paths, data, affine):
    for path in paths[1:]:
        path.unlink()


def another(paths, data, affine, **tags):
    """A slice in place of the last one, of the same series."""
    import pydicom

    header = pydicom.dcmread(paths[-1])
    write_series(paths[0].parent / "other", data, affine, SeriesInstanceUID=header.SeriesInstanceUID, **tags)
    other = sorted((paths[0].parent / "other").iterdir())
    last = next(path for path in other if pydicom.dcmread(path).InstanceNumber == len(paths))
    last.replace(paths[-1])
    for path in other:
        path.unlink(missing_ok=True)


def smaller(paths, data, affine):
    another(paths, data[:-1], affine)


def in_colour(paths, data, affine):
    colour = np.zeros((*data.shape[:2][::-1], 3), np.uint8)
    tags = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "PixelData": colour.tobytes(),
    }
    another(paths, data, affine, BitsAllocated=8, BitsStored=8, HighBit=7, **tags)


def with_frames(paths, data, affine):
    another(paths, data, affine, NumberOfFrames=3, PixelData=bytes(2 * 3 * data[:, :, 0].size))


def without_place(paths, data, affine):
    another(paths, data, affine, ImagePositionPatient=None)


def turned(paths, data, affine):
    another(paths, data, affine, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])


def twice(paths, data, affine):
    (paths[3].with_name("again")).write_bytes(paths[3].read_bytes())


def tilted(paths, data, affine):
    import pydicom

    for number, path in enumerate(paths):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [0, 0.5 * number, 2.0 * number]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.save_as(path)


def cut_short(paths, data, affine):
    paths[-1].write_bytes(paths[-1].read_bytes()[:700])


BAD = [
    (remove_one, r"wanted slices at equal distances of 2\.5 mm, found 5 mm between .*, as if 1 were missing"),
    (keep_one, "wanted a series of at least two slices, found one"),
    (smaller, r"wanted slices of one size, found .* x .* and .* x .* pixels"),
    (in_colour, "wanted grey values, found a colour image"),
    (with_frames, r"found 3 frames in .* \(enhanced multi-frame DICOM"),
    (without_place, "wanted position, orientation and pixel spacing of each slice, found one without"),
    (turned, "wanted slices of one orientation and pixel spacing"),
    (twice, "wanted one slice at each place, found .* and .* at"),
    (tilted, "found a gantry tilt of 14 degrees"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_a_series_that_is_no_volume_is_refused_by_name(tmp_path, spoil, sentence):
    data, affine = phantom(SIDE), AFFINES["oblique"]
    spoil(write_series(tmp_path / "bad", data, affine), data, affine)
    (case,) = input_cases(tmp_path / "bad")
    with pytest.raises(InputError, match=rf"bad \(series 4 two blobs\): .*{sentence}"):
        read_case(case)


def write_enhanced(folder, frames, of_class):
    """An enhanced image as scanners write it: the place of each frame in sequences, none in the header itself."""
    import pydicom
    from pydicom.dataset import Dataset

    def group(**values):
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        return [item]

    first, *others = write_series(folder, phantom(SIDE), AFFINES["oblique"])
    slices = [pydicom.dcmread(path) for path in (first, *others)][:frames]
    for path in others:
        path.unlink()
    image = slices[0]
    measures = group(PixelSpacing=image.PixelSpacing, SliceThickness=2.5)
    orientation = group(ImageOrientationPatient=image.ImageOrientationPatient)
    shared = {"PixelMeasuresSequence": measures, "PlaneOrientationSequence": orientation}
    places = []
    for each in slices:
        place = group(ImagePositionPatient=each.ImagePositionPatient)
        places += group(PlanePositionSequence=place)
    image.SharedFunctionalGroupsSequence = group(**shared)
    image.PerFrameFunctionalGroupsSequence = places
    image.PixelData = b"".join(each.PixelData for each in slices)
    image.NumberOfFrames = frames
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = of_class
    for key in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(image, key)
    image.save_as(first, enforce_file_format=True)


@pytest.mark.parametrize(("number", "name"), [("2.1", "Enhanced CT"), ("4.1", "Enhanced MR"), ("130", "Enhanced PET")])
@pytest.mark.parametrize(("frames", "found"), [(3, "3 frames"), (1, "one frame")])
def test_an_enhanced_image_is_refused_by_its_class(tmp_path, number, name, frames, found):
    write_enhanced(tmp_path / "bad", frames, f"1.2.840.10008.5.1.4.1.1.{number}")
    (case,) = input_cases(tmp_path / "bad")
    with pytest.raises(InputError, match=rf"found {found} in .* \({name} Image Storage, enhanced multi-frame"):
        read_case(case)


def test_a_damaged_slice_is_named_beside_its_series(tmp_path):
    paths = write_series(tmp_path / "bad", phantom(SIDE), AFFINES["oblique"])
    cut_short(paths, None, None)
    whole, damaged = sorted(input_cases(tmp_path / "bad"), key=lambda case: case.name == paths[-1].name)
    assert whole.name == "bad_4_two_blobs"
    with pytest.raises(InputError, match=rf"{paths[-1].name}: wanted an intact image"):
        read_case(damaged)


def test_slices_a_little_uneven_are_taken_at_their_mean_distance(tmp_path):
    """Headers round positions: to a hundredth of a millimetre that is no missing slice."""
    import pydicom

    paths = write_series(tmp_path, phantom(SIDE), np.diag([1, 1, 0.625, 1.0]))
    for path in paths:
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [f"{float(value):.2f}" for value in header.ImagePositionPatient]
        header.save_as(path)
    assert read_image(tmp_path).grid.spacing_mm[2] == pytest.approx(0.625, abs=1e-3)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_damaged_zip_a_bomb_and_one_without_images_are_one_sentence(tmp_path, monkeypatch):
    content = write_series(tmp_path / "a", phantom(SIDE), AFFINES["oblique"])[0].read_bytes()
    damaged = zipped(tmp_path / "damaged.zip", one=content)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    empty = zipped(tmp_path / "empty.zip", notes=b"none")
    large = zipped(tmp_path / "large.zip", one=bytes(2**20))
    many = zipped(tmp_path / "many.zip", **{str(number): b"" for number in range(4)})
    monkeypatch.setattr(dicom, "MAX_UNPACKED_BYTES", 2**19)
    monkeypatch.setattr(dicom, "MAX_MEMBERS", 3)
    for path, sentence in (
        (damaged, "wanted an intact zip without password, found one that cannot be unpacked"),
        (empty, "wanted a DICOM series, found none"),
        (large, "wanted a zip of at most 3 files and 524288 bytes unpacked, found 1 files and 1048576 bytes"),
        (many, "found 4 files"),
    ):
        (case,) = input_cases(path)
        with pytest.raises(InputError, match=rf"{path.name}: .*{sentence}"):
            read_case(case)


def test_a_zip_writes_nothing_where_its_names_say(tmp_path):
    paths = write_series(tmp_path / "in/a", phantom(SIDE), AFFINES["oblique"])
    archive = tmp_path / "in/evil.zip"
    zipped(archive, **{f"../../evil{number}": path.read_bytes() for number, path in enumerate(paths)})
    before = sorted(tmp_path.rglob("*"))
    assert read_image(archive).data.shape == phantom(SIDE).shape
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("evil*"))


def test_without_simpleitk_one_sentence_names_it_and_nifti_goes_on(tmp_path, monkeypatch):
    write_input(tmp_path, "nii.gz", phantom(SIDE), AFFINES["oblique"])
    write_input(tmp_path, "nrrd", phantom(SIDE), AFFINES["oblique"]).rename(tmp_path / "other.nrrd")
    write_series(tmp_path / "series", phantom(SIDE), AFFINES["oblique"])
    monkeypatch.setattr(itk, "available", lambda: False)
    failed = []
    for case in input_cases(tmp_path):
        try:
            read_case(case)
        except InputError as error:
            failed.append(str(error))
    assert len(failed) == 2
    assert all("pip install 'implicitmeshnet[formats]'" in sentence for sentence in failed)


def test_a_damaged_nrrd_and_one_of_colours_are_one_sentence(tmp_path):
    path = write_input(tmp_path, "nrrd", phantom(SIDE), AFFINES["oblique"])
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"image\.nrrd: wanted an intact image"):
        read_image(path)
    colour = SimpleITK.GetImageFromArray(np.zeros((4, 4, 4, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(tmp_path / "colour.mha"))
    with pytest.raises(InputError, match=r"colour\.mha: wanted one number per voxel, found 3"):
        read_image(tmp_path / "colour.mha")
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkInt16), str(tmp_path / "flat.nrrd"))
    with pytest.raises(InputError, match=r"flat\.nrrd: wanted a 3-D volume"):
        read_image(tmp_path / "flat.nrrd")
    (tmp_path / "claims.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 9000\nendian: little\nencoding: raw\n\n"
    )
    with pytest.raises(InputError, match=r"claims\.nrrd: wanted an intact image, found a header that claims"):
        read_image(tmp_path / "claims.nrrd")


def test_a_nrrd_without_a_space_is_read_with_a_warning(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 3 3\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(54))
    volume = read_image(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.grid.affine, np.diag([-1, -1, 1, 1]))
    assert "names no space" in volume.warnings[0]


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_a_file_on_its_own_is_a_case_with_the_label_beside_it(tmp_path, ending):
    for name in ("a_image", "a_label", "b_label"):
        write_input(tmp_path, ending, phantom(SIDE), BOXES_AFFINE).rename(tmp_path / f"{name}.{ending}")
    (case,) = input_cases(tmp_path / f"a_image.{ending}")
    assert (case.name, case.label) == ("a", tmp_path / f"a_label.{ending}")
    assert [each.name for each in input_cases(tmp_path)] == ["a"]


def test_slicers_segmentations_are_no_images(tmp_path):
    write_volume(tmp_path / "a.nii.gz", phantom(SIDE), BOXES_AFFINE)
    (tmp_path / "a.seg.nrrd").touch()
    assert [case.name for case in input_cases(tmp_path)] == ["a"]


def test_of_a_mix_the_sound_cases_are_written_and_the_others_named(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_input(folder, "nii.gz", phantom(SIDE), AFFINES["oblique"]).rename(folder / "a.nii.gz")
    write_input(folder, "mha", phantom(SIDE), AFFINES["oblique"]).rename(folder / "b.mha")
    write_series(folder / "c", phantom(SIDE), AFFINES["oblique"])
    remove_one(write_series(folder / "d", phantom(SIDE), AFFINES["oblique"]), None, None)
    (folder / "e.zip").write_bytes(b"PK nothing")
    config = untrained(tmp_path)
    options = [
        f"--implicitmeshnet_config={config}",
        f"--input={folder}",
        f"--output={tmp_path / 'out'}",
        "--device=cpu",
    ]
    assert run("implicitmeshnet_eval.py", *options) == 2
    said = capsys.readouterr()
    assert "3 of 5 cases written" in said.out
    assert "2 of 5 cases failed" in said.err
    assert "e.zip: wanted an intact zip" in said.err
    assert "as if 1 were missing" in said.err
    names = {path.name for path in (tmp_path / "out").glob("*_LV_mesh.ply")}
    assert names == {"a_LV_mesh.ply", "b_LV_mesh.ply", "c_4_two_blobs_LV_mesh.ply"}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CT series is not here")
def test_a_scanners_own_series_without_uid_is_as_simpleitk_reads_it(tmp_path, predictor):
    (case,) = input_cases(REAL)
    image, _ = read_case(case)
    assert case.name == "ct_dicom_CT_Body_3.0"
    assert image.data.shape == (512, 512, 20)
    np.testing.assert_allclose(image.grid.affine[:3, 3], [249.51171875, 437.51171875, -804.5])
    np.testing.assert_allclose(image.grid.spacing_mm, [0.9765625, 0.9765625, 2])
    assert image.data.min() == -1024  # Hounsfield units
    names = sorted(REAL.iterdir(), key=lambda path: SimpleITK.ReadImage(str(path)).GetOrigin()[2])
    SimpleITK.WriteImage(SimpleITK.ReadImage([str(path) for path in names]), str(tmp_path / "a.nii.gz"))
    meshes = predictor(REAL).vertices
    assert np.abs(meshes - predictor(tmp_path / "a.nii.gz").vertices).max() < 0.01
