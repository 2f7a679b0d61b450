"""The phantom's anatomy as signed distances: negative inside, mm, at points (3, ...) of one patient frame (mm RAS).

The arrangement and the shapes are modelled by hand; docs/phantom.md compares the resulting sizes with published adult
ranges. A "field" is an array (...) of such distances, one for each point.
Labelled structures cannot overlap: where b is carved from a, a >= -b holds at every point of the lattice, so it also
holds for whatever is interpolated linearly between them.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from implicitmeshnet.phantom.patient import Patient
from implicitmeshnet.phantom.solids import Curve, ellipsoid, half_space, intersection, tube, union

CENTRE = np.array([-6.0, 5.0, 2.0])  # of the heart, in the patient frame; the heart turns about it
BASE = np.array([-6.0, -6.0, 8.0])  # middle of the left ventricle's base
APEX = np.array([-0.74, 0.50, -0.45])  # unit vector, base to apex: left, anterior, inferior
SEPTUM = np.array([0.567, 0.822, -0.019])  # unit vector, left to right ventricle
INFERIOR = np.cross(APEX, SEPTUM)
LV_AXES = np.stack([APEX, SEPTUM, INFERIOR], axis=1)
AORTIC_VALVE = BASE + 13 * np.array([0.147, 0.773, 0.617])
PULMONARY_VALVE = np.array([-16, 41, 35])
LEFT_ATRIUM = np.array([6, -37, 15])
ARCH = (  # the aorta's path beyond its ascending part: over the heart and down along the spine
    [11, 1, 80],
    [2, -14, 89],
    [-10, -36, 90],
    [-17, -58, 78],
    [-16, -70, 55],
    [-13, -71, 0],
    [-6, -70, -100],
    [4, -70, -160],
)
PULMONARY_VEINS = (
    [[24, -42, 20], [46, -50, 27], [72, -52, 40]],
    [[24, -46, 8], [46, -57, 2], [70, -64, -8]],
    [[-14, -42, 24], [-38, -50, 33], [-64, -50, 48]],
    [[-14, -44, 10], [-36, -56, 5], [-62, -64, -6]],
)
COMMON_VEIN = [[-14, -43, 17], [-37, -53, 19], [-63, -57, 21]]
"""In place of the two left ones."""
MIDDLE_VEIN = [[26, -40, 13], [48, -42, 14], [72, -36, 12]]
"""A third one on the right."""
WIDEST_MM = 38.5
"""Outer radius of a usual left ventricle, at the most."""
VALVE_MM = 30.0
"""How far the mitral valve lies before the middle of a usual left atrium."""
USUAL_MM = 33.0
"""The same in the mean."""
SUPRA_AORTIC = (
    [[4, -10, 90], [14, -8, 118], [24, -12, 190]],
    [[-4, -24, 92], [-8, -18, 125], [-14, -16, 190]],
    [[-12, -38, 92], [-20, -34, 125], [-40, -24, 180]],
)
SPINE_X = 12.0  # the chest's plane of symmetry
TABLE_RADIUS_MM = 360.0
CHEST_CENTRE = np.array([SPINE_X, -24.0, 22.0])  # of a view of the whole chest, in the patient frame
Fields = dict[str, np.ndarray]
"""Fields of one shape by the name of what they describe."""


def heart(points: np.ndarray, patient: Patient) -> tuple[Fields, Fields]:
    """The seven labelled structures and the unlabelled blood vessels: two dicts of fields at points (3, ...).

    The vessels are "left" and "right", by the heart whose blood they hold, and the "papillary" muscles.
    """
    lv, cup = _left_ventricle(points, patient)
    left = union(lv, cup)
    # Each structure leaves room for those before it; a gap in mm is the wall between two that are not connected.
    ao = _carve(_ascending_aorta(points, patient), (left, 0))
    pa = _carve(_pulmonary_artery(points, patient), (ao, 2))
    la = _carve(_left_atrium(points, patient), (left, 0), (ao, 2.5), (pa, 2.5))
    ra = _carve(_right_atrium(points, patient), (left, 1), (ao, 2.5), (pa, 2.5), (la, 2.5))
    rv = _carve(_right_ventricle(points, patient), (left, 0), (ao, 2.5), (pa, 0), (la, 2.5), (ra, 0))
    myocardium = intersection(cup, -lv)
    chambers = {"LV": lv, "RV": rv, "LA": la, "RA": ra, "Myo": myocardium, "AO": ao, "PA": pa}
    vessels = {"right": _right_vessels(points), "papillary": _papillary_muscles(points, patient)}
    vessels["left"] = _left_vessels(points, chambers, cup, patient)
    return chambers, vessels


def _carve(solid: np.ndarray, *others: tuple[np.ndarray, float]) -> np.ndarray:
    """What is left of a solid when each (other, gap in mm) and the gap around it are taken away."""
    for other, gap_mm in others:
        solid = intersection(solid, gap_mm - other, blend_mm=1.5)
    return solid


def _left_ventricle(points: np.ndarray, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """The cavity, and the solid that it and its wall fill: two ellipsoids cut at the base."""
    base = half_space(points, BASE, -APEX)
    middle = BASE + 18 * APEX
    radius = patient.cavity_radius
    cavity = ellipsoid(points, middle, [patient.cavity_length, radius, radius], LV_AXES)
    # The wall is thinner at the apex than at the sides.
    outer_radius = radius + patient.wall_mm
    outer_length = patient.cavity_length + 0.8 * patient.wall_mm
    cup = ellipsoid(points, middle, [outer_length, outer_radius, outer_radius], LV_AXES)
    return intersection(cavity, base, blend_mm=3), intersection(cup, base + 1, blend_mm=3)


def _ascending_aorta(points: np.ndarray, patient: Patient) -> np.ndarray:
    path: Curve = [AORTIC_VALVE + 8 * APEX, AORTIC_VALVE, [5, 4, 28], [13, 9, 48], [14, 8, 66], [11, 1, 80]]
    return tube(points, path, patient.aorta_radius + np.array([-2, 0, 1.5, 0, -0.5, -1]))


def _pulmonary_artery(points: np.ndarray, patient: Patient) -> np.ndarray:
    """The trunk from the valve's plane, crossing in front of the aorta, and its two branches."""
    radius = patient.pa_radius
    trunk_path: Curve = [PULMONARY_VALVE - [0, 2, 10], [-16, 34, 49], [-14, 16, 62], [-10, 0, 66]]
    trunk = tube(points, trunk_path, [radius, 1.05 * radius, radius, 0.9 * radius])
    to_left = tube(points, [[-10, 2, 65], [-28, -14, 69], [-46, -28, 64]], [0.8 * radius, 9, 7.5])
    usual = np.array([[-11, 2, 65], [0, -15, 62], [20, -22, 58], [42, -24, 53]])
    drop = patient.pa_drop_mm * np.array([[0, 0, 0], [0, -0.4, -0.7], [0, -0.7, -1], [0, -0.7, -1]])
    to_right = tube(points, list(usual + drop), [0.8 * radius, 9.5, 9, 8])
    tree = union(trunk, to_left, to_right, blend_mm=6)
    beyond_valve = half_space(points, PULMONARY_VALVE, [0, 0.17, -0.985])
    return intersection(tree, beyond_valve, blend_mm=2)


