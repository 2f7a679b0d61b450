"""The phantom's anatomy as signed distances: negative inside, mm, at points (3, ...) of one patient frame (mm RAS).

Arrangement and shapes are modelled by hand; docs/phantom.md holds the resulting sizes against published adult ranges.
`p` is phantom.Parameters.
Labelled structures cannot overlap: where b is carved from a, a >= -b, and linear interpolation keeps that.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from implicitmeshnet.phantom.solids import ellipsoid, half_space, intersection, tube, union

CENTRE = np.array([-6.0, 5.0, 2.0])  # of the heart, in the patient frame; the heart turns about it
BASE = np.array([-6.0, -6.0, 8.0])  # middle of the left ventricle's base
APEX = np.array([-0.74, 0.50, -0.45])  # unit vector, base to apex: left, anterior, inferior
SEPTUM = np.array([0.567, 0.822, -0.019])  # unit vector, left to right ventricle
INFERIOR = np.cross(APEX, SEPTUM)
LV_AXES = np.stack([APEX, SEPTUM, INFERIOR], axis=1)
AORTIC_VALVE = BASE + 13 * np.array([0.147, 0.773, 0.617])
PULMONARY_VALVE = np.array([-16, 41, 35])
LEFT_ATRIUM = np.array([6, -37, 15])
PULMONARY_VEINS = (
    [[24, -42, 20], [46, -50, 27], [72, -52, 40]],
    [[24, -46, 8], [46, -57, 2], [70, -64, -8]],
    [[-14, -42, 24], [-38, -50, 33], [-64, -50, 48]],
    [[-14, -44, 10], [-36, -56, 5], [-62, -64, -6]],
)
SUPRA_AORTIC = (
    [[4, -10, 90], [14, -8, 118], [24, -12, 190]],
    [[-4, -24, 92], [-8, -18, 125], [-14, -16, 190]],
    [[-12, -38, 92], [-20, -34, 125], [-40, -24, 180]],
)
SPINE_X = 12.0  # the chest's plane of symmetry
TABLE_RADIUS_MM = 360.0
CHEST_CENTRE = np.array([SPINE_X, -24.0, 22.0])  # of a view of the whole chest, in the patient frame


def heart(points, p):
    """The seven labelled structures and the unlabelled blood vessels: two dicts of fields at points (3, ...)."""
    lv, cup = _left_ventricle(points, p)
    left = union(lv, cup)
    ao = _carve(_ascending_aorta(points, p), (left, 0))
    pa = _carve(_pulmonary_artery(points, p), (ao, 2))
    la = _carve(_left_atrium(points, p), (left, 0), (ao, 2.5), (pa, 2.5))
    ra = _carve(_right_atrium(points, p), (left, 1), (ao, 2.5), (pa, 2.5), (la, 2.5))
    rv = _carve(_right_ventricle(points, p), (left, 0), (ao, 2.5), (pa, 0), (la, 2.5), (ra, 0))
    chambers = {"LV": lv, "RV": rv, "LA": la, "RA": ra, "Myo": intersection(cup, -lv), "AO": ao, "PA": pa}
    return chambers, _vessels(points, chambers, cup, p)


def _left_ventricle(points, p):
    """The cavity, and the solid that it and its wall fill: two ellipsoids cut at the base."""
    base = half_space(points, BASE, -APEX)
    middle = BASE + 18 * APEX
    cavity = ellipsoid(points, middle, [p.lv_length, p.lv_radius, p.lv_radius], LV_AXES)
    outer = p.lv_radius + p.wall
    cup = ellipsoid(points, middle, [p.lv_length + 0.8 * p.wall, outer, outer], LV_AXES)
    return intersection(cavity, base, blend_mm=3), intersection(cup, base + 1, blend_mm=3)


def _ascending_aorta(points, p):
    path = [AORTIC_VALVE + 8 * APEX, AORTIC_VALVE, [5, 4, 28], [13, 9, 48], [14, 8, 66], [11, 1, 80]]
    return tube(points, path, p.aorta_radius + np.array([-2, 0, 1.5, 0, -0.5, -1]))


def _pulmonary_artery(points, p):
    """The trunk from the valve's plane, crossing in front of the aorta, and its two branches."""
    r = p.pa_radius
    tree = union(
        tube(
            points,
            [PULMONARY_VALVE - [0, 2, 10], [-16, 34, 49], [-14, 16, 62], [-10, 0, 66]],
            [r, 1.05 * r, r, 0.9 * r],
        ),
        tube(points, [[-10, 2, 65], [-28, -14, 69], [-46, -28, 64]], [0.8 * r, 9, 7.5]),
        tube(points, [[-11, 2, 65], [0, -15, 62], [20, -22, 58], [42, -24, 53]], [0.8 * r, 9.5, 9, 8]),
        blend_mm=6,
    )
    return intersection(tree, half_space(points, PULMONARY_VALVE, [0, 0.17, -0.985]), blend_mm=2)


