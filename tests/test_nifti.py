"""NIfTI in and out: every kind of header, with SimpleITK as the judge of where its voxels lie."""

import contextlib
import gzip
import itertools
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from implicitmeshnet.data.nifti import NOTICEABLE_VOXELS, read_grid, read_image, read_labels, write_volume
from implicitmeshnet.data.volume import voxels_apart
from implicitmeshnet.script import InputError

ACDC = Path(__file__).resolve().parents[2] / "shared" / "data" / "ACDC"
few = settings(max_examples=10, derandomize=True, deadline=None)
SHAPE = (4, 5, 6)
TURN = (0.1, 0.2, 0.3)  # b, c and d of a quaternion
RAS = np.diag([-1.0, -1.0, 1.0])  # ITK's world, LPS, to ours


def write_header(path, data=None, **fields):
    """A NIfTI file written byte by byte, with a scanner's header but for `fields`."""
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if data is None else data
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    scanner = {
        "pixdim": (1, 1.5, 2, 3, 1, 1, 1, 1),
        "qform_code": 1,
        "sform_code": 0,
        "xyzt_units": 2,
        "quatern_b": TURN[0],
        "quatern_c": TURN[1],
        "quatern_d": TURN[2],
        "qoffset_x": 10,
        "qoffset_y": 20,
        "qoffset_z": 30,
        "scl_slope": 1,
        "scl_inter": 0,
        "vox_offset": 352,
        "magic": b"n+1",
    }
    for name, value in (scanner | fields).items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    return path


def srow(matrix, position=(10, 20, 30)):
    """Header fields of an sform, (3, 3) and (3,)."""
    return {f"srow_{axis}": (*row, offset) for axis, row, offset in zip("xyz", matrix, position, strict=True)}


