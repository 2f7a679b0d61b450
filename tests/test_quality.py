"""Quality of triangles, against triangles that are computed by hand."""

import meshes
import numpy as np
import pytest

from implicitmeshnet.surfaces.quality import QUALITY, aspect_ratios, edge_lengths, smallest_angles, triangle_quality

ONE = np.array([[0, 1, 2]])
EQUILATERAL = np.array([[0, 0, 0], [2, 0, 0], [1, np.sqrt(3), 0]])
RIGHT_3_4_5 = np.array([[0, 0, 0], [3, 0, 0], [0, 4.0, 0]])
FLAT = np.array([[0, 0, 0], [1, 0, 0], [3.0, 0, 0]])


def test_an_equilateral_triangle_has_60_degrees_and_aspect_ratio_1():
    assert smallest_angles(EQUILATERAL, ONE) == pytest.approx([60])
    assert aspect_ratios(EQUILATERAL, ONE) == pytest.approx([1])


def test_the_triangle_3_4_5_has_the_angle_and_ratio_of_its_sides():
    assert smallest_angles(RIGHT_3_4_5, ONE) == pytest.approx([np.degrees(np.arcsin(3 / 5))])
    # Longest side 5, inscribed circle of radius 1, so 5 / 2, over an equilateral triangle's sqrt(3).
    assert aspect_ratios(RIGHT_3_4_5, ONE) == pytest.approx([2.5 / np.sqrt(3)])


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
def test_the_order_of_corners_and_the_size_do_not_matter(order):
    faces = np.array([order])
    assert smallest_angles(RIGHT_3_4_5 * 1e-3, faces) == pytest.approx(smallest_angles(RIGHT_3_4_5, ONE))
    assert aspect_ratios(RIGHT_3_4_5 * 1e3, faces) == pytest.approx(aspect_ratios(RIGHT_3_4_5, ONE))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("triangle", [FLAT, np.zeros((3, 3))])
def test_a_face_without_area_has_no_angle_and_an_infinite_ratio(triangle):
    assert smallest_angles(triangle, ONE) == pytest.approx([0])
    assert aspect_ratios(triangle, ONE).tolist() == [np.inf]


def test_a_thin_triangle_keeps_its_angle():
    needle = np.array([[0, 0, 0], [1, 0, 0], [1, 1e-9, 0]])
    assert smallest_angles(needle, ONE) == pytest.approx([np.degrees(1e-9)])


def test_an_edge_of_two_faces_counts_once():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1.0, 0]])
    lengths = edge_lengths(square, np.array([[0, 1, 2], [0, 2, 3]]))
    assert np.sort(lengths) == pytest.approx([1, 1, 1, 1, np.sqrt(2)])


def test_of_twenty_faces_one_bad_one_is_the_5th_percentile_of_angles():
    vertices = np.concatenate([EQUILATERAL, RIGHT_3_4_5])
    good = triangle_quality(vertices, np.array([[0, 1, 2]] * 21 + [[3, 4, 5]]))
    bad = triangle_quality(vertices, np.array([[0, 1, 2]] * 18 + [[3, 4, 5]] * 2))
    assert good["smallest_angle_p05_deg"] == pytest.approx(60)
    assert good["aspect_ratio_p95"] == pytest.approx(1)
    assert bad["smallest_angle_p05_deg"] == pytest.approx(np.degrees(np.arcsin(3 / 5)))
    assert bad["aspect_ratio_p95"] == pytest.approx(2.5 / np.sqrt(3))


def test_a_boxs_edges_have_the_mean_and_deviation_of_its_sides_and_diagonals():
    found = triangle_quality(*meshes.box((0, 0, 0), (3, 4, 12)))
    lengths = [3] * 4 + [4] * 4 + [12] * 4 + [5] * 2 + [np.sqrt(153)] * 2 + [np.sqrt(160)] * 2
    assert tuple(found) == QUALITY
    assert found["edge_mean_mm"] == pytest.approx(np.mean(lengths))
    assert found["edge_sd_mm"] == pytest.approx(np.std(lengths))


def test_vtk_finds_the_same_ratios_and_angles():
    vtk = pytest.importorskip("vtk", reason="VTK judges where it is installed")
    rng = np.random.default_rng(0)
    for triangle in rng.normal(size=(20, 3, 3)):
        points = vtk.vtkPoints()
        for point in triangle:
            points.InsertNextPoint(*point)
        cell = vtk.vtkTriangle()
        cell.GetPoints().DeepCopy(points)
        rounded = np.array([cell.GetPoints().GetPoint(corner) for corner in range(3)])
        assert vtk.vtkMeshQuality.TriangleAspectRatio(cell) == pytest.approx(aspect_ratios(rounded, ONE)[0])
        assert vtk.vtkMeshQuality.TriangleMinAngle(cell) == pytest.approx(smallest_angles(rounded, ONE)[0])