def _left_atrium(points, p):
    """Body, funnel to the mitral valve, appendage and stubs of four pulmonary veins."""
    return union(
        ellipsoid(points, LEFT_ATRIUM, [31, 20, 25] * p.la),
        tube(points, [LEFT_ATRIUM, BASE - 8 * SEPTUM + 3 * INFERIOR], [17, 19]),
        tube(points, [[-14, -28, 24], [-30, -18, 31], [-36, -6, 31]], [9, 8.5, 7]),
        *(
            tube(points, _stub(path, stub), [radius + 1, radius])
            for path, radius, stub in zip(PULMONARY_VEINS, p.vein_radius, p.stub, strict=True)
        ),
        blend_mm=8,
    )


def _right_atrium(points, p):
    """Body, appendage in front of the aorta, and stubs of the two venae cavae."""
    return union(
        ellipsoid(points, [44, 1, -3], [23, 27, 31] * p.ra),
        tube(points, [[40, 2, 10], [34, 20, 20], [26, 27, 22]], [11, 10, 8]),
        tube(points, [[41, -6, 10], [38, -6, 32]], [10, 9]),
        tube(points, [[40, -8, -15], [37, -14, -36]], [13, 11.5]),
        blend_mm=8,
    )


def _right_ventricle(points, p):
    """Body, inlet from the tricuspid valve and outflow tract; carving makes it a crescent around the septum."""
    return union(
        ellipsoid(points, [-13, 39, -16], [45, 24, 33] * p.rv, LV_AXES),
        tube(points, [[-5, 30, -18], [22, 15, -9]], [20, 20]),
        tube(points, [[-10, 41, -8], [-16, 43, 16], PULMONARY_VALVE - [0, 2, -8]], [20, 16, p.pa_radius]),
        blend_mm=10,
    )


def _stub(path, length):
    """The first part of a vein's path, to `length` mm beyond the atrium's surface, which lies 8 mm from its start."""
    start, step = np.array(path[0]), np.subtract(path[1], path[0])
    return [start, start + (8 + length) * step / np.linalg.norm(step)]


