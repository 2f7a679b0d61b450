"""Meshes of several structures that cross are moved apart, and end without crossings whatever they were."""

import numpy as np
import pytest

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.crossing import snapped
from implicitmeshnet.surfaces.proximity import near
from implicitmeshnet.surfaces.repair import neighbour_mean
from implicitmeshnet.surfaces.separation import GAP_MM, Crossings, Scene, separate
from implicitmeshnet.surfaces.soundness import crossing_faces_of, mesh_volume_ml

GENUS_0 = [tensor.double().numpy() for tensor in icosphere(2)]
SPHERE = GENUS_0[0]
FACES = GENUS_0[1].astype(int)


def ball(radius: float, *centre: float) -> np.ndarray:
    return radius * SPHERE + np.array(centre)


def judge(meshes: np.ndarray, encloses=((),)) -> tuple[int, list]:
    """How many pairs of faces cross, and which meshes lie where they should not."""
    encloses = [set(inner) for inner in encloses] + [set()] * (len(meshes) - len(encloses))
    scene = Scene(FACES, encloses, np.zeros(meshes.shape[:2]), None)
    return len(scene.crossings(meshes)), scene.misplaced(meshes)


def separated(meshes, encloses=None, **options) -> np.ndarray:
    meshes = np.stack(meshes)
    return separate(meshes, FACES, SPHERE, encloses or [()] * len(meshes), **options)


def test_meshes_that_keep_their_gap_stay():
    meshes = [ball(10, 0, 0, 0), ball(5, 16, 0, 0), ball(3, 0, 0, 0)]
    found = separated(meshes, [(2,), (), ()])
    assert np.abs(found - meshes).max() < 1e-5


def test_a_mesh_that_crosses_itself_leaves_pushes_to_those_that_do_not():
    scene = Scene(FACES, [set(), set(), set()], np.zeros((3, len(SPHERE))), None)
    faces = len(FACES)
    pairs = np.array([[0, 1], [2, faces], [3, 2 * faces]])  # of mesh 0 with itself, with mesh 1 and with mesh 2
    burdens = np.full((3, 3), 0.5)
    for _ in range(10):
        burdens = scene.shifted(burdens, pairs)
    assert burdens == pytest.approx(np.array([[0.5, 0, 0], [1, 0.5, 0.5], [1, 0.5, 0.5]]))
    both = np.array([[0, 1], [2, faces], [faces, faces + 1]])
    assert (scene.shifted(burdens, both) == burdens).all()


def test_pushes_go_by_the_burdens():
    meshes = np.stack([ball(10, 0, 0, 0), ball(10, 18, 0, 0)])
    gaps = np.full((2, len(SPHERE)), GAP_MM)
    scene = Scene(FACES, [set(), set()], gaps, neighbour_mean(FACES, len(SPHERE)))
    stuck = np.zeros((2, len(SPHERE)), dtype=bool)
    moved, _ = scene.pushed(meshes, np.array([[0.5, 0.0], [1.0, 0.5]]), stuck, 0.0)
    assert (moved[0] == meshes[0]).all()
    assert np.abs(moved[1] - meshes[1]).max() > 1.5  # 2 mm deep on the line of centres
    faces = scene.pushed_faces(meshes, np.array([[0.5, 0.0], [1.0, 0.5]]), scene.crossings(meshes))
    assert (faces[0] == meshes[0]).all()
    assert (faces[1] != meshes[1]).any()


def test_two_balls_that_cross_move_half_of_it_each_and_keep_the_gap():
    meshes = [ball(10, -9, 0, 0), ball(10, 9, 0, 0)]  # 2 mm in each other
    found = separated(meshes)
    assert judge(found) == (0, [])
    assert near(found[0], found[1], FACES, 5.0).distance.min() > 0.9 * GAP_MM
    moved = np.linalg.norm(found - meshes, axis=2).max(1)
    assert moved == pytest.approx([1.05, 1.05], abs=0.3)
    still = np.linalg.norm(np.stack(meshes), axis=2) > 15
    assert np.abs(found - meshes)[still].max() < 1e-5


def test_a_mesh_that_sticks_out_of_what_encloses_it_ends_within():
    found = separated([ball(10, 0, 0, 0), ball(5, 7, 0, 0)], [(1,), ()])
    assert judge(found, [(1,), ()]) == (0, [])
    assert near(found[1], found[0], FACES, 50.0).distance.max() < -0.9 * GAP_MM


