"""Mesh files byte by byte and read back by trimesh; masks and label maps on awkward grids."""

import base64
import struct
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import trimesh

from implicitmeshnet.coordinates import transform
from implicitmeshnet.export import mesh_to_mask, meshes_to_labelmap, orient_outward, own_parts, read_mesh, write_mesh
from implicitmeshnet.io import InputError
from implicitmeshnet.metrics import is_closed, mesh_volume_ml, volume_ml
from implicitmeshnet.volume import Grid

LPS = np.array([-1, -1, 1])


def sphere(centre=(30, -10, 5), radius=20.0, subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.array(mesh.vertices) * radius + centre, np.array(mesh.faces)


def rotation(degrees, axis=(0.3, -0.5, 0.8)):
    return trimesh.transformations.rotation_matrix(np.radians(degrees), axis)[:3, :3]


def grid_around(centre, shape, spacing_mm, directions):
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("suffix", ["ply", "stl", "obj"])
def test_files_read_back(tmp_path, suffix, space):
    vertices, faces = sphere()
    path = tmp_path / f"mesh.{suffix}"
    write_mesh(path, vertices, faces, space)
    seen = trimesh.load_mesh(path, process=False)  # as another program sees it
    sign = LPS if space == "LPS" else 1
    np.testing.assert_allclose(seen.triangles, (vertices * sign)[faces], atol=1e-5)
    assert seen.volume == pytest.approx(1000 * mesh_volume_ml(vertices, faces), rel=1e-5)
    back, back_faces = read_mesh(path)
    np.testing.assert_allclose(back[back_faces], vertices[faces], atol=1e-5)
    assert len(back) == len(vertices)
    assert is_closed(back_faces)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_ply_bytes(tmp_path):
    write_mesh(tmp_path / "a.ply", np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]]), np.array([[0, 1, 2]]))
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment SPACE=LPS" in lines
    assert body == struct.pack("<9fB3i", -1, -2, 3, -4, -5, 6, -7, -8, 10, 3, 0, 1, 2)


def test_stl_bytes(tmp_path):
    write_mesh(tmp_path / "a.stl", np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0]]), np.array([[0, 1, 2], [0, 0, 1]]))
    content = (tmp_path / "a.stl").read_bytes()
    assert len(content) == 84 + 2 * 50
    assert b"SPACE=LPS" in content[:80]
    assert not content.startswith(b"solid")  # which would mean a text file
    assert struct.unpack("<I", content[80:84]) == (2,)
    first = struct.unpack("<12fH", content[84:134])
    assert first == (0, 0, 1, 0, 0, 0, -2, 0, 0, 0, -3, 0, 0)
    assert struct.unpack("<3f", content[134:146]) == (0, 0, 0)  # the face without area


def test_obj_text(tmp_path):
    write_mesh(tmp_path / "a.obj", np.array([[1, 2, 3], [4, 5.5, 6], [7, 8, 10]]), np.array([[0, 1, 2]]), "RAS")
    assert (tmp_path / "a.obj").read_text().splitlines() == [
        "# ImplicitMeshNet SPACE=RAS", "v 1 2 3", "v 4 5.5 6", "v 7 8 10", "f 1 2 3",
    ]  # fmt: skip


def test_vtp_content(tmp_path):
    vertices, faces = sphere(subdivisions=1)
    write_mesh(tmp_path / "a.vtp", vertices, faces)
    root = ElementTree.parse(tmp_path / "a.vtp").getroot()
    assert root.attrib["byte_order"] == "LittleEndian"
    assert root.attrib["header_type"] == "UInt64"
    space = root.find("PolyData/FieldData/Array")
    assert (space.attrib["Name"], space.attrib["type"], space.text) == ("SPACE", "String", "76 80 83 0")
    piece = root.find("PolyData/Piece")
    assert (piece.attrib["NumberOfPoints"], piece.attrib["NumberOfPolys"]) == ("42", "80")

    def array(name, dtype):
        content = base64.b64decode(piece.find(f".//DataArray[@Name='{name}']").text)
        assert struct.unpack("<Q", content[:8]) == (len(content) - 8,)
        return np.frombuffer(content[8:], dtype)

    np.testing.assert_allclose(array("Points", "<f4").reshape(-1, 3), vertices * LPS, atol=1e-5)
    assert (array("connectivity", "<i8").reshape(-1, 3) == faces).all()
    assert (array("offsets", "<i8") == np.arange(3, 241, 3)).all()