def _vessels(points, chambers, cup, p):
    """Blood without a label: the arch and descending aorta, veins, arteries; and the papillary muscles."""
    descending = 0.8 * p.aorta_radius
    arch = union(
        tube(
            points,
            [
                [11, 1, 80],
                [2, -14, 89],
                [-10, -36, 90],
                [-17, -58, 78],
                [-16, -70, 55],
                [-13, -71, 0],
                [-6, -70, -100],
                [4, -70, -160],
            ],
            [p.aorta_radius - 1, *descending * np.array([1.08, 1.06, 1.04, 1, 1, 0.95, 0.9])],
        ),
        *(tube(points, path, [6, 5, 4]) for path in SUPRA_AORTIC),
        blend_mm=3,
    )
    pulmonary = [
        tube(points, path, [radius, radius, 3]) for path, radius in zip(PULMONARY_VEINS, p.vein_radius, strict=True)
    ]
    grooves = [
        _groove(cup - 3, chambers["RV"] - 4, 1.6),
        _groove(cup - 4, chambers["LA"] - 4, 1.5),
        _groove(chambers["RA"] - 4, chambers["RV"] - 4, 1.7),
    ]
    left = union(arch, *pulmonary, *grooves)
    right = union(
        tube(points, [[38, -6, 30], [37, -4, 60], [32, 2, 100], [36, 0, 190]], [9, 8.5, 9, 5]),
        tube(points, [[32, 2, 98], [8, 16, 112], [-18, 10, 132], [-34, -2, 190]], [7, 6, 6, 5]),
        tube(points, [[37, -14, -34], [34, -19, -55], [28, -22, -95], [26, -40, -160]], [11.5, 11, 11, 11]),
        tube(points, [[40, -24, 53], [60, -32, 44], [84, -36, 24]], [8, 6, 3]),
        tube(points, [[-45, -28, 64], [-60, -38, 55], [-76, -46, 30]], [7.5, 6, 3]),
    )
    sides = (0.8 * INFERIOR + 0.2 * SEPTUM, -0.5 * INFERIOR - 0.75 * SEPTUM)
    muscles = union(
        *(
            tube(
                points,
                [BASE + 30 * APEX + 0.6 * p.lv_radius * side, BASE + 60 * APEX + 0.85 * p.lv_radius * side],
                [3, 5],
            )
            for side in sides
        )
    )
    return {"left": left, "right": right, "papillary": muscles}


def _groove(first, second, radius):
    """A thread along the curve where both fields vanish: how the coronary arteries run."""
    return np.sqrt(first**2 + second**2) - np.float32(radius)


def thorax(points, chambers, vessels, p):
    """Fields of the surroundings at points (3, ...), in the patient frame."""
    cage, skin = _torso(points, p)
    bone, vertebra = _skeleton(points, cage, p)
    muscle = _muscles(points, cage, vertebra)
    right = ellipsoid(points, [72, -10, -113 + p.diaphragm], [105, 95, 84])
    left = ellipsoid(points, [-72, -20, -123 + p.diaphragm], [90, 90, 80])
    diaphragm = union(right, left, blend_mm=15)
    spleen = intersection(ellipsoid(points, [-82, -72, -92 + p.diaphragm], [34, 34, 50]), cage + 6)
    sac = union(*chambers.values(), blend_mm=24) - p.fat
    sac = union(sac, vessels["left"] - 2, vessels["right"] - 2)
    middle = union(
        ellipsoid(points, [8, -72, 0], [24, 26, np.inf]),
        ellipsoid(points, [6, 60, 20], [12, 26, np.inf]),
        ellipsoid(points, [8, -24, 165], [34, 36, 80]),
    )
    mediastinum = union(sac, middle, diaphragm - 3, blend_mm=14)
    lung = intersection(cage + 9, -mediastinum, blend_mm=4)
    return {
        "skin": skin,
        "muscle": muscle,
        "bone": bone,
        "lung": lung,
        "trachea": _trachea(points),
        "liver": intersection(right, cage + 6),
        "stomach": intersection(left, cage + 6),
        "spleen": spleen,
        "diaphragm": intersection(diaphragm, cage + 6),
    }


def _torso(points, p):
    """The rib cage's surface and the skin: elliptic cylinders that close to domes above the heart."""
    width, depth = p.chest
    above = points.copy()
    np.maximum(points[2] - 20, 0, out=above[2])
    cage = ellipsoid(above, [SPINE_X, -20, 0], [142 * width, 92 * depth, 150])
    skin = ellipsoid(above, [SPINE_X, -22, 0], [156 * width + p.skin_depth, 94 * depth + p.skin_depth, 260])
    return cage, skin