def test_a_wall_is_kept_where_it_is_asked_for():
    walls = np.zeros((2, len(SPHERE)))
    walls[1, SPHERE[:, 0] > 0] = 2.0
    found = separated([ball(10, 0, 0, 0), ball(9.5, 0, 0, 0)], [(1,), ()], walls_mm=walls)
    distance = -near(found[1], found[0], FACES, 50.0).distance
    assert distance[SPHERE[:, 0] > 0.3].min() > 1.8
    assert np.median(distance[SPHERE[:, 0] < -0.3]) == pytest.approx(0.5, abs=0.1)


def test_edges_that_run_through_faces_though_no_vertex_does_are_moved():
    """Two long thin spindles, at right angles, that cross between their vertices."""
    one = SPHERE * [40, 2, 2]
    other = SPHERE * [2, 40, 2] + [0.7, 0.3, 3.9]
    assert judge(np.stack([one, other]))[0] > 0
    assert judge(separated([one, other])) == (0, [])


def test_a_ball_within_another_that_does_not_enclose_it_leaves_it():
    found = separated([ball(10, 0, 0, 0), ball(2, 1, 0, 0)])
    assert judge(found) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_whatever_crosses_ends_without_crossings_and_the_same_each_time(seed):
    """Ellipsoids of any size in each other, with noise up to their own size, some inside out, some enclosing others."""
    rng = np.random.default_rng(seed)
    meshes = []
    for _ in range(rng.integers(2, 5)):
        mesh = SPHERE * rng.uniform(5, 25, 3) + rng.uniform(-15, 15, 3)
        mesh = mesh + rng.normal(0, rng.choice([0, 1, 3, 6]), mesh.shape) * rng.random((len(mesh), 1))
        meshes.append(mesh * [-1, 1, 1] if rng.random() < 0.2 else mesh)
    encloses = [()] * len(meshes)
    encloses[0] = (1,) if rng.random() < 0.5 else ()
    found = separated(meshes, encloses)
    assert judge(found, encloses) == (0, [])
    assert all(mesh_volume_ml(mesh, FACES) > 0 for mesh in found)
    assert np.array_equal(found, separated(meshes, encloses))


@pytest.mark.parametrize("overlap_mm", [9, 15, 20])
def test_balls_deep_in_each_other_part_at_a_wide_gap_and_no_wider(overlap_mm):
    """From 15 mm on each holds the other's centre: most vertices' nearest way out leads on through the other."""
    sphere, faces = (tensor.double().numpy() for tensor in icosphere(3))
    faces = faces.astype(int)
    away = np.array([(23 - overlap_mm) / 2, 0.05, 0.02])
    meshes = np.stack([11.5 * sphere - away, 11.5 * sphere + away])
    found = separate(meshes, faces, sphere, [(), ()], gap_mm=1.0)
    least = near(found[0], found[1], faces, 50.0).distance.min()
    assert 0.9 < least < 1.5
    assert np.linalg.norm(found - meshes, axis=2).mean() < overlap_mm / 5


def test_meshes_in_one_place_share_it_out_with_what_they_enclose():
    """As an untrained network leaves them; the fourth is the first one's."""
    encloses = [(3,), (), (), ()]
    meshes = [ball(10, 0, 0, 0), ball(10, 0, 0, 0), ball(10, 0.1, 0, 0), ball(9, 0, 0, 0)]
    found = separated(meshes, encloses)
    assert judge(found, encloses) == (0, [])
    shares = [mesh_volume_ml(mesh, FACES) / mesh_volume_ml(meshes[0], FACES) for mesh in found]
    assert min(shares) > 0.1
    assert sum(shares[:3]) > 0.5


def test_meshes_in_one_place_within_another_end_without_crossings():
    encloses = [(1, 2), (), ()]
    found = separated([ball(10, 0, 0, 0), ball(6, 0, 0, 0), ball(6, 0, 0, 0)], encloses)
    assert judge(found, encloses) == (0, [])