def itk_affine(path):
    """Voxel -> RAS mm as SimpleITK reports it."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = RAS @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = RAS @ image.GetOrigin()
    return affine


def assert_lies_as_in_itk(path):
    volume = read_image(path)
    assert voxels_apart((256, 256, 256), itk_affine(path), volume.grid.affine) < NOTICEABLE_VOXELS
    np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    return volume


def assert_a_label_map_lies_on(path):
    """What is written with a file's header lies on it in ITK's eyes, and has its forms, codes and units."""
    grid = read_grid(path)
    copy = path.with_name("labelmap.nii.gz")
    write_volume(copy, np.ones(grid.shape, np.int16), grid.affine, grid.header)
    assert voxels_apart((256, 256, 256), itk_affine(path), itk_affine(copy)) < 1e-6
    mine = nib.Nifti1Header(gzip.decompress(copy.read_bytes())[:348], check=False)
    theirs = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    for name in ("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_z"):
        np.testing.assert_array_equal(mine[name], theirs[name])
    np.testing.assert_array_equal(mine["pixdim"][:4], theirs["pixdim"][:4])
    assert (read_grid(copy).affine == grid.affine).all()


turns = st.tuples(*[st.floats(-180, 180)] * 3)
positions = st.tuples(*[st.floats(-500, 500)] * 3)
sizes = st.tuples(*[st.floats(0.3, 6)] * 3)


@few
@pytest.mark.parametrize("codes", [*itertools.product(range(5), range(5))])
@given(turns, turns, positions, positions, sizes, st.sampled_from([-1, 0, 1]))
def test_itk_and_we_take_the_same_form(tmp_path_factory, codes, one, other, position, offset, pixdim, qfac):
    """All pairs of qform and sform codes, with forms that have nothing in common."""
    quaternion = Rotation.from_euler("xyz", one, degrees=True).as_quat(canonical=True)
    matrix = Rotation.from_euler("xyz", other, degrees=True).as_matrix()
    path = write_header(
        tmp_path_factory.mktemp("forms") / "a.nii",
        qform_code=codes[0],
        sform_code=codes[1],
        pixdim=(qfac, *pixdim, 1, 1, 1, 1),
        **srow(matrix * pixdim, position),
        **{f"quatern_{letter}": value for letter, value in zip("bcd", quaternion, strict=False)},
        **{f"qoffset_{letter}": value for letter, value in zip("xyz", offset, strict=True)},
    )
    turned = Rotation.from_quat(quaternion).as_matrix() * [1, 1, -1 if qfac < 0 else 1]
    apart = max(np.abs(matrix - turned).max(), np.abs(np.subtract(position, offset)).max())
    assume(apart < 1e-5 or apart > 0.1)
    mirrored = np.abs(np.abs((matrix * turned).sum(0)) - 1).max() < 1e-3 and apart > 0.1
    assume(not (mirrored and np.allclose(position, offset, atol=1e-3)))  # ITK's choice hangs on rounding there
    volume = assert_lies_as_in_itk(path)
    assert bool(volume.warnings) == (codes == (0, 0) or (0 not in codes and apart > 0.1))
    assert_a_label_map_lies_on(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "bool", "int64"])
def test_what_is_written_is_read_back(tmp_path, suffix, dtype):
    data = (np.random.default_rng(0).integers(0, 100, (3, 4, 5)) % 2).astype(dtype)
    affine = np.array([[0, -0.5, 0, 7], [0.25, 0, 0, 8], [0, 0, 1.5, 9], [0, 0, 0, 1.0]])
    path = tmp_path / f"sub.folder/volume{suffix}"
    write_volume(path, data, affine)
    for volume in (read_image(path), read_labels(path)):
        assert (volume.data == data).all()
        assert (volume.grid.affine == affine).all()
    assert read_image(path).data.dtype == np.float32
    assert read_labels(path).data.dtype == np.int32
    grid = read_grid(path)
    assert grid.shape == (3, 4, 5)
    assert (grid.affine == affine).all()
    np.testing.assert_allclose(grid.spacing_mm, [0.25, 0.5, 1.5])
    header = nib.load(path).header
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-6)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_sheared_affine_stays_exact_in_the_sform(tmp_path):
    affine = np.array([[1, 0.25, 0, 7], [0, 1, 0, 8], [0, 0, 1.5, 9], [0, 0, 0, 1.0]])
    write_volume(tmp_path / "sheared.nii", np.zeros((3, 4, 5), np.int16), affine)
    volume = read_image(tmp_path / "sheared.nii")
    np.testing.assert_allclose(volume.grid.affine, affine, rtol=1e-6)
    assert "axes are not perpendicular" in volume.warnings[0]


def test_an_existing_file_survives_a_failed_write(tmp_path):
    path = tmp_path / "volume.nii.gz"
    write_volume(path, np.ones((2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(Exception, match=r"data|dtype|shape"):
        write_volume(path, np.array(["text"]), np.eye(4))
    assert read_image(path).data.sum() == 8
    assert len(list(tmp_path.iterdir())) == 1


HEADERS = {
    "metres": {"xyzt_units": 1, "pixdim": (1, 0.0015, 0.002, 0.003, 1, 1, 1, 1), "qoffset_x": 0.04},
    "metres, sform": {
        "xyzt_units": 1,
        "pixdim": (1, 0.0015, 0.002, 0.003, 1, 1, 1, 1),
        "qform_code": 0,
        "sform_code": 1,
        **srow(np.diag([0.0015, -0.002, 0.003]), (0.1, 0.2, 0.3)),
    },
    "micrometres": {"xyzt_units": 3, "pixdim": (1, 1500, 2000, 3000, 1, 1, 1, 1)},
    "no unit": {"xyzt_units": 0},
    "a unit that is none": {"xyzt_units": 7},
    "millimetres and seconds": {"xyzt_units": 10},
    "quaternion longer than 1 by 1e-7": {"quatern_b": 0.6, "quatern_c": 0.8 + 1e-7, "quatern_d": 0},
    "quaternion longer than 1 by 1e-5": {"quatern_b": 0.6, "quatern_c": 0.8 + 1e-5, "quatern_d": 0},
    "quaternion of length 2": {"quatern_b": 2, "quatern_c": 0, "quatern_d": 0},
    "quaternion of no number": {"quatern_b": np.nan},
    "no qfac": {"pixdim": (0, 1.5, 2, 3, 1, 1, 1, 1)},
    "qfac -0.3": {"pixdim": (-0.3, 1.5, 2, 3, 1, 1, 1, 1)},
    "negative pixdim": {"pixdim": (1, -1.5, 2, 3, 1, 1, 1, 1)},
    "sform without an inverse beside a qform": {"sform_code": 1, **srow(np.diag([1.5, 0, 3]))},
    "sform of no number beside a qform": {"sform_code": 1, **srow(np.diag([1.5, np.nan, 3]))},
    "negative codes": {"qform_code": -1, "sform_code": -1, **srow(np.eye(3))},
    "unknown codes": {"qform_code": 9, "sform_code": 7, **srow(np.diag([1.5, 2, 3]), (0, 0, 0))},
    "slope of no number": {"scl_slope": np.nan, "scl_inter": 3},
    "slope 0": {"scl_slope": 0, "scl_inter": 3},
    "intercept of no number": {"scl_slope": 2, "scl_inter": np.nan},
    "slope and intercept": {"scl_slope": 0.5, "scl_inter": -7},
    "fraction of a byte": {"vox_offset": 352.7},
}
DOUBTFUL = {
    "zero pixdim": ({"pixdim": (1, 0, 2, 3, 1, 1, 1, 1)}, "pixdim holds 0 x 2 x 3, which is no voxel size"),
    "pixdim of no number": ({"pixdim": (1, np.nan, 2, 3, 1, 1, 1, 1)}, "pixdim holds nan x 2 x 3"),
    "no codes": ({"qform_code": 0}, "the header gives no world position"),
    "sform in centimetres": (
        {"qform_code": 0, "sform_code": 2, **srow(np.diag([0.15, 0.2, 0.3]))},
        "pixdim says 1.5 x 2 x 3 mm, the sform's columns 0.15 x 0.2 x 0.3 mm; took pixdim",
    ),
    "sheared sform beside a qform": (
        {"sform_code": 1, **srow([[1.5, 0.2, 0], [0, 2, 0], [0, 0, 3]])},
        "voxels apart; took the qform",
    ),
    "another position": (
        {
            "sform_code": 1,
            "quatern_b": 0,
            "quatern_c": 0,
            "quatern_d": 0,
            **srow(np.diag([1.5, 2, 3]), (10, 20, 30.06)),
        },
        "lie 0.02 voxels apart; took the sform",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_sound_header_is_read_as_itk_reads_it(tmp_path, kind):
    path = write_header(tmp_path / "a.nii", **HEADERS[kind])
    volume = assert_lies_as_in_itk(path)
    assert volume.warnings == () or kind in (
        "unknown codes",
        "sform without an inverse beside a qform",
        "negative codes",
    )
    assert_a_label_map_lies_on(path)


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_doubtful_header_is_read_as_itk_reads_it_with_a_warning(tmp_path, kind):
    fields, wanted = DOUBTFUL[kind]
    path = write_header(tmp_path / "a.nii", **fields)
    (warning,) = assert_lies_as_in_itk(path).warnings
    assert warning.startswith(f"{path}: ")
    assert wanted in warning
    assert_a_label_map_lies_on(path)


def test_units_reach_the_spacing(tmp_path):
    for kind in ("metres", "micrometres", "no unit"):
        grid = read_grid(write_header(tmp_path / "a.nii", **HEADERS[kind]))
        np.testing.assert_allclose(grid.spacing_mm, [1.5, 2, 3], rtol=1e-6)


@few
@given(turns, positions, sizes, st.floats(0.1, 10))
def test_pixdim_gives_lengths_and_the_sform_directions(tmp_path_factory, angles, position, pixdim, factor):
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    path = write_header(
        tmp_path_factory.mktemp("lengths") / "a.nii",
        qform_code=0,
        sform_code=2,
        pixdim=(1, *pixdim, 1, 1, 1, 1),
        **srow(matrix * pixdim * factor, position),
    )
    volume = assert_lies_as_in_itk(path)
    np.testing.assert_allclose(volume.grid.spacing_mm, pixdim, rtol=1e-6)
    assert bool(volume.warnings) == (abs(factor - 1) * (max(SHAPE) - 1) > NOTICEABLE_VOXELS)
    assert_a_label_map_lies_on(path)


@pytest.mark.skipif(not ACDC.is_dir(), reason="shared/data/ACDC is not beside this clone")
def test_real_hearts_have_their_true_size(tmp_path):
    paths = sorted((ACDC / "imagesTr").glob("*.nii.gz"))
    assert len(paths) == 60
    for path in paths:
        grid = read_grid(path)
        assert voxels_apart(grid.shape, itk_affine(path), grid.affine) < NOTICEABLE_VOXELS
        assert 5 <= grid.spacing_mm[2] <= 10
    (warning,) = read_image(paths[0]).warnings
    assert "pixdim says 1.5625 x 1.5625 x 10 mm, the sform's columns 1 x 1 x 1 mm" in warning


@pytest.mark.parametrize("offset", [0, 100, 348, 351, -5])
def test_voxels_begin_behind_the_header(tmp_path, offset):
    volume = read_image(write_header(tmp_path / "a.nii", vox_offset=offset))
    assert (volume.data == np.arange(120).reshape(SHAPE)).all()


@pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, 1e30])
def test_an_offset_that_is_none_is_one_sentence(tmp_path, offset):
    path = write_header(tmp_path / "a.nii", vox_offset=offset)
    with pytest.raises(InputError, match=r"a\.nii: wanted an intact NIfTI file, found a truncated or damaged one \(\w"):
        read_image(path)


@few
@given(st.lists(st.integers(0, 2000), min_size=2, max_size=9), st.sampled_from([np.int16, np.uint8, np.int32]))
def test_labels_that_nibabel_stored_with_a_slope_are_read(tmp_path_factory, values, dtype):
    """Floats saved as integers are off by up to half the slope."""
    data = np.resize(np.array([0, *values], np.float64), SHAPE)
    image = nib.Nifti1Image(data, np.eye(4))
    image.set_data_dtype(dtype)
    path = tmp_path_factory.mktemp("slope") / "a.nii.gz"
    nib.save(image, path)
    assume(nib.load(path).dataobj.slope < 1)  # else there are more values than integers
    assert (read_labels(path).data == data).all()


def test_a_probability_map_is_no_label_map(tmp_path):
    path = write_header(tmp_path / "a.nii", scl_slope=1 / 120)
    with pytest.raises(InputError, match=r"wanted integer label values, found 0\.00833"):
        read_labels(path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_claim_beyond_the_files_size_is_refused_before_memory_is_taken(tmp_path, zipped, kind):
    image = kind(np.zeros((2, 2, 2), np.int16), np.eye(4))
    content = bytearray(image.to_bytes())
    if kind is nib.Nifti1Image:
        content[40:48] = struct.pack("<4h", 3, 12, 16397, 32767)
    else:
        content[16:48] = struct.pack("<4q", 3, 2**40, 2**40, 2**40)
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(InputError, match=r"a\.nii: wanted an intact NIfTI file, .* claims \d+ bytes of voxels\)$"):
        read_image(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "fields",
    [
        {"scl_slope": 3e38, "scl_inter": 3e38},
        {"pixdim": (1, *np.array([0x7F800001] * 3, np.uint32).view(np.float32), 1, 1, 1, 1)},  # signalling NaN
        {"qform_code": 0, "sform_code": 1, **srow(np.full((3, 3), 3e38))},
    ],
)
def test_odd_numbers_make_no_warnings_of_numpy(tmp_path, fields):
    path = write_header(tmp_path / "a.nii", **fields)
    for read in (read_image, read_labels):
        with contextlib.suppress(InputError):
            read(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii: wanted a file, found a pipe or a device"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("affine", "wanted"),
    [
        (np.array([[1, 0, 0, 2e6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "first voxel within 1e\\+06 mm"),
        (np.diag([1, 1, 1e4, 1.0]), "voxel spacing"),
        (np.diag([1, 1, 0, 1.0]), "invertible"),
        (np.array([[1, 0, 0, 1e39], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "invertible"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(tmp_path, affine, wanted):
    with pytest.raises(InputError, match=f"a\\.nii: wanted .*{wanted}"):
        write_volume(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16), affine)
    with pytest.raises(InputError, match="wanted a 3-D volume"):
        write_volume(tmp_path / "a.nii", np.zeros((2, 2, 1), np.int16), np.eye(4))
    assert not any(tmp_path.iterdir())


@few
@given(turns, positions, sizes)
def test_what_is_written_lies_where_it_should_in_itk(tmp_path_factory, angles, position, spacing):
    """Turns by nearly 180 degrees among them, which a qform holds badly."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = position
    path = tmp_path_factory.mktemp("written") / "a.nii"
    write_volume(path, np.zeros(SHAPE, np.int16), affine)
    for found in (itk_affine(path), read_image(path).grid.affine):
        assert voxels_apart((256, 256, 256), affine, found) < NOTICEABLE_VOXELS
    assert read_image(path).warnings == ()