def _left_atrium(points: np.ndarray, patient: Patient) -> np.ndarray:
    """Body, funnel to the mitral valve, appendage and stubs of four pulmonary veins."""
    filled = np.array([31, 20 * patient.la_depth, 25]) * patient.la_scale * (1 + 0.12 * patient.emptied)
    centre = LEFT_ATRIUM + _forward(patient)
    body = ellipsoid(points, centre, filled)
    mitral_valve = BASE - 8 * SEPTUM + 3 * INFERIOR
    radii = [17, 19] if patient.is_usual else np.full(2, 15 * patient.la_depth)
    funnel = tube(points, [centre, mitral_valve], radii)
    from_body: Curve = [_forward(patient) + np.array([-14, -28, 24]), [-30, -18, 31], [-36, -6, 31]]
    appendage = _appendage(points, from_body, [9, 8.5, 7], patient)
    stubs = []
    for path, radius, length in _veins(patient):
        stubs.append(tube(points, _stub(path, length), [radius + 1, radius]))
    return union(body, funnel, appendage, *stubs, blend_mm=8)


def _forward(patient: Patient) -> np.ndarray:
    """How far a left atrium lies before a usual one, so that one of wide variety reaches the valve however flat it is.

    (3,) mm.
    """
    if patient.is_usual:
        return np.zeros(3)
    depth = 20 * patient.la_depth * patient.la_scale[1]
    return np.array([0.0, np.clip(VALVE_MM - depth, 0, 20), 0.0])


