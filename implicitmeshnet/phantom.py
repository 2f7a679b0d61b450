"""Synthetic whole-heart CT with labels in MM-WHS values: smooth anatomy from signed distances, then a CT of it.

Everything is placed in one patient frame, millimetres RAS, and evaluated at the voxels' own world positions, so the
affine of a case is right by construction. The signed distances are smooth: they are evaluated on a lattice of about
2 mm that spans the volume and are interpolated linearly to the voxels. Labels cannot overlap: where b is carved from
a, a >= -b holds on the lattice, and linear interpolation keeps it. Shapes and densities are our own choice, after
common adult values; nothing is measured on a data set.
"""

from dataclasses import dataclass, field, fields

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from implicitmeshnet.signed_distance import ellipsoid, half_space, intersection, tube, union

LABELS = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "Myo": 205, "AO": 820, "PA": 850}
LATTICE_MM = 2.0
CENTRE = np.array([-3.0, 0.0, 10.0])  # of the heart, in the patient frame; the heart turns about it
BASE = np.array([-6.0, -6.0, 8.0])  # middle of the left ventricle's base
APEX = np.array([-0.74, 0.50, -0.45])  # unit vector, base to apex: left, anterior, inferior
SEPTUM = np.array([0.567, 0.822, -0.019])  # unit vector, left to right ventricle
INFERIOR = np.cross(APEX, SEPTUM)
LV_AXES = np.stack([APEX, SEPTUM, INFERIOR], axis=1)
AORTIC_VALVE = BASE + 13 * np.array([0.147, 0.773, 0.617])


def _between(low, high, shape=None):
    return field(metadata={"range": (low, high), "shape": shape})


@dataclass
class Parameters:
    """One case's patient: lengths in mm, densities in HU, angles in degrees, each uniform in its range."""

    scale: float = _between(0.94, 1.06)
    rotation_deg: np.ndarray = _between(-7, 7, (3,))
    warp_mm: np.ndarray = _between(-1.6, 1.6, (8, 3))
    warp_wavelength_mm: np.ndarray = _between(70, 150, (8,))
    warp_direction: np.ndarray = _between(-1, 1, (8, 3))
    warp_phase: np.ndarray = _between(0, 2 * np.pi, (8,))
    lv_radius: float = _between(22.5, 26.0)
    lv_length: float = _between(62, 69)
    wall: float = _between(7.5, 10)
    rv: np.ndarray = _between(0.92, 1.08, (3,))
    la: np.ndarray = _between(0.9, 1.1, (3,))
    ra: np.ndarray = _between(0.9, 1.1, (3,))
    aorta_radius: float = _between(12.5, 15.5)
    pa_radius: float = _between(11, 13.5)
    vein_radius: np.ndarray = _between(5, 6.5, (4,))
    stub: np.ndarray = _between(3, 9, (4,))
    fat: float = _between(5, 10)
    skin_depth: float = _between(16, 34)
    diaphragm: float = _between(-6, 4)
    rib_phase: float = _between(0, 30)
    left_hu: float = _between(280, 470)
    right_hu: float = _between(110, 380)
    chamber_hu: np.ndarray = _between(0.94, 1.06, (7,))
    myocardium_hu: float = _between(85, 145)
    lung_hu: float = _between(-880, -800)
    mixing: float = _between(0.02, 0.2)
    noise_hu: float = _between(15, 40)
    noise_width: float = _between(0.5, 0.9)
    blur_mm: float = _between(0.4, 0.8)

    @classmethod
    def draw(cls, rng):
        """Draw every parameter from a numpy Generator, in the order of the fields."""
        return cls(**{f.name: rng.uniform(*f.metadata["range"], f.metadata["shape"]) for f in fields(cls)})

    @property
    def blood_hu(self):
        """Density of the blood in each chamber, by name."""
        right = ("RV", "RA", "PA")
        base = {name: self.right_hu if name in right else self.left_hu for name in LABELS}
        hu = {name: base[name] * factor for (name, factor) in zip(LABELS, self.chamber_hu, strict=True)}
        return hu | {"Myo": self.myocardium_hu}