def test_a_file_that_names_no_space_is_lps(tmp_path):
    vertices, faces = sphere(subdivisions=1)
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "a.ply")
    np.testing.assert_allclose(read_mesh(tmp_path / "a.ply")[0], vertices * LPS, atol=1e-5)


def test_bad_files_and_arguments(tmp_path):
    vertices, faces = sphere(subdivisions=0)
    with pytest.raises(InputError, match=r"a\.gltf: wanted .* \.ply, \.stl, \.obj, \.vtp, found '\.gltf'"):
        write_mesh(tmp_path / "a.gltf", vertices, faces)
    with pytest.raises(InputError, match="space: wanted LPS or RAS, found 'LAS'"):
        write_mesh(tmp_path / "a.ply", vertices, faces, "LAS")
    with pytest.raises(InputError, match=r"a\.ply: cannot be read"):
        read_mesh(tmp_path / "a.ply")
    (tmp_path / "b.ply").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"b\.ply: wanted a triangle mesh"):
        read_mesh(tmp_path / "b.ply")
    with pytest.raises(InputError, match=r"c\.vtp: wanted .* \.ply"):
        read_mesh(tmp_path / "c.vtp")
    with pytest.raises(InputError, match="vertices: wanted finite coordinates"):
        mesh_to_mask(vertices * np.nan, faces, Grid((4, 4, 4), np.eye(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["b.ply"]


def test_orient_outward():
    vertices, faces = sphere()
    mirrored = vertices * [-1, 1, 1]
    assert mesh_volume_ml(mirrored, faces) < 0 < mesh_volume_ml(mirrored, orient_outward(mirrored, faces))
    assert orient_outward(vertices, faces) is faces


@pytest.mark.parametrize("directions", [np.eye(3), rotation(35), rotation(160) * [-1, 1, 1], np.eye(3)[:, [2, 0, 1]]])
def test_a_ball_on_oblique_and_left_handed_grids(directions):
    centre, spacing_mm = np.array([12.0, -7.0, 40.0]), np.array([0.8, 1.1, 1.5])
    vertices, faces = sphere(centre, 15)
    grid = grid_around(centre + 2.3, (60, 50, 40), spacing_mm, directions)
    mask = mesh_to_mask(vertices, faces, grid)
    assert volume_ml(mask, grid.spacing_mm) == pytest.approx(mesh_volume_ml(vertices, faces), rel=0.01)
    distance = np.linalg.norm(transform(grid.affine, np.argwhere(np.ones(grid.shape)).astype(float)) - centre, axis=1)
    assert (distance[mask.ravel()] < 15).all()
    assert (distance[~mask.ravel()] > 14.7).all()  # inside of the faceted sphere


def test_a_left_handed_grid_gives_the_same_world_mask():
    vertices, faces = sphere((0.2, 0.3, -0.1), 8)
    right = grid_around(np.zeros(3), (30, 28, 26), np.array([0.9, 0.8, 0.7]), rotation(20))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 29  # voxel i of the left-handed grid is voxel 29 - i of the other
    left = Grid(right.shape, right.affine @ flip)
    assert np.linalg.det(left.affine[:3, :3]) < 0
    mask = mesh_to_mask(vertices, faces, right)
    assert mask.sum() > 1000
    mirrored = mesh_to_mask(vertices, faces, left)[::-1]
    differing = np.argwhere(mask != mirrored)  # rounding decides only where a centre is on the surface
    radius = np.linalg.norm(transform(right.affine, differing.astype(float)) - [0.2, 0.3, -0.1], axis=1)
    assert len(differing) <= 2
    assert (np.abs(radius - 8) < 0.1).all()


def test_a_mesh_cut_by_the_image_or_outside_it():
    grid = Grid((20, 20, 20), np.eye(4))
    whole = mesh_to_mask(*sphere((10, 10, 10), 6.3), grid)
    half = mesh_to_mask(*sphere((0, 10, 10), 6.3), grid)
    assert (half[:9] == whole[10:19]).all()
    assert not half[9:].any()
    assert not mesh_to_mask(*sphere((100, 10, 10), 6.3), grid).any()
    assert mesh_to_mask(*sphere((10, 10, 10), 60), grid).all()


def test_an_overlap_goes_to_the_deeper_mesh():
    grid = Grid((60, 40, 40), np.diag([1, 1, 2, 1.0]))
    blocks = [trimesh.creation.box(bounds=[[low, 5.5, 11], [high, 33.5, 67]])
              for low, high in ((8.5, 32.5), (23.5, 48.5))]
    left, right = ((np.array(mesh.vertices), np.array(mesh.faces)) for mesh in blocks)
    for meshes, values in (((left, right), [420, 500]), ((right, left), [500, 420])):
        labelmap = meshes_to_labelmap(meshes, values, grid)
        assert labelmap.dtype == np.int16
        assert ((labelmap != 0) == (mesh_to_mask(*left, grid) | mesh_to_mask(*right, grid))).all()
        # Along the centre line both cover x = 24 to 32, 33 - x deep in the left one, x - 23 in the right one.
        line = labelmap[:, 20, 20]
        assert (line[9:28] == 420).all()
        assert line[28] == values[0]  # equally deep: the first
        assert (line[29:49] == 500).all()
        assert not line[:9].any()
        assert not line[49:].any()


def test_a_nested_mesh_keeps_only_what_is_deeper():
    grid = Grid((40, 40, 40), np.eye(4))
    labelmap = meshes_to_labelmap([sphere((20, 20, 20), 15), sphere((20, 20, 20), 5)], [1, 2], grid)
    assert (labelmap > 0).sum() == mesh_to_mask(*sphere((20, 20, 20), 15), grid).sum()
    assert not (labelmap == 2).any()


def test_a_mesh_that_holds_another_keeps_what_lies_outside_that_one():
    """Epicardium and cavity, and a neighbour that overlaps the wall: deeper wins, the cavity within the winner."""
    grid = Grid((60, 40, 40), np.eye(4))
    cavity, epicardium, neighbour = (sphere(centre, radius) for centre, radius in
                                     (((20, 20, 20), 9), ((20, 20, 20), 15), ((42, 20, 20), 10)))
    meshes, values = [cavity, epicardium, neighbour], [500, 205, 600]
    labelmap = meshes_to_labelmap(meshes, values, grid, members=[[0], [1, 0], [2]])
    inside = [mesh_to_mask(*mesh, grid) for mesh in meshes]
    assert ((labelmap == 500) == inside[0]).all()
    assert ((labelmap != 0) == np.any(inside, axis=0)).all()
    assert (labelmap[inside[1] & ~inside[0] & ~inside[2]] == 205).all()
    line = labelmap[:, 20, 20]  # wall and neighbour both cover x = 33 and 34: 35 - x deep and x - 32 deep
    assert line[29:34].tolist() == [205] * 5
    assert line[34:51].tolist() == [600] * 17
    shifted = sphere((31, 20, 20), 10)  # reaches into the cavity: x - 21 deep, against 35 - x in the epicardium
    line = meshes_to_labelmap([cavity, epicardium, shifted], values, grid, members=[[0], [1, 0], [2]])[:, 20, 20]
    assert line[21:31].tolist() == [500] * 8 + [600] * 2
    own = own_parts(inside, [[0], [1, 0], [2]])
    assert (own[1] == (inside[1] & ~inside[0])).all()
    assert own[2] is inside[2]


def test_of_two_enclosed_meshes_that_overlap_the_deeper_wins():
    grid = Grid((60, 40, 40), np.eye(4))
    outer, one, other = (sphere(centre, radius) for centre, radius in
                         (((31, 20, 20), 18), ((24, 20, 20), 10), ((38, 20, 20), 10)))
    alone = meshes_to_labelmap([one, other], [2, 3], grid)
    held = meshes_to_labelmap([outer, one, other], [1, 2, 3], grid, members=[[0, 1, 2], [1], [2]])
    inside = mesh_to_mask(*one, grid) | mesh_to_mask(*other, grid)
    assert (held[inside] == alone[inside]).all()
    assert (held[mesh_to_mask(*outer, grid) & ~inside] == 1).all()


def test_overlaps_far_apart_are_measured_as_finely_as_one():
    grid = Grid((40, 40, 400), np.eye(4))
    plates = [trimesh.creation.box(bounds=[[low, 5.3, 5.3], [high, 33.7, 33.7]]) for low, high in
              ((10.2, 14.6), (12.2, 18.0))]
    near = [(np.array(mesh.vertices), np.array(mesh.faces)) for mesh in plates]
    far = [(vertices + np.array([0, 0, 350]), faces) for vertices, faces in near]
    alone, both = (meshes_to_labelmap(meshes, [1, 2, 3, 4][: len(meshes)], grid) for meshes in (near, near + far))
    assert (alone[..., :50] == both[..., :50]).all()
    assert (both[10:19, 10:30, 20] == np.array([0, 1, 1, 1, 2, 2, 2, 2, 0])[:, None]).all()


def test_no_meshes_give_an_empty_label_map():
    assert not meshes_to_labelmap([], [], Grid((4, 5, 6), np.eye(4))).any()
