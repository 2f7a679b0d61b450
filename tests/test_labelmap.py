"""Mesh files byte by byte and read back by trimesh; masks and label maps on awkward grids."""

import base64
import random
import re
import struct
import tracemalloc
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import sphere, structures_of
from volumes import grid_around, spoil

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.files import orient_outward, read_mesh, write_mesh
from implicitmeshnet.surfaces.labelmap import masks_to_labelmap, mesh_to_mask, meshes_to_labelmap, overlaps_ml
from implicitmeshnet.surfaces.metrics import volume_ml
from implicitmeshnet.surfaces.soundness import is_closed, mesh_volume_ml

LPS = np.array([-1, -1, 1])
CENTRE = (30, -10, 5)


def rotation(degrees, axis=(0.3, -0.5, 0.8)):
    return trimesh.transformations.rotation_matrix(np.radians(degrees), axis)[:3, :3]


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("suffix", ["ply", "stl", "obj"])
def test_a_written_mesh_is_read_back_in_place_by_us_and_by_trimesh(tmp_path, suffix, space):
    vertices, faces = sphere(CENTRE, 20)
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


def test_a_ply_file_holds_these_bytes(tmp_path):
    write_mesh(tmp_path / "a.ply", np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]]), np.array([[0, 1, 2]]))
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment SPACE=LPS" in lines
    assert body == struct.pack("<9fB3i", -1, -2, 3, -4, -5, 6, -7, -8, 10, 3, 0, 1, 2)


def test_an_stl_file_holds_these_bytes(tmp_path):
    write_mesh(tmp_path / "a.stl", np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0]]), np.array([[0, 1, 2], [0, 0, 1]]))
    content = (tmp_path / "a.stl").read_bytes()
    assert len(content) == 84 + 2 * 50
    assert b"SPACE=LPS" in content[:80]
    assert not content.startswith(b"solid")  # which would mean a text file
    assert struct.unpack("<I", content[80:84]) == (2,)
    first = struct.unpack("<12fH", content[84:134])
    assert first == (0, 0, 1, 0, 0, 0, -2, 0, 0, 0, -3, 0, 0)
    assert struct.unpack("<3f", content[134:146]) == (0, 0, 0)  # the face without area


def test_an_obj_file_holds_these_lines(tmp_path):
    write_mesh(tmp_path / "a.obj", np.array([[1, 2, 3], [4, 5.5, 6], [7, 8, 10]]), np.array([[0, 1, 2]]), "RAS")
    assert (tmp_path / "a.obj").read_text().splitlines() == [
        "# ImplicitMeshNet SPACE=RAS", "v 1 2 3", "v 4 5.5 6", "v 7 8 10", "f 1 2 3",
    ]  # fmt: skip


def test_a_vtp_file_holds_these_arrays(tmp_path):
    vertices, faces = sphere(CENTRE, 20, 1)
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
    vertices, faces = sphere(CENTRE, 20, 1)
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "a.ply")
    np.testing.assert_allclose(read_mesh(tmp_path / "a.ply")[0], vertices * LPS, atol=1e-5)


def test_a_bad_mesh_file_or_space_is_one_sentence_that_names_it(tmp_path):
    vertices, faces = sphere(CENTRE, 20, 0)
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


PLY = """ply
format {form} 1.0
element vertex {vertices}
property float x
property float y
property float z
element face {faces}
property list uchar int vertex_indices
end_header
"""
CORNERS = "0 0 0\n1 0 0\n0 1 0\n"
NUMBERS = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
BINARY = "binary_little_endian"
FACET = """solid a
facet normal 0 0 1
outer loop
vertex 0 0 0
vertex 1 0 0
vertex {}
endloop
endfacet
endsolid a
"""