def _appendage(points: np.ndarray, path: Curve, radii: Sequence[float], patient: Patient) -> np.ndarray:
    """A tube from the first point of a path on, as long and wide as the patient has it."""
    start, *others = np.array(path, float)
    scaled = [start + patient.appendage_scale * (point - start) for point in others]
    return tube(points, [start, *scaled], np.array(radii) * np.sqrt(patient.appendage_scale))


def _veins(patient: Patient) -> Sequence[tuple[Curve, float, float]]:
    """Path, radius and stub's length of each pulmonary vein that joins the left atrium.

    Where there are three, the left ones have a common trunk; a fifth is a middle one on the right.
    """
    veins = list(zip(PULMONARY_VEINS, patient.vein_radius, patient.stub_length, strict=True))
    number = int(patient.veins)
    if number == 3:
        veins[2:] = [(COMMON_VEIN, 1.35 * patient.vein_radius[2], patient.stub_length[2])]
    if number == 5:
        veins.append((MIDDLE_VEIN, 0.7 * patient.vein_radius[0], patient.stub_length[0]))
    return [(list(_forward(patient) + path), radius, length) for path, radius, length in veins]


def _stub(path: Curve, length: float) -> list[np.ndarray]:
    """The first part of a vein's path, to `length` mm beyond the atrium's surface, which lies 8 mm from its start."""
    start = np.array(path[0])
    step = np.subtract(path[1], path[0])
    return [start, start + (8 + length) * step / np.linalg.norm(step)]


def _right_atrium(points: np.ndarray, patient: Patient) -> np.ndarray:
    """Body, appendage in front of the aorta, and stubs of the two venae cavae."""
    body = ellipsoid(points, [44, 1, -3], [23, 27, 31] * patient.ra_scale)
    appendage = _appendage(points, [[40, 2, 10], [34, 20, 20], [26, 27, 22]], [11, 10, 8], patient)
    upper = tube(points, [[41, -6, 10], [38, -6, 32]], [10, 9])
    lower = tube(points, [[40, -8, -15], [37, -14, -36]], [13, 11.5])
    return union(body, appendage, upper, lower, blend_mm=8)


def _right_ventricle(points: np.ndarray, patient: Patient) -> np.ndarray:
    """Body, inlet from the tricuspid valve and outflow tract; carving makes it a crescent around the septum."""
    body = ellipsoid(points, *_right_body(patient))
    inlet_path = np.array([[-5, 30, -18], [22, 15, -9]])
    outflow_path = np.array([[-10, 41, -8], [-16, 43, 16], PULMONARY_VALVE - [0, 2, -8]])
    inlet_radii = np.array([20.0, 20])
    outflow_radii = np.array([20, 16, patient.pa_radius])
    if not patient.is_usual:
        # Both follow the septum and contract with the body.
        wider = patient.rv_scale[0] * (1 - 0.35 * patient.emptied)
        inlet_radii = 0.9 * wider * inlet_radii
        outflow_radii[:2] *= 0.8 * wider
        inlet_path = inlet_path + _aside_of_usual(patient)
        outflow_path = outflow_path + np.outer([1, 0.5, 0], _aside_of_usual(patient))
    inlet = tube(points, list(inlet_path), inlet_radii)
    outflow = tube(points, list(outflow_path), outflow_radii)
    return union(body, inlet, outflow, blend_mm=10)