def _skeleton(points, cage, p):
    """All bone, and the column of vertebral bodies and discs."""
    _, y, z = points
    back = -20 - 73 * p.chest[1]
    ribs = 4 * (np.sqrt(((cage + 4) / 4) ** 2 + (((z + 0.5 * y + p.rib_phase) % 30 - 15) / 6.5) ** 2) - 1)
    column = ellipsoid(points, [SPINE_X, back, 0], [18, 15, np.inf])
    disc = np.abs((z + p.rib_phase) % 27 - 13.5)
    arch = np.abs(ellipsoid(points, [SPINE_X, back - 24, 0], [14, 12, np.inf])) - 4
    process = ellipsoid(points, [SPINE_X, back - 40, 0], [4, 14, np.inf]) + np.maximum(disc - 8, 0)
    sternum = ellipsoid(
        points, [SPINE_X, -20 + 88 * p.chest[1], 30], [17, 6, 95], Rotation.from_euler("x", 9, degrees=True).as_matrix()
    )
    clavicles = [
        tube(
            points,
            [[SPINE_X + 18 * side, 46, 142], [SPINE_X + 75 * side, 30, 158], [SPINE_X + 125 * side, -15, 165]],
            [8, 6, 6],
        )
        for side in (-1, 1)
    ]
    blades = [
        ellipsoid(
            points,
            [SPINE_X + 108 * side * p.chest[0], -20 - 78 * p.chest[1], 105],
            [42, 5, 75],
            Rotation.from_euler("z", 42 * side, degrees=True).as_matrix(),
        )
        for side in (-1, 1)
    ]
    bodies = intersection(column, disc - 11.5, blend_mm=3)
    return union(intersection(ribs, y - 50), sternum, arch, process, bodies, *clavicles, *blades), column


def _muscles(points, cage, vertebra):
    """Intercostal, back and chest muscles, cartilage of the ribs in front, and the oesophagus."""
    _, y, z = points
    wall = intersection(cage - 2, -cage - 10)
    flank = intersection(cage - 5 - 9 * np.clip((20 - y) / 60, 0, 1), 1 - cage, -z - 90, blend_mm=3)
    back = [ellipsoid(points, [SPINE_X + 30 * side, -118, 0], [22, 16, np.inf]) for side in (-1, 1)]
    breast = [
        ellipsoid(
            points,
            [SPINE_X + 63 * side, 62, 60],
            [60, 14, 60],
            Rotation.from_euler("z", -33 * side, degrees=True).as_matrix(),
        )
        for side in (-1, 1)
    ]
    oesophagus = tube(points, [[6, -50, 190], [2, -56, 60], [2, -60, -20], [-14, -50, -100]], [6, 6, 7, 8])
    return union(wall, flank, vertebra, *back, *breast, oesophagus)


def _trachea(points):
    """Windpipe and main bronchi: the air in them."""
    return union(
        tube(points, [[12, -28, 190], [10, -34, 110], [8, -42, 76]], [8, 8, 8]),
        tube(points, [[8, -42, 76], [-20, -42, 56], [-42, -46, 46]], [7, 6, 5]),
        tube(points, [[8, -42, 76], [34, -44, 60], [52, -46, 48]], [7, 6.5, 5]),
        blend_mm=4,
    )


def table(points, p):
    """The surface (mm, negative above) that the back is pressed on: a shallow trough along the patient, not warped."""
    x, y, _ = points
    top = -22 - (94 * p.chest[1] + p.skin_depth) + p.pressed
    return np.hypot(x - np.float32(SPINE_X), y - np.float32(top + TABLE_RADIUS_MM)) - np.float32(TABLE_RADIUS_MM)


def _carve(solid, *others):
    """What is left of a solid when each (other, gap in mm) and the gap around it are taken away."""
    for other, gap_mm in others:
        solid = intersection(solid, gap_mm - other, blend_mm=1.5)
    return solid