def ply(body, form="ascii", vertices=3, faces=1):
    header = PLY.format(form=form, vertices=vertices, faces=faces)
    return header.encode() + (body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize(
    ("suffix", "content", "sentence"),
    [
        ("ply", b"", "wanted a triangle mesh"),
        ("stl", b"", "wanted a triangle mesh"),
        ("obj", b"", "wanted a triangle mesh, found 0 vertices and 0 faces"),
        ("ply", ply(CORNERS, faces=0), "wanted a triangle mesh, found 0 vertices and 0 faces"),
        ("ply", ply(NUMBERS, BINARY, faces=0), "wanted a triangle mesh, found 0 vertices and 0 faces"),
        ("stl", bytes(84), "wanted a triangle mesh, found 0 vertices and 0 faces"),
        ("stl", b"solid a\nendsolid a\n", "wanted a triangle mesh, found 0 vertices and 0 faces"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "wanted a triangle mesh, found 3 vertices and 0 faces"),
        ("obj", b"f 1 2 3\n", "wanted a triangle mesh, found 0 vertices and 1 faces"),
        ("ply", ply(CORNERS + "3 0 1 3\n"), "wanted faces of vertices 0 to 2, found one of vertex 3"),
        ("ply", ply(CORNERS + "3 0 1 -1\n"), "wanted faces of vertices 0 to 2, found one of vertex -1"),
        (
            "ply",
            ply(NUMBERS + struct.pack("<B3i", 3, 0, 9, 1), BINARY),
            "wanted faces of vertices 0 to 2, found one of",
        ),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "wanted faces of vertices 0 to 2, found one of vertex 3"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "wanted faces of vertices 0 to 2, found one of vertex -1"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "wanted faces of vertices 0 to 2, found one of vertex -1"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999999999\n", "wanted a triangle mesh, found a file"),
        ("ply", ply("0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n"), "wanted finite coordinates, found NaN or infinity"),
        ("stl", FACET.format("0 inf 0").encode(), "wanted finite coordinates, found NaN or infinity"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 0 1 1e999\nf 1 2 3\n", "wanted finite coordinates, found NaN or infinity"),
        ("stl", FACET.format("0 1 x").encode(), "wanted a triangle mesh, found a file that cannot be parsed"),
        ("obj", b"v 0 0 0\nv 1 0\n", "found a file that cannot be parsed: line 2: "),
        ("obj", b"v 0 0 0\nv 1 0 0\nf 1 2\n", "found a file that cannot be parsed: line 3: "),
        ("ply", ply(CORNERS + "3 0 1 2\n", vertices=2), "wanted a triangle mesh, found 2 vertices and 0 faces"),
        (
            "ply",
            ply(CORNERS + "3 0 1 2\n", faces=2),
            "wanted 3 vertices and 2 faces, as its header says, found 3 and 1",
        ),
        (
            "stl",
            bytes(80) + struct.pack("<I", 10**9) + b"\xff" * 50,
            "it is neither text nor as long as its header says",
        ),
    ],
)
def test_a_file_that_is_no_whole_mesh_is_refused(tmp_path, suffix, content, sentence):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as error:
        read_mesh(path)
    assert sentence in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("form", ["ascii", BINARY, "binary_big_endian"])
@pytest.mark.parametrize(("vertices", "faces"), [(10**9, 1), (3, 10**9), (10**30, 10**30), (10**9, 0)])
def test_a_header_that_claims_too_much_costs_nothing(tmp_path, form, vertices, faces):
    path = tmp_path / "a.ply"
    for body in (b"", CORNERS.encode() + b"3 0 1 2\n", b"\xff" * 100):
        path.write_bytes(ply(body, form, vertices, faces))
        tracemalloc.start()
        with pytest.raises(InputError):
            read_mesh(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6


def test_an_obj_of_other_programs(tmp_path):
    """Quads, references from the end, to texture and to normals that are not there, groups, lines that go on."""
    (tmp_path / "a.obj").write_bytes(
        b"mtllib none.mtl\no one\nv 0 0 0 1 1 1\nv 1 0 0\r\nv 1 1 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\nusemtl red\ng a\n"
        b"f 1/1/4294967295 2//1 3/9 4\n# 0 0\no two\nusemtl blue\nv 0 0 \\\n 5\n  f -1 -2 1\n"
    )
    vertices, faces = read_mesh(tmp_path / "a.obj")
    assert (vertices * LPS).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 5]]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3], [4, 3, 0]]


def whole_files(tmp_path):
    """One mesh as every kind of file that is read, by suffix."""
    vertices, faces = sphere(CENTRE, 20, 1)
    files = []
    for suffix in ("ply", "stl", "obj"):
        write_mesh(tmp_path / f"a.{suffix}", vertices, faces)
        files.append((suffix, (tmp_path / f"a.{suffix}").read_bytes()))
    seen = trimesh.Trimesh(vertices, faces, process=False)
    files.append(("ply", seen.export(file_type="ply", encoding="ascii")))
    files.append(("stl", seen.export(file_type="stl_ascii").encode()))
    return files


