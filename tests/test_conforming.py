"""One surface of several structures: closed around each, crossing nothing, right about which voxel is whose."""

import judges
import numpy as np
import pytest
from meshes import sphere, structures_of

from implicitmeshnet.data.volume import Grid
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces import conforming, regions
from implicitmeshnet.surfaces.combined import write_shared_walls
from implicitmeshnet.surfaces.conforming import conforming_surface
from implicitmeshnet.surfaces.crossing import crossing_pairs
from implicitmeshnet.surfaces.labelmap import mesh_to_mask
from implicitmeshnet.surfaces.quality import smallest_angles
from implicitmeshnet.surfaces.soundness import is_closed, mesh_volume_ml

KEPT_WALL_MM = 0.3


def balls(*places: tuple[float, float, float, float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Spheres by radius and centre, with edges of 0.3 radii."""
    return [sphere(centre, radius, 2) for radius, *centre in places]


def surface_of(meshes, **encloses):
    structures = structures_of(*range(1, len(meshes) + 1), **encloses)
    return conforming_surface(meshes, structures, KEPT_WALL_MM)


SCENES = {
    "two that overlap": (balls((10, 0, 0, 0), (8, 13, 2, 1)), None),
    "one in another": (balls((10, 0, 0, 0), (6, 1, 0, 0)), {0: (1,)}),
    "one in another, at a place without a wall": (balls((10, 0, 0, 0), (7, 3.9, 0.1, 0)), {0: (1,)}),
    "three with small gaps": (balls((10, 0, 0, 0), (8, 18.2, 0, 0), (8, 9, 14, 2)), None),
    "two far apart": (balls((8, -300, 0, 0), (8, -270, 0, 0)), None),
    "one alone": (balls((8, 1, 2, 3)), None),
}


@pytest.fixture(scope="module", params=SCENES)
def surface(request):
    meshes, encloses = SCENES[request.param]
    return surface_of(meshes, encloses=encloses)


def grid_of(field) -> Grid:
    affine = np.diag([field.spacing_mm] * 3 + [1])
    affine[:3, 3] = field.origin_mm
    return Grid(field.labels.shape, affine)


def sides(surface) -> set[tuple[int, int]]:
    """Which regions share a wall."""
    return set(map(tuple, surface.regions.tolist()))


def volumes_mm3(surface) -> list[float]:
    """Of each structure's region."""
    count = len(surface.field.depths)
    return [1000 * mesh_volume_ml(*surface.around(region)) for region in range(1, count)]


def test_the_surface_around_every_region_is_closed_and_faces_outward(surface):
    assert surface.field.critical == 0
    assert surface.missing == []
    for region in range(len(surface.field.depths)):
        assert is_closed(surface.around(region)[1])
    assert min(volumes_mm3(surface)) > 0
    assert surface.regions[:, 0].min() > 0  # outside is always a face's second region


def test_no_two_faces_cross_in_float32_either(surface):
    np.testing.assert_array_equal(surface.vertices, surface.vertices.astype(np.float32))
    assert len(crossing_pairs(surface.vertices, surface.faces)) == 0


def test_triangles_have_no_small_angles(surface):
    angles = smallest_angles(surface.vertices, surface.faces)
    assert angles.min() > 5
    assert np.percentile(angles, 5) > 35


def test_a_voxel_lies_in_the_surface_around_its_own_region(surface):
    field = surface.field
    for region in range(1, len(field.depths)):
        inside = mesh_to_mask(*surface.around(region), grid_of(field))
        np.testing.assert_array_equal(inside, field.labels == region)


def test_balls_far_apart_keep_their_volumes():
    meshes, _ = SCENES["two far apart"]
    wanted = [1000 * mesh_volume_ml(*mesh) for mesh in meshes]
    assert volumes_mm3(surface_of(meshes)) == pytest.approx(wanted, rel=0.015)


def test_a_ball_in_another_leaves_that_one_its_wall():
    meshes, encloses = SCENES["one in another"]
    outer, inner = (1000 * mesh_volume_ml(*mesh) for mesh in meshes)
    surface = surface_of(meshes, encloses=encloses)
    assert volumes_mm3(surface) == pytest.approx([outer - inner, inner], rel=0.02)
    assert sides(surface) == {(1, 0), (1, 2)}


def test_what_two_balls_share_is_cut_at_the_middle():
    surface = surface_of(balls((10, -7, 0, 0), (10, 7, 0, 0)))
    shared = np.unique(surface.faces[(surface.regions == (1, 2)).all(1)])
    assert np.abs(surface.vertices[shared, 0]).max() < surface.field.spacing_mm / 8
    first, second = volumes_mm3(surface)
    assert first == pytest.approx(second, rel=0.01)


@pytest.mark.parametrize(("gap_mm", "touching"), [(0.1, True), (0.7, True), (2.5, False)])
def test_a_gap_is_closed_that_the_grid_cannot_resolve(gap_mm, touching):
    # Of voxels 0.9 mm apart a layer lies 0.66 mm outside of the first ball.
    surface = surface_of(balls((10, 0, 0, 0), (8, 18 + gap_mm, 0.3, 0.2)))
    assert surface.field.spacing_mm == pytest.approx(0.9, abs=0.01)
    assert ((1, 2) in sides(surface)) == touching


@pytest.mark.parametrize(("wall_mm", "opened"), [(0.1, True), (0.6, False)])
def test_a_thin_wall_stays_and_one_that_is_only_the_gap_between_meshes_does_not(wall_mm, opened):
    surface = surface_of(balls((10, 0, 0, 0), (7, 3 - wall_mm, 0, 0)), encloses={0: (1,)})
    assert ((2, 0) in sides(surface)) == opened


def test_outside_of_nested_meshes_that_nearly_touch_there_is_no_gap_to_close():
    meshes, encloses = SCENES["one in another, at a place without a wall"]
    field = surface_of(meshes, encloses=encloses).field
    held = np.any([mesh_to_mask(*mesh, grid_of(field)) for mesh in meshes], axis=0)
    changed = held != (field.labels > 0)  # for regions to be manifold
    assert np.abs(field.depths[0][changed]).max() < field.spacing_mm / 2


def test_small_pieces_go_to_their_surroundings_and_the_largest_of_a_region_stays():
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[3, 3, 3] = 0  # a hollow
    labels[8:10, 8:10, 8:10] = 1
    labels[2, 9, 9] = 2
    depths = np.ones((3, *labels.shape), dtype=np.float32)
    np.put_along_axis(depths, labels[None].astype(int), -1, axis=0)
    assert regions._remove_small_pieces(labels, depths) == 9
    wanted = np.zeros_like(labels)
    wanted[1:6, 1:6, 1:6] = 1
    wanted[2, 9, 9] = 2
    np.testing.assert_array_equal(labels, wanted)
    assert (depths.argmin(0) == labels).all()


def test_the_same_meshes_give_the_same_surface(surface, request):
    meshes, encloses = SCENES[request.node.callspec.params["surface"]]
    again = surface_of(meshes, encloses=encloses)
    np.testing.assert_array_equal(again.vertices, surface.vertices)
    np.testing.assert_array_equal(again.faces, surface.faces)


def test_vertices_go_back_until_no_faces_cross():
    meshes, _ = SCENES["two that overlap"]
    field = surface_of(meshes).field
    dual = conforming._dual(field.labels)
    places = np.random.default_rng(0).choice([0.01, 0.99], dual.cells.shape)
    surface = conforming._without_crossings(dual, places, field)
    assert surface.retreated > 10
    assert len(crossing_pairs(surface.vertices, surface.faces)) == 0
    assert is_closed(surface.around(1)[1])


def noise(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of random voxels, and depths that fit them."""
    rng = np.random.default_rng(seed)
    depths = rng.normal(size=(3, 12, 12, 12)).astype(np.float32)
    depths[0] -= 1
    depths[0, [0, 1, -2, -1]] = depths[0, :, [0, 1, -2, -1]] = depths[0, :, :, [0, 1, -2, -1]] = -9
    return depths.argmin(0).astype(np.uint8), depths


def test_random_voxels_give_an_even_number_of_faces_at_every_edge_and_none_that_cross():
    labels, depths = noise()
    field = regions.RegionField(labels, depths, np.zeros(3), 1.0, 1)
    dual = conforming._dual(labels)
    surface = conforming._without_crossings(
        dual, conforming._relaxed(dual, conforming._crossings(dual, field), field), field
    )
    assert len(crossing_pairs(surface.vertices, surface.faces)) == 0
    for region in range(3):
        _, faces = surface.around(region)
        directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        forward = np.sort(directed[:, 0] * len(surface.vertices) + directed[:, 1])
        backward = np.sort(directed[:, 1] * len(surface.vertices) + directed[:, 0])
        np.testing.assert_array_equal(forward, backward)


def test_voxels_that_meet_at_an_edge_or_corner_alone_are_told_by_the_surface_around_them():
    for offset, critical in (((1, 0, 0), False), ((1, 1, 0), True), ((1, 1, 1), True)):
        labels = np.zeros((6, 6, 6), dtype=np.uint8)
        labels[2, 2, 2] = 1
        labels[tuple(np.add(2, offset))] = 1
        assert regions._critical(labels).any() == critical
        assert regions._critical(1 - labels).any() == critical


def test_voxels_change_until_regions_are_manifold_where_they_are_not():
    labels, depths = noise()
    before = np.count_nonzero(regions._critical(labels))
    for _ in range(regions.ROUNDS):
        regions._make_manifold(labels, depths)
    assert np.count_nonzero(regions._critical(labels)) < before / 20


def test_the_grid_is_coarser_where_structures_lie_far_apart():
    surface = surface_of(balls((40, 0, 0, 0), (40, 5000, 0, 0)))
    assert max(surface.field.labels.shape) <= regions.MOST_VOXELS + 1
    assert surface.field.spacing_mm > 20
    assert surface.missing == []


def test_a_structure_too_small_for_the_grid_is_missing():
    meshes = balls((10, 0, 0, 0), (8, 30, 0, 0), (0.3, 15, 0.4, 0.4))
    surface = surface_of([*meshes[:2], sphere((15, 0.5, 0.5), 0.1, 0)])
    assert surface.missing == [2]


def test_without_anything_that_the_grid_can_hold_the_surface_is_empty():
    vertices, faces = sphere()
    surface = surface_of([(vertices * [1, 1, 1e-4] + [0, 0, 0.3], faces)])
    assert surface.missing == [0]
    assert surface.vertices.shape == (0, 3)
    assert surface.faces.shape == (0, 3)


def test_vertices_that_are_no_numbers_are_refused():
    vertices, faces = sphere()
    vertices[3, 1] = np.nan
    with pytest.raises(InputError, match="vertices: wanted finite coordinates, found NaN or infinity"):
        surface_of([(vertices, faces)])


def test_tetgen_fills_every_region_with_its_volume(surface):
    pytest.importorskip("tetgen", reason="TetGen is not installed")
    (tetrahedra, inverted, _, _), filled_mm3 = judges.filled_regions(surface)
    assert tetrahedra > 1000
    assert inverted == 0
    assert filled_mm3[1:] == pytest.approx(volumes_mm3(surface), rel=1e-6)
    assert filled_mm3[0] == 0


def test_a_file_says_between_which_label_values_each_face_lies(tmp_path):
    vtk = pytest.importorskip("vtk", reason="VTK is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    surface = surface_of(SCENES["two that overlap"][0])
    write_shared_walls(
        tmp_path / "a.vtp", (surface.vertices, surface.faces), surface.regions, ("LV", "LA & <rest>"), (500, 420)
    )
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "a.vtp"))
    reader.Update()
    data = reader.GetOutput()
    points = vtk_to_numpy(data.GetPoints().GetData())
    np.testing.assert_array_equal(points * np.array([-1, -1, 1]), surface.vertices)
    corners = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    np.testing.assert_array_equal(corners, surface.faces)
    for side, name in enumerate(("region_inside", "region_outside")):
        found = vtk_to_numpy(data.GetCellData().GetArray(name))
        np.testing.assert_array_equal(found, np.array([0, 500, 420])[surface.regions[:, side]])
    names = data.GetFieldData().GetAbstractArray("structure_names")
    assert [names.GetValue(number) for number in range(2)] == ["LV", "LA & <rest>"]
    assert vtk_to_numpy(data.GetFieldData().GetArray("structure_values")).tolist() == [500, 420]