def draw_grid(rng, spacing_mm=None):
    """Draw a volume's shape (3,) and (4, 4) affine, and the world position (3,) that the patient frame's origin has.

    Two axes share the in-plane spacing of 0.8 to 1.4 mm, the third has 1 to 2 mm; `spacing_mm` replaces the three.
    Axes are permuted and flipped at random (left-handed ones too) and turned by up to 10 degrees.
    """
    plane, through = rng.uniform(0.8, 1.4), rng.uniform(1.0, 2.0)
    spacing = np.array([plane, plane, through]) if spacing_mm is None else np.full(3, spacing_mm)
    shape = np.minimum(np.rint(rng.uniform(165, 190, 3) / spacing), 192).astype(int)
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    turn = rng.normal(size=3)
    turn *= np.radians(max(0, rng.uniform(-5, 10))) / np.linalg.norm(turn)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ axes * spacing
    origin = rng.uniform(-150, 150, 3)
    middle = origin + CENTRE + rng.uniform(-4.5, 4.5, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ (shape - 1) / 2
    return tuple(int(n) for n in shape), affine, origin


def create_case(seed, case, spacing_mm=None):
    """Draw case number `case` of `seed`: image (X, Y, Z) int16 in HU, label (X, Y, Z) int16, affine (4, 4)."""
    rng = np.random.default_rng([seed, case])
    parameters = Parameters.draw(rng)
    shape, affine, origin = draw_grid(rng, spacing_mm)
    image, label = render(parameters, shape, affine, origin, rng)
    return image, label, affine


def render(parameters, shape, affine, origin, rng):
    """Image and label, both (X, Y, Z) int16, of the patient that `parameters` describes, on the given grid."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lattice = [min(n, int(np.ceil((n - 1) * step / LATTICE_MM)) + 1) for n, step in zip(shape, spacing, strict=True)]
    index = np.meshgrid(*(np.linspace(0, n - 1, m) for n, m in zip(shape, lattice, strict=True)), indexing="ij")
    points = np.tensordot(affine[:3, :3], np.stack(index), 1) + (affine[:3, 3] - origin)[:, None, None, None]
    points = _warped(points.astype(np.float32), parameters)
    hearts_own = _in_heart_frame(points, parameters)
    chambers, vessels = heart(hearts_own, parameters)
    body = thorax(points, chambers, vessels, parameters, rng)

    def at_voxels(values):
        return _upsample(values, shape)

    chambers_at_voxels = {name: at_voxels(distance) for name, distance in chambers.items()}
    label = np.zeros(shape, dtype=np.int16)
    for name, distance in chambers_at_voxels.items():
        label[distance < 0] = LABELS[name]
    image = np.full(shape, -1000, dtype=np.float32)
    edge_mm = float(spacing.mean())
    for distance, hu in tissues(points, body, chambers, vessels, parameters, rng):
        distance = chambers_at_voxels[distance] if isinstance(distance, str) else at_voxels(distance)
        hu = at_voxels(hu) if isinstance(hu, np.ndarray) else np.float32(hu)
        image += np.clip(0.5 - distance / edge_mm, 0, 1) * (hu - image)
    image = gaussian_filter(image, parameters.blur_mm / spacing)
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), parameters.noise_width)
    image += noise * np.float32(parameters.noise_hu / noise.std())
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16), label


def heart(points, p):
    """The seven labelled structures and the unlabelled blood vessels: two dicts of fields at points (3, ...)."""
    base = half_space(points, BASE, -APEX)
    middle = BASE + 18 * APEX
    lv_ellipsoid = ellipsoid(points, middle, [p.lv_length, p.lv_radius, p.lv_radius], LV_AXES)
    lv = intersection(lv_ellipsoid, base, blend_mm=3)
    outer = p.lv_radius + p.wall
    cup = ellipsoid(points, middle, [p.lv_length + 0.8 * p.wall, outer, outer], LV_AXES)
    cup = intersection(cup, base + 1, blend_mm=3)
    left = union(lv, cup)

    root, above = p.aorta_radius, [5, 4, 28]
    aorta = tube(points, [AORTIC_VALVE + 8 * APEX, AORTIC_VALVE, above, [13, 9, 48], [14, 8, 66], [11, 1, 80]],
                 [root - 2, root, root + 1.5, root, root - 0.5, root - 1])
    aorta = _carve(aorta, left)

    valve = np.array([-16, 41, 35])
    trunk = p.pa_radius * np.array([1.0, 1.05, 1.0, 0.9])
    pa = union(
        tube(points, [valve - [0, 2, 10], [-16, 34, 49], [-14, 16, 62], [-10, 0, 66]], trunk),
        tube(points, [[-10, 2, 65], [-28, -14, 69], [-46, -28, 64]], [p.pa_radius * 0.8, 9, 7.5]),
        tube(points, [[-11, 2, 65], [0, -15, 62], [20, -22, 58], [42, -24, 53]], [p.pa_radius * 0.8, 9.5, 9, 8]),
        blend_mm=6)
    pa = intersection(_carve(pa, aorta, 2), half_space(points, valve, [0, 0.17, -0.985]), blend_mm=2)

    la_centre = np.array([6, -37, 15])
    veins = _pulmonary_veins(points, p)
    la = union(
        ellipsoid(points, la_centre, [31, 20, 25] * p.la),
        tube(points, [la_centre, BASE - 8 * SEPTUM + 3 * INFERIOR], [17, 19]),
        tube(points, [[-14, -28, 24], [-30, -18, 31], [-36, -6, 31]], [9, 8.5, 7]),
        *(tube(points, *_shortened(path, radius, stub))
          for path, radius, stub in zip(veins, p.vein_radius, p.stub, strict=True)), blend_mm=8)
    la = _carve(_carve(_carve(la, left), aorta, 2.5), pa, 2.5)

    ra = union(
        ellipsoid(points, [44, 1, -3], [23, 27, 31] * p.ra),
        tube(points, [[40, 2, 10], [34, 20, 20], [26, 27, 22]], [11, 10, 8]),
        tube(points, [[41, -6, 10], [38, -6, 32]], [10, 9]),
        tube(points, [[40, -8, -15], [37, -14, -36]], [13, 11.5]), blend_mm=8)
    ra = _carve(_carve(_carve(_carve(ra, left, 1), aorta, 2.5), la, 2.5), pa, 2.5)

    rv = union(
        ellipsoid(points, [-13, 39, -16], [45, 24, 33] * p.rv, LV_AXES),
        tube(points, [[-5, 30, -18], [22, 15, -9]], [20, 20]),
        tube(points, [[-10, 41, -8], [-16, 43, 16], valve + [0, -2, 8]], [20, 16, trunk[0]]), blend_mm=10)
    for other, gap in ((left, 0), (aorta, 2.5), (pa, 0), (la, 2.5), (ra, 0)):
        rv = _carve(rv, other, gap)

    chambers = {"LV": lv, "Myo": intersection(cup, -lv), "AO": aorta, "PA": pa, "LA": la, "RA": ra, "RV": rv}
    return chambers, _vessels(points, veins, chambers, cup, p)


def _pulmonary_veins(points, p):
    return [
        [[24, -42, 20], [46, -50, 27], [72, -52, 40]],
        [[24, -46, 8], [46, -57, 2], [70, -64, -8]],
        [[-14, -42, 24], [-38, -50, 33], [-64, -50, 48]],
        [[-14, -44, 10], [-36, -56, 5], [-62, -64, -6]],
    ]


def _shortened(path, radius, stub):
    """Path and radii of a vein from the atrium to `stub` mm beyond the path's middle knot."""
    start, middle, end = (np.asarray(knot, dtype=float) for knot in path)
    step = (end - middle) / np.linalg.norm(end - middle)
    return [start, middle - 6 * step, middle + (stub - 6) * step], [radius + 1, radius, radius]


def _vessels(points, veins, chambers, cup, p):
    arch = tube(points, [[11, 1, 80], [2, -14, 89], [-10, -36, 90], [-17, -58, 78], [-16, -70, 55], [-13, -71, 0],
                         [-6, -70, -100]], [p.aorta_radius - 1, 12.5, 12, 11.5, 11, 11, 10.5])
    pulmonary = [tube(points, path, [radius, radius, 3]) for path, radius in zip(veins, p.vein_radius, strict=True)]
    grooves = [_groove(cup - 3, chambers["RV"] - 4, 1.6), _groove(cup - 4, chambers["LA"] - 4, 1.5),
               _groove(chambers["RA"] - 4, chambers["RV"] - 4, 1.7)]
    left = union(arch, *pulmonary, *grooves)
    right = union(
        tube(points, [[38, -6, 30], [37, -4, 60], [32, 2, 100]], [9, 8.5, 9]),
        tube(points, [[37, -14, -34], [34, -19, -55], [28, -22, -95]], [11.5, 11, 11]),
        tube(points, [[40, -24, 53], [60, -32, 44], [84, -36, 24]], [8, 6, 3]),
        tube(points, [[-45, -28, 64], [-60, -38, 55], [-76, -46, 30]], [7.5, 6, 3]))
    muscles = union(*(tube(points, [BASE + 34 * APEX + 0.55 * p.lv_radius * side, BASE + 58 * APEX + 0.7 *
                                    p.lv_radius * side], [3.5, 5])
                      for side in (INFERIOR * 0.8 + SEPTUM * 0.2, -INFERIOR * 0.5 - SEPTUM * 0.75)))
    return {"left": left, "right": right, "papillary": muscles}


def _groove(first, second, radius):
    """A thread along the curve where both fields vanish: how the coronary arteries run."""
    return np.sqrt(first**2 + second**2) - np.float32(radius)


def thorax(points, chambers, vessels, p, rng):
    """Fields of the surroundings at points (3, ...), in the patient frame."""
    x, y, z = points
    cage = ellipsoid(points, [12, -20, 0], [142, 92, np.inf])
    skin = ellipsoid(points, [12, -22, 0], [156 + p.skin_depth, 94 + p.skin_depth, np.inf])
    rib = (z + 0.4 * y + p.rib_phase) % 30 - 15
    ribs = 4 * (np.sqrt(((cage + 4) / 4) ** 2 + (rib / 6.5) ** 2) - 1)
    cartilage = intersection(ribs, 48 - y)
    vertebra = ellipsoid(points, [12, -93, 0], [18, 15, np.inf])
    disc = np.abs((z + p.rib_phase) % 27 - 13.5)
    arch = np.abs(ellipsoid(points, [12, -117, 0], [14, 12, np.inf])) - 4
    bone = union(intersection(ribs, y - 50), ellipsoid(points, [12, 68, 30], [17, 6, 95]), arch,
                 intersection(vertebra, disc - 11.5, blend_mm=3))
    muscle = union(intersection(cage - 2, -cage - 10), cartilage, vertebra,
                   ellipsoid(points, [-18, -118, 0], [22, 16, np.inf]), ellipsoid(points, [42, -118, 0],
                                                                                   [22, 16, np.inf]),
                   ellipsoid(points, [75, 62, 60], [60, 14, 60], Rotation.from_euler("z", -33, True).as_matrix()),
                   ellipsoid(points, [-51, 62, 60], [60, 14, 60], Rotation.from_euler("z", 33, True).as_matrix()))
    liver = ellipsoid(points, [72, -10, -113 + p.diaphragm], [105, 95, 84])
    stomach = ellipsoid(points, [-72, -20, -123 + p.diaphragm], [90, 90, 80])
    diaphragm = union(liver, stomach, blend_mm=15)
    sac = union(*chambers.values(), blend_mm=14) - p.fat
    sac = union(sac, vessels["left"] - 4, vessels["right"] - 3)
    middle = union(ellipsoid(points, [8, -72, 0], [24, 26, np.inf]), ellipsoid(points, [6, 60, 20], [12, 26, np.inf]))
    mediastinum = union(sac, middle, diaphragm - 3, blend_mm=10)
    trachea = union(tube(points, [[10, -34, 110], [8, -42, 76]], [8, 8]),
                    tube(points, [[8, -42, 76], [-20, -42, 56], [-42, -46, 46]], [7, 6, 5]),
                    tube(points, [[8, -42, 76], [34, -44, 60], [52, -46, 48]], [7, 6.5, 5]), blend_mm=4)
    lung = intersection(cage + 9, -mediastinum, blend_mm=4)
    return {"skin": skin, "muscle": muscle, "bone": bone, "lung": lung, "liver": liver, "stomach": stomach,
            "diaphragm": diaphragm, "mediastinum": mediastinum, "trachea": trachea}


def tissues(points, body, chambers, vessels, p, rng):
    """(distance, HU) pairs in painting order, the later over the earlier; a chamber's distance by its name."""
    shape = points.shape[1:]

    def texture(width_mm):
        values = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width_mm / LATTICE_MM, mode="wrap")
        return values / values.std()

    blood = p.blood_hu
    wall = union(*(chambers[name] - 2.2 for name in ("LA", "RA", "RV", "Myo")),
                 *(chambers[name] - 1.2 for name in ("AO", "PA")), vessels["left"] - 1, vessels["right"] - 0.8)
    branches = 10 * np.sqrt(texture(7) ** 2 + texture(7) ** 2) - 2.0
    mixing = 1 + p.mixing * texture(8)
    fibres = texture(3)
    yield body["skin"], 30
    yield body["skin"] + 2.5, -100 + 10 * texture(4)
    yield body["muscle"], 50 + 12 * fibres
    yield body["bone"], 550
    yield body["bone"] + 2, 200 + 50 * texture(2)
    yield body["lung"], p.lung_hu + 25 * texture(4)
    yield intersection(body["lung"], branches), 0.35 * p.left_hu
    yield body["diaphragm"], 45
    yield body["liver"] + 2, 95 + 6 * fibres
    yield body["stomach"] + 7, -30 + 40 * texture(10)
    yield body["trachea"] - 1.5, 40
    yield body["trachea"], -980
    yield wall, p.myocardium_hu
    yield vessels["left"], p.left_hu
    yield vessels["right"], p.right_hu * mixing
    yield "Myo", p.myocardium_hu + 6 * fibres
    rough = np.maximum(texture(2.5), 0)
    for name, roughness in (("LV", 1.2), ("RV", 2.0), ("LA", 0), ("RA", 0.8), ("AO", 0), ("PA", 0)):
        hu = blood[name] * (mixing if name in ("RV", "RA") else 1)
        yield (chambers[name] + roughness * rough, hu) if roughness else (name, hu)
    yield intersection(vessels["papillary"], chambers["LV"]), p.myocardium_hu