def _right_body(patient: Patient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, semi-axes and directions of the right ventricle's body.

    In wide variety its middle lies on the left one's wall, its apex stays behind the left one's, and it turns about
    the left one's axis. At end-systole its free wall has come near the septum.
    """
    if patient.is_usual:
        outer_mm = patient.cavity_radius + patient.wall_mm
        pushed = max(0.0, outer_mm - WIDEST_MM) * SEPTUM
        lengths = np.array([45, 24, 33]) * patient.rv_scale
        return np.array([-13.0, 39, -16]) + pushed, lengths, LV_AXES
    outer_mm = patient.cavity_radius + patient.wall_mm
    left_apex_mm = 18 + patient.cavity_length + 0.8 * patient.wall_mm  # from the base
    first, last = -6.5, left_apex_mm - patient.rv_apex_mm
    depth = 24 * patient.rv_depth * patient.rv_scale[1] * (1 - 0.45 * patient.emptied)
    breadth = (9 + 0.45 * outer_mm) * patient.rv_scale[2] * (1 - 0.12 * patient.emptied)
    turn = Rotation.from_rotvec(np.radians(patient.septum_deg) * APEX / np.linalg.norm(APEX)).as_matrix()
    axes = turn @ LV_AXES
    centre = BASE + axes @ [(first + last) / 2, outer_mm, 7]
    return centre, np.array([(last - first) / 2, depth, breadth]), axes


def _aside_of_usual(patient: Patient) -> np.ndarray:
    """How much farther from the left ventricle's axis than usual its wall ends: (3,) mm towards the right one."""
    return (patient.cavity_radius + patient.wall_mm - USUAL_MM) * SEPTUM


def _left_vessels(points: np.ndarray, chambers: Fields, cup: np.ndarray, patient: Patient) -> np.ndarray:
    """The aorta beyond its ascending part with its branches, the pulmonary veins, and the coronary arteries."""
    veins = _pulmonary_veins(points, patient)
    coronaries = _coronaries(chambers, cup)
    return union(_aortic_arch(points, patient), *veins, *coronaries)


def _aortic_arch(points: np.ndarray, patient: Patient) -> np.ndarray:
    """The arch, its three branches and the descending aorta, which tapers downwards."""
    descending = 0.8 * patient.aorta_radius * np.array([1.08, 1.06, 1.04, 1, 1, 0.95, 0.9])
    aorta = tube(points, ARCH, [patient.aorta_radius - 1, *descending])
    branches = [tube(points, path, [6, 5, 4]) for path in SUPRA_AORTIC]
    return union(aorta, *branches, blend_mm=3)


def _pulmonary_veins(points: np.ndarray, patient: Patient) -> list[np.ndarray]:
    veins = []
    for path, radius, _ in _veins(patient):
        veins.append(tube(points, path, [radius, radius, 3]))
    return veins


def _coronaries(chambers: Fields, cup: np.ndarray) -> list[np.ndarray]:
    """Coronary arteries: threads in the grooves between the left ventricle's solid `cup`, the RV and the atria."""
    between_ventricles = _thread(cup - 3, chambers["RV"] - 4, 1.6)
    left = _thread(cup - 4, chambers["LA"] - 4, 1.5)
    right = _thread(chambers["RA"] - 4, chambers["RV"] - 4, 1.7)
    return [between_ventricles, left, right]


def _thread(first: np.ndarray, second: np.ndarray, radius: float) -> np.ndarray:
    """A thread of a radius in mm along the curve where both fields vanish."""
    return np.sqrt(first**2 + second**2) - np.float32(radius)


def _right_vessels(points: np.ndarray) -> np.ndarray:
    """The venae cavae, the vein from the left arm, and the pulmonary arteries within the lungs."""
    upper_cava = tube(points, [[38, -6, 30], [37, -4, 60], [32, 2, 100], [36, 0, 190]], [9, 8.5, 9, 5])
    left_arm = tube(points, [[32, 2, 98], [8, 16, 112], [-18, 10, 132], [-34, -2, 190]], [7, 6, 6, 5])
    path = [[37, -14, -34], [34, -19, -55], [28, -22, -95], [26, -40, -160]]
    lower_cava = tube(points, path, [11.5, 11, 11, 11])
    right_lung = tube(points, [[40, -24, 53], [60, -32, 44], [84, -36, 24]], [8, 6, 3])
    left_lung = tube(points, [[-45, -28, 64], [-60, -38, 55], [-76, -46, 30]], [7.5, 6, 3])
    return union(upper_cava, left_arm, lower_cava, right_lung, left_lung)


def _papillary_muscles(points: np.ndarray, patient: Patient) -> np.ndarray:
    muscles = []
    for side in (0.8 * INFERIOR + 0.2 * SEPTUM, -0.5 * INFERIOR - 0.75 * SEPTUM):
        tip = BASE + 30 * APEX + 0.6 * patient.cavity_radius * side
        root = BASE + 60 * APEX + 0.85 * patient.cavity_radius * side
        muscles.append(tube(points, [tip, root], patient.papillary_scale * np.array([3, 5])))
    return union(*muscles)


def thorax(points: np.ndarray, chambers: Fields, vessels: Fields, patient: Patient) -> Fields:
    """Fields of the heart's surroundings at points (3, ...) of the patient frame, by the name of the organ."""
    cage, skin = _torso(points, patient)
    bone, vertebrae = _skeleton(points, cage, patient)
    height = patient.diaphragm_height
    right = ellipsoid(points, [72, -10, -113 + height], [105, 95, 84])
    left = ellipsoid(points, [-72, -20, -123 + height], [90, 90, 80])
    spleen = ellipsoid(points, [-82, -72, -92 + height], [34, 34, 50])
    diaphragm = union(right, left, blend_mm=15)
    organs = {"skin": skin, "bone": bone, "trachea": _trachea(points)}
    organs["muscle"] = _muscles(points, cage, vertebrae)
    # The lungs fill the cage but for the heart in its fat, what lies before and behind it, and the belly below.
    middle = _mediastinum(points, chambers, vessels, patient)
    spared = union(*middle, diaphragm - 3, blend_mm=14)
    organs["lung"] = intersection(cage + 9, -spared, blend_mm=4)
    # The belly's organs fill the domes under the diaphragm and stay within the ribs.
    for name, solid in (("liver", right), ("stomach", left), ("spleen", spleen), ("diaphragm", diaphragm)):
        organs[name] = intersection(solid, cage + 6)
    return organs


def _mediastinum(
    points: np.ndarray, chambers: Fields, vessels: Fields, patient: Patient
) -> tuple[np.ndarray, np.ndarray]:
    """What lies between the lungs: the heart and its vessels in their fat, and the tissue behind, before and above."""
    sac = union(*chambers.values(), blend_mm=24) - patient.fat_thickness
    sac = union(sac, vessels["left"] - 2, vessels["right"] - 2)
    behind = ellipsoid(points, [8, -72, 0], [24, 26, np.inf])
    before = ellipsoid(points, [6, 60, 20], [12, 26, np.inf])
    above = ellipsoid(points, [8, -24, 165], [34, 36, 80])
    return sac, union(behind, before, above)


def _torso(points: np.ndarray, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """The rib cage's surface and the skin: elliptic cylinders that close to domes above the heart."""
    width, depth = patient.chest_scale
    # Below 20 mm the height counts as 0, so the lower half of each ellipsoid becomes a cylinder.
    above = points.copy()
    np.maximum(points[2] - 20, 0, out=above[2])
    cage = ellipsoid(above, [SPINE_X, -20, 0], [142 * width, 92 * depth, 150])
    half_width = 156 * width + patient.skin_depth
    half_depth = 94 * depth + patient.skin_depth
    skin = ellipsoid(above, [SPINE_X, -22, 0], [half_width, half_depth, 260])
    return cage, skin


def _skeleton(points: np.ndarray, cage: np.ndarray, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """All bone, and the column of vertebral bodies and discs."""
    front = -20 + 88 * patient.chest_scale[1]
    tilt = Rotation.from_euler("x", 9, degrees=True).as_matrix()
    sternum = ellipsoid(points, [SPINE_X, front, 30], [17, 6, 95], tilt)
    column, spine = _spine(points, patient)
    ribs = _ribs(points, cage, patient)
    clavicles = [_clavicle(points, side) for side in (-1, 1)]
    blades = [_shoulder_blade(points, side, patient) for side in (-1, 1)]
    return union(ribs, sternum, *spine, *clavicles, *blades), column


def _ribs(points: np.ndarray, cage: np.ndarray, patient: Patient) -> np.ndarray:
    """Flat rings around the cage every 30 mm that slope down to the front, where cartilage takes their place."""
    _, y, z = points
    depth = (cage + 4) / 4
    height = ((z + 0.5 * y + patient.rib_shift) % 30 - 15) / 6.5
    rings = 4 * (np.sqrt(depth**2 + height**2) - 1)
    return intersection(rings, y - 50)


def _spine(points: np.ndarray, patient: Patient) -> tuple[np.ndarray, list[np.ndarray]]:
    """The column of vertebral bodies and discs, and the bone in and behind it: arches, processes and bodies."""
    back = -20 - 73 * patient.chest_scale[1]
    column = ellipsoid(points, [SPINE_X, back, 0], [18, 15, np.inf])
    # How far along the body the middle of the nearest vertebra is; they repeat every 27 mm.
    along = np.abs((points[2] + patient.rib_shift) % 27 - 13.5)
    arch = np.abs(ellipsoid(points, [SPINE_X, back - 24, 0], [14, 12, np.inf])) - 4
    process = ellipsoid(points, [SPINE_X, back - 40, 0], [4, 14, np.inf])
    process = process + np.maximum(along - 8, 0)
    bodies = intersection(column, along - 11.5, blend_mm=3)
    return column, [arch, process, bodies]


def _clavicle(points: np.ndarray, side: int) -> np.ndarray:
    """The collar bone of a side, -1 left and 1 right."""
    inner = [SPINE_X + 18 * side, 46, 142]
    middle = [SPINE_X + 75 * side, 30, 158]
    outer = [SPINE_X + 125 * side, -15, 165]
    return tube(points, [inner, middle, outer], [8, 6, 6])


def _shoulder_blade(points: np.ndarray, side: int, patient: Patient) -> np.ndarray:
    width, depth = patient.chest_scale
    centre = [SPINE_X + 108 * side * width, -20 - 78 * depth, 105]
    turn = Rotation.from_euler("z", 42 * side, degrees=True).as_matrix()
    return ellipsoid(points, centre, [42, 5, 75], turn)


def _muscles(points: np.ndarray, cage: np.ndarray, vertebrae: np.ndarray) -> np.ndarray:
    """Intercostal, back and chest muscles, cartilage of the ribs in front, and the oesophagus."""
    _, y, z = points
    wall = intersection(cage - 2, -cage - 10)
    thicker = 9 * np.clip((20 - y) / 60, 0, 1)  # towards the back
    flank = intersection(cage - 5 - thicker, 1 - cage, -z - 90, blend_mm=3)
    back = [ellipsoid(points, [SPINE_X + 30 * side, -118, 0], [22, 16, np.inf]) for side in (-1, 1)]
    breast = [_breast_muscle(points, side) for side in (-1, 1)]
    path = [[6, -50, 190], [2, -56, 60], [2, -60, -20], [-14, -50, -100]]
    oesophagus = tube(points, path, [6, 6, 7, 8])
    return union(wall, flank, vertebrae, *back, *breast, oesophagus)


def _breast_muscle(points: np.ndarray, side: int) -> np.ndarray:
    turn = Rotation.from_euler("z", -33 * side, degrees=True).as_matrix()
    return ellipsoid(points, [SPINE_X + 63 * side, 62, 60], [60, 14, 60], turn)


def _trachea(points: np.ndarray) -> np.ndarray:
    """Windpipe and main bronchi: the air in them."""
    windpipe = tube(points, [[12, -28, 190], [10, -34, 110], [8, -42, 76]], [8, 8, 8])
    left = tube(points, [[8, -42, 76], [-20, -42, 56], [-42, -46, 46]], [7, 6, 5])
    right = tube(points, [[8, -42, 76], [34, -44, 60], [52, -46, 48]], [7, 6.5, 5])
    return union(windpipe, left, right, blend_mm=4)


def table(points: np.ndarray, patient: Patient) -> np.ndarray:
    """The field of the scanner's table, negative above it: a shallow trough along the patient, not warped.

    The back lies on it and is pressed in by `patient.back_pressed_in`.
    """
    x, y, _ = points
    back = -22 - (94 * patient.chest_scale[1] + patient.skin_depth)
    top = back + patient.back_pressed_in
    sideways = x - np.float32(SPINE_X)
    upwards = y - np.float32(top + TABLE_RADIUS_MM)
    return np.hypot(sideways, upwards) - np.float32(TABLE_RADIUS_MM)