@pytest.mark.parametrize("radii", [(10, 5), (10, 9, 8), (0, 0, 0)])
def test_meshes_around_one_point_end_apart(radii):
    """None lies in the other's way more on one side than on another: the smallest stays, and shells become pieces."""
    meshes = [ball(radius, 0, 0, 0) for radius in radii]
    found = separated(meshes)
    assert judge(found) == (0, [])
    volumes = [mesh_volume_ml(mesh, FACES) for mesh in found]
    assert min(volumes) > 0
    assert sum(volumes) > 0.4 * mesh_volume_ml(meshes[0], FACES)


def test_where_pushing_does_not_end_one_mesh_makes_way_and_the_others_stay():
    """A shell, as a network that is not sure where the right ventricle lies may leave it, laid deep around a ball."""
    sphere, faces = (tensor.double().numpy() for tensor in icosphere(3))
    faces = faces.astype(int)
    from_tip = np.arccos(sphere[:, 0].clip(-1, 1))
    angle = np.radians(155) * (1 - np.abs(from_tip / (np.pi / 2) - 1))  # outward over the tip, back within
    radius = 26 + 5 * np.cos(from_tip)
    around = sphere[:, 1:] / np.maximum(np.linalg.norm(sphere[:, 1:], axis=1, keepdims=True), 1e-9)
    shell = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)[:, None] * around])
    meshes = np.stack([shell + np.random.default_rng(0).normal(0, 0.5, shell.shape), 25 * sphere, 18 * sphere])
    found = separate(meshes, faces, sphere, [(), (2,), ()])
    assert not crossing_faces_of(found, faces)[0].any()
    assert not crossing_faces_of(found, faces)[1].any()
    kept = [mesh_volume_ml(mesh, faces) / mesh_volume_ml(was, faces) for mesh, was in zip(found, meshes, strict=True)]
    assert kept[0] > 0.05
    assert min(kept[1:]) > 0.98


def test_the_middle_of_meshes_with_a_third_in_each_other_is_no_border():
    """Neighbours that overlap as those of real hearts do are pushed, each where it has to."""
    scene = Scene(FACES, [set(), set()], np.full((2, len(SPHERE)), GAP_MM), None)
    apart = np.stack([ball(10, 0, 0, 0), ball(10, 8, 0, 0)])
    assert scene.shared_out(apart, [None, None]) is apart
    deep = np.stack([ball(10, 0, 0, 0), ball(10, 4, 0, 0)])
    moved = scene.shared_out(deep, [None, None])
    assert moved[0, :, 0].max() == pytest.approx(2 - GAP_MM / 2)
    assert moved[1, :, 0].min() == pytest.approx(2 + GAP_MM / 2)
    kept = deep[0, :, 0] < 2 - GAP_MM / 2
    assert np.allclose(moved[0, kept], deep[0, kept])


def test_open_meshes_and_coordinates_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match=r"^faces: wanted those of a closed mesh, found edges without two faces"):
        separate(ball(10, 0, 0, 0)[None], FACES[1:], SPHERE, [()])
    broken = ball(10, 0, 0, 0)
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match=r"^vertices: wanted finite coordinates, found NaN or infinity"):
        separated([broken, ball(10, -9, 0, 0)])


@pytest.mark.parametrize("shape", [(0, 162, 3), (2, 0, 3)])
def test_no_meshes_and_no_vertices_give_none(shape):
    assert separate(np.zeros(shape), FACES, SPHERE, [()] * shape[0]).shape == shape


def test_meshes_far_from_each_other_stay():
    meshes = np.stack([ball(10, 0, 0, 0), ball(10, 4e4, 0, 0), ball(2, -4e4, 4e4, 0)])
    assert np.abs(separated(meshes) - meshes).max() < 0.005  # what float32 tells apart there


def test_the_same_crossings_are_found_step_by_step_as_at_once():
    rng = np.random.default_rng(0)
    meshes = snapped(
        np.stack([ball(10, 0, 0, 0), ball(10, 9, 0, 0), ball(5, 0, 9, 0)]) + rng.normal(0, 0.5, (3, 162, 3))
    )
    scene = Scene(FACES, [set(), set(), set()], np.zeros((3, 162)), None)
    crossings = Crossings(scene)
    for number in range(4):
        found = {tuple(sorted(pair)) for pair in crossings.of(meshes).tolist()}
        assert found == {tuple(sorted(pair)) for pair in scene.crossings(meshes).tolist()}
        assert len(found) > 100
        meshes[number % 3, rng.integers(0, 162, 20)] += rng.normal(0, 1, (20, 3))
        meshes = snapped(meshes)