def _carve(field_mm, other, gap_mm=0.0):
    """What is left of a solid when `other` and `gap_mm` around it are taken away."""
    return intersection(field_mm, gap_mm - other, blend_mm=1.5)


def _warped(points, p):
    """Points displaced by eight plane waves: smooth, and independent of the grid."""
    result = points.copy()
    for shift, wavelength, direction, phase in zip(p.warp_mm, p.warp_wavelength_mm, p.warp_direction, p.warp_phase,
                                                   strict=True):
        wave = (2 * np.pi / wavelength) * direction / np.linalg.norm(direction)
        swing = np.sin(np.tensordot(wave.astype(np.float32), points, 1) + np.float32(phase))
        for axis in range(3):
            result[axis] += np.float32(shift[axis]) * swing
    return result


def _in_heart_frame(points, p):
    turn = Rotation.from_rotvec(np.radians(p.rotation_deg)).as_matrix().T.astype(np.float32) / np.float32(p.scale)
    shift = (CENTRE - turn @ CENTRE).astype(np.float32)
    return np.tensordot(turn, points, 1) + shift[:, None, None, None]


def _upsample(values, shape):
    """Linear interpolation of a lattice to `shape`, first and last samples aligned on every axis."""
    for axis, count in enumerate(shape):
        position = np.linspace(0, values.shape[axis] - 1, count)
        below = np.minimum(position.astype(int), values.shape[axis] - 2)
        weight = (position - below).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        low = values.take(below, axis)
        values = low + weight * (values.take(below + 1, axis) - low)
    return values