def save(path, data):
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def test_scaling_in_the_header_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    expected = 2.0 * np.arange(24).reshape(2, 3, 4) - 1024
    assert (read_image(tmp_path / "scaled.nii.gz").data == expected).all()
    assert (read_labels(tmp_path / "scaled.nii.gz").data == expected).all()


def test_one_channel_in_four_dimensions_is_a_volume(tmp_path):
    volume = read_image(save(tmp_path / "volume.nii.gz", np.ones((2, 3, 4, 1, 1), np.float32)))
    assert volume.data.shape == volume.grid.shape == (2, 3, 4)
    assert read_grid(tmp_path / "volume.nii.gz").shape == (2, 3, 4)


def test_voxels_that_are_not_finite_take_the_finite_minimum(tmp_path):
    data = np.arange(8, dtype=np.float32).reshape(2, 2, 2) - 3
    data[0, 0, 1], data[1, 1, 1], data[0, 1, 0] = np.nan, np.inf, -np.inf
    result = read_image(save(tmp_path / "volume.nii", data)).data
    assert result[0, 0, 1] == result[1, 1, 1] == result[0, 1, 0] == -3
    assert (result[1, :, 0] == data[1, :, 0]).all()


def test_nifti_2_and_big_endian_files_are_read(tmp_path):
    data = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    nib.save(nib.Nifti2Image(data.astype(np.int16), np.eye(4)), tmp_path / "two.nii.gz")
    nib.save(nib.Nifti1Image(data, np.eye(4), nib.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    for name in ("two.nii.gz", "big.nii"):
        assert (read_image(tmp_path / name).data == data).all()


def bad_file(folder, kind):
    path = folder / "bad.nii.gz"
    zeros = np.zeros((4, 4, 4), np.int16)
    if kind == "missing":
        return path
    if kind == "folder":
        return folder
    if kind == "text":
        path.write_text("this is not a volume\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("truncated", "checksum", "flipped"):
        save(path, np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16))
        content = bytearray(path.read_bytes())
        content[-6 if kind == "checksum" else len(content) // 2] ^= 0xFF
        path.write_bytes(content[: len(content) // 2] if kind == "truncated" else content)
    elif kind == "short":
        path = save(folder / "bad.nii", zeros)
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "png":
        path.write_bytes(gzip.compress(b"\x89PNG\r\n" + bytes(2000)))
    elif kind == "2-D":
        save(path, zeros[0])
    elif kind == "slice":
        save(path, zeros[:, :, :1])
    elif kind == "4-D":
        save(path, np.zeros((4, 4, 4, 3), np.int16))
    elif kind == "RGB":
        save(path, np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))
    elif kind == "complex":
        save(path, zeros.astype(np.complex64))
    elif kind in ("singular", "infinite"):
        content = bytearray(save(folder / "good.nii", zeros).read_bytes())
        content[280:284] = np.float32(0 if kind == "singular" else np.nan).tobytes()  # first number of srow_x
        path.write_bytes(gzip.compress(content))
    return path


BAD = {
    "missing": "cannot be read (No such file or directory)",
    "folder": "cannot be read (Is a directory)",
    "text": "wanted a NIfTI volume in one file, found another kind of file",
    "empty": "wanted a NIfTI volume in one file, found another kind of file",
    "png": "wanted a NIfTI volume in one file, found another kind of file",
    "truncated": "wanted an intact NIfTI file, found a truncated or damaged one",
    "short": "wanted an intact NIfTI file, found a truncated or damaged one",
    "flipped": "wanted an intact NIfTI file, found a truncated or damaged one",
    "checksum": "wanted an intact NIfTI file, found a truncated or damaged one",
    "2-D": "wanted a 3-D volume with one channel, found shape (4, 4)",
    "slice": "wanted a 3-D volume with one channel, found shape (4, 4, 1)",
    "4-D": "wanted a 3-D volume with one channel, found shape (4, 4, 4, 3)",
    "RGB": "wanted one real number per voxel, found data type",
    "complex": "wanted one real number per voxel, found data type complex64",
    "singular": "wanted an invertible affine, found",
    "infinite": "wanted an invertible affine, found",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, kind, read):
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {BAD[kind]}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "2-D", "singular"])
def test_a_bad_header_is_found_without_the_data(tmp_path, kind):
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError, match=str(path)):
        read_grid(path)


@pytest.mark.parametrize(("value", "found"), [(1.5, "1.5"), (np.nan, "nan")])
def test_labels_must_be_integers(tmp_path, value, found):
    path = save(tmp_path / "label.nii.gz", np.full((2, 2, 2), value, np.float32))
    with pytest.raises(InputError) as caught:
        read_labels(path)
    assert str(caught.value) == f"{path}: wanted integer label values, found {found}"


def test_an_image_without_finite_voxels_is_refused(tmp_path):
    with pytest.raises(InputError, match="wanted finite voxel values, found none"):
        read_image(save(tmp_path / "image.nii", np.full((2, 2, 2), np.nan, np.float32)))


def test_writing_needs_a_nifti_suffix(tmp_path):
    with pytest.raises(InputError, match=r"wanted a name that ends in \.nii or \.nii\.gz"):
        write_volume(tmp_path / "volume.mha", np.zeros((2, 2, 2)), np.eye(4))