PIECES = (b"", b"0", b"-1", b"1000000000", b"nan", b"face", b"list", b" ", b"\n", b"\xff" * 4)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_file_is_a_mesh_or_one_sentence(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("meshes"), random.Random(seed)
    suffix, content = rng.choice(whole_files(folder))
    path = folder / f"b.{suffix}"
    path.write_bytes(spoil(content, rng, PIECES, 300))
    sentence = ""
    tracemalloc.start()
    try:
        vertices, faces = read_mesh(path)
    except InputError as error:
        sentence = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e7
    if sentence:
        assert sentence.startswith(f"{path}: wanted ") and "\n" not in sentence and len(sentence) < 500
    else:
        assert len(vertices) > 0 and vertices.shape[1:] == (3,) and np.isfinite(vertices).all()
        assert len(faces) > 0 and faces.shape[1:] == (3,) and 0 <= faces.min() <= faces.max() < len(vertices)


def test_a_mirrored_mesh_is_turned_outward_and_a_sound_one_left():
    vertices, faces = sphere(CENTRE, 20)
    mirrored = vertices * [-1, 1, 1]
    assert mesh_volume_ml(mirrored, faces) < 0 < mesh_volume_ml(mirrored, orient_outward(mirrored, faces))
    assert orient_outward(vertices, faces) is faces


@pytest.mark.parametrize("directions", [np.eye(3), rotation(35), rotation(160) * [-1, 1, 1], np.eye(3)[:, [2, 0, 1]]])
def test_a_ball_on_oblique_and_left_handed_grids(directions):
    centre, spacing_mm = np.array([12.0, -7.0, 40.0]), np.array([0.8, 1.1, 1.5])
    vertices, faces = sphere(centre, 15)
    grid = grid_around(centre + 2.3, (60, 50, 40), directions * spacing_mm)
    mask = mesh_to_mask(vertices, faces, grid)
    assert volume_ml(mask, grid) == pytest.approx(mesh_volume_ml(vertices, faces), rel=0.01)
    distance = np.linalg.norm(transform(grid.affine, np.argwhere(np.ones(grid.shape)).astype(float)) - centre, axis=1)
    assert (distance[mask.ravel()] < 15).all()
    assert (distance[~mask.ravel()] > 14.7).all()  # inside of the faceted sphere


def test_a_left_handed_grid_gives_the_same_world_mask():
    vertices, faces = sphere((0.2, 0.3, -0.1), 8)
    right = grid_around(np.zeros(3), (30, 28, 26), rotation(20) * [0.9, 0.8, 0.7])
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
    blocks = [
        trimesh.creation.box(bounds=[[low, 5.5, 11], [high, 33.5, 67]]) for low, high in ((8.5, 32.5), (23.5, 48.5))
    ]
    left, right = ((np.array(mesh.vertices), np.array(mesh.faces)) for mesh in blocks)
    for meshes, values in (((left, right), [420, 500]), ((right, left), [500, 420])):
        labelmap = meshes_to_labelmap(meshes, structures_of(*values), grid)
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
    labelmap = meshes_to_labelmap([sphere((20, 20, 20), 15), sphere((20, 20, 20), 5)], structures_of(1, 2), grid)
    assert (labelmap > 0).sum() == mesh_to_mask(*sphere((20, 20, 20), 15), grid).sum()
    assert not (labelmap == 2).any()


def test_a_mesh_that_holds_another_keeps_what_lies_outside_that_one():
    """Epicardium and cavity, and a neighbour that overlaps the wall: deeper wins, the cavity within the winner."""
    grid = Grid((60, 40, 40), np.eye(4))
    cavity, epicardium, neighbour = (
        sphere(centre, radius) for centre, radius in (((20, 20, 20), 9), ((20, 20, 20), 15), ((42, 20, 20), 10))
    )
    meshes = [cavity, epicardium, neighbour]
    heart = structures_of(500, 205, 600, encloses={1: (0,)})
    labelmap = meshes_to_labelmap(meshes, heart, grid)
    inside = [mesh_to_mask(*mesh, grid) for mesh in meshes]
    assert ((labelmap == 500) == inside[0]).all()
    assert ((labelmap != 0) == np.any(inside, axis=0)).all()
    assert (labelmap[inside[1] & ~inside[0] & ~inside[2]] == 205).all()
    line = labelmap[:, 20, 20]  # wall and neighbour both cover x = 33 and 34: 35 - x deep and x - 32 deep
    assert line[29:34].tolist() == [205] * 5
    assert line[34:51].tolist() == [600] * 17
    shifted = sphere((31, 20, 20), 10)  # reaches into the cavity: x - 21 deep, against 35 - x in the epicardium
    line = meshes_to_labelmap([cavity, epicardium, shifted], heart, grid)[:, 20, 20]
    assert line[21:31].tolist() == [500] * 8 + [600] * 2


def test_of_two_enclosed_meshes_that_overlap_the_deeper_wins():
    grid = Grid((60, 40, 40), np.eye(4))
    outer, one, other = (
        sphere(centre, radius)
        for centre, radius in (((31, 20, 20), 18), ((24, 20, 20), 10), ((38.3, 20, 20), 10))  # no voxel as deep in both
    )
    alone = meshes_to_labelmap([one, other], structures_of(2, 3), grid)
    held = meshes_to_labelmap([outer, one, other], structures_of(1, 2, 3, encloses={0: (1, 2)}), grid)
    inside = mesh_to_mask(*one, grid) | mesh_to_mask(*other, grid)
    assert (held[inside] == alone[inside]).all()
    assert (held[mesh_to_mask(*outer, grid) & ~inside] == 1).all()


def test_overlaps_far_apart_are_measured_as_finely_as_one():
    grid = Grid((40, 40, 400), np.eye(4))
    plates = [
        trimesh.creation.box(bounds=[[low, 5.3, 5.3], [high, 33.7, 33.7]]) for low, high in ((10.2, 14.6), (12.2, 18.0))
    ]
    near = [(np.array(mesh.vertices), np.array(mesh.faces)) for mesh in plates]
    far = [(vertices + np.array([0, 0, 350]), faces) for vertices, faces in near]
    alone = meshes_to_labelmap(near, structures_of(1, 2), grid)
    both = meshes_to_labelmap(near + far, structures_of(1, 2, 3, 4), grid)
    assert (alone[..., :50] == both[..., :50]).all()
    assert (both[10:19, 10:30, 20] == np.array([0, 1, 1, 1, 2, 2, 2, 2, 0])[:, None]).all()


def test_no_meshes_give_an_empty_label_map():
    assert not meshes_to_labelmap([], structures_of(), Grid((4, 5, 6), np.eye(4))).any()


def block(low, high):
    mesh = trimesh.creation.box(bounds=[low, high])
    return np.array(mesh.vertices), np.array(mesh.faces)


def test_a_voxel_of_two_masks_goes_to_the_deeper_and_of_equals_to_the_first():
    left, right = np.zeros((2, 20, 15, 15), bool)
    left[:11] = True  # the image's edge counts as outside
    right[8:17] = True
    for masks, values in (((left, right), (420, 500)), ((right, left), (500, 420))):
        line = masks_to_labelmap(masks, structures_of(*values), Grid(left.shape, np.eye(4)))[:, 7, 7]
        assert line.tolist() == [420] * 9 + [values[0]] + [500] * 7 + [0] * 3


def test_the_depth_in_a_mask_is_measured_in_millimetres():
    flat, long = np.zeros((2, 21, 21, 21), bool)
    flat[2:19, 2:19, 9:12] = True
    long[9:12, 9:12, 2:19] = True
    thick_slices = Grid(flat.shape, np.diag([1, 1, 4, 1.0]))  # flat is 12 mm thick there, and long 3 mm wide
    thin_slices = Grid(flat.shape, np.diag([4, 4, 1, 1.0]))
    structures = structures_of(1, 2)
    assert masks_to_labelmap([flat, long], structures, thick_slices)[10, 10, 10] == 1
    assert masks_to_labelmap([flat, long], structures, thin_slices)[10, 10, 10] == 2


def test_overlaps_are_counted_in_voxels_by_hand():
    """Voxels of 1 x 2 x 0.5 mm; the first two share 3 x 4 x 8 of them, the third lies apart, the fourth is outside."""
    grid = Grid((30, 20, 40), np.diag([-1, 2, 0.5, 1.0]))
    meshes = [
        block([-10.5, 3, 1.75], [-0.5, 11, 9.75]),
        block([-14.5, 3, 5.75], [-7.5, 15, 11.75]),
        block([-28.5, 3, 1.75], [-20.5, 11, 9.75]),
        block([40, 3, 1.75], [50, 11, 9.75]),
    ]
    wanted = np.zeros((4, 4))
    wanted[0, 1] = wanted[1, 0] = 3 * 4 * 8 / 1000
    np.testing.assert_allclose(overlaps_ml(meshes, structures_of(1, 2, 3, 4), grid), wanted)
    # What an enclosing mesh should hold and does not: of the second what lies outside the first, and the whole third.
    sticks_out = wanted.copy()
    sticks_out[0, 1] = sticks_out[1, 0] = (7 * 6 * 12 - 3 * 4 * 8) / 1000
    sticks_out[0, 2] = sticks_out[2, 0] = 8 * 4 * 16 / 1000
    found = overlaps_ml(meshes, structures_of(1, 2, 3, 4, encloses={0: (1, 2)}), grid)
    np.testing.assert_allclose(found, sticks_out)
    order = [3, 2, 1, 0]
    found = overlaps_ml([meshes[index] for index in order], structures_of(4, 3, 2, 1, encloses={3: (2, 1)}), grid)
    np.testing.assert_allclose(found, sticks_out[np.ix_(order, order)])


def test_a_label_map_does_not_depend_on_where_the_worlds_origin_lies():
    grid = Grid((40, 40, 40), np.eye(4))
    plates = [block([low, 5.3, 5.3], [high, 33.7, 33.7]) for low, high in ((10.2, 14.6), (12.2, 18.0))]
    away_mm = np.array([500, -300, 900])
    affine = np.eye(4)
    affine[:3, 3] = away_mm
    moved = [(vertices + away_mm, faces) for vertices, faces in plates]
    here = meshes_to_labelmap(plates, structures_of(1, 2), grid)
    assert set(np.unique(here)) == {0, 1, 2}
    assert (meshes_to_labelmap(moved, structures_of(1, 2), Grid(grid.shape, affine)) == here).all()


def test_overlapping_balls_of_other_sizes_are_parted_by_their_true_depths():
    grid = grid_around(np.array([5.0, 8.0, -3.0]), (50, 40, 60), rotation(25) * [1.0, 1.3, 0.8])
    balls = [((5.0, 8.0, -3.0), 14.0), ((12.0, 15.0, 3.0), 8.0)]
    labelmap = meshes_to_labelmap([sphere(*ball, 4) for ball in balls], structures_of(1, 2), grid)
    points = transform(grid.affine, np.argwhere(np.ones(grid.shape)).astype(float))
    depths = [radius - np.linalg.norm(points - centre, axis=1) for centre, radius in balls]
    contested = np.min(depths, 0) > 0.1  # inside the faceted balls
    clear = contested & (np.abs(depths[0] - depths[1]) > 0.4)
    wanted = 1 + np.argmax(depths, 0)
    assert set(wanted[clear]) == {1, 2}
    assert (labelmap.ravel()[clear] == wanted[clear]).all()


def test_an_empty_mask_among_others_changes_nothing():
    left, right, empty = np.zeros((3, 20, 15, 15), bool)
    left[2:11] = True
    right[8:17] = True
    grid = Grid(left.shape, np.eye(4))
    without = masks_to_labelmap([left, right], structures_of(1, 3), grid)
    assert (masks_to_labelmap([left, empty, right], structures_of(1, 2, 3), grid) == without).all()


def test_an_overlap_of_a_single_voxel_goes_to_the_deeper_mesh():
    deeper = block([0.5] * 3, [5.6] * 3)
    shallower = block([4.6] * 3, [9.4] * 3)
    grid = Grid((11, 11, 11), np.eye(4))
    assert np.argwhere(mesh_to_mask(*deeper, grid) & mesh_to_mask(*shallower, grid)).tolist() == [[5, 5, 5]]
    assert meshes_to_labelmap([deeper, shallower], structures_of(1, 2), grid)[5, 5, 5] == 1
    assert meshes_to_labelmap([shallower, deeper], structures_of(2, 1), grid)[5, 5, 5] == 1


def test_a_neighbour_takes_no_wall_beside_the_cavity_that_lies_deeper_in_the_wall():
    cavity, epicardium = sphere((20, 20, 20), 9), sphere((20, 20, 20), 15)
    neighbour = sphere((33, 33, 20), 8)  # over the corner of the cavity's box
    heart = structures_of(500, 205, 600, encloses={1: (0,)})
    labelmap = meshes_to_labelmap([cavity, epicardium, neighbour], heart, Grid((45, 45, 40), np.eye(4)))
    assert mesh_to_mask(*neighbour, Grid((45, 45, 40), np.eye(4)))[28, 28, 20]
    assert labelmap[28, 28, 20] == 205  # 3.7 deep in the epicardium, 0.9 in the neighbour
    assert labelmap[30, 30, 20] == 600
