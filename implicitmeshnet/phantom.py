"""Synthetic whole-heart CT with labels in MM-WHS values: smooth anatomy from signed distances, then a CT of it.

Everything is placed in one patient frame, millimetres RAS, and evaluated at the voxels' own world positions, so the
affine of a case is right by construction. The signed distances are smooth: they are evaluated on a lattice of about
2 mm that spans the volume and are interpolated linearly to the voxels. Densities are our own choice, after common
values of contrast CT; nothing is measured on a data set.
"""

from dataclasses import dataclass, field, fields

import numpy as np
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from implicitmeshnet.anatomy import CENTRE, heart, thorax
from implicitmeshnet.signed_distance import intersection, union

LABELS = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "Myo": 205, "AO": 820, "PA": 850}
LATTICE_MM = 2.0


def _uniform(low, high, shape=None):
    return {"range": (low, high), "shape": shape}


@dataclass
class Parameters:
    """One case's patient: lengths in mm, densities in HU, angles in degrees, each uniform in its range."""

    scale: float = field(metadata=_uniform(0.94, 1.06))
    rotation_deg: np.ndarray = field(metadata=_uniform(-7, 7, (3,)))
    warp_mm: np.ndarray = field(metadata=_uniform(-1.6, 1.6, (8, 3)))
    warp_wavelength_mm: np.ndarray = field(metadata=_uniform(70, 150, (8,)))
    warp_direction: np.ndarray = field(metadata=_uniform(-1, 1, (8, 3)))
    warp_phase: np.ndarray = field(metadata=_uniform(0, 2 * np.pi, (8,)))
    lv_radius: float = field(metadata=_uniform(22.5, 26.0))
    lv_length: float = field(metadata=_uniform(62, 69))
    wall: float = field(metadata=_uniform(7.5, 10))
    rv: np.ndarray = field(metadata=_uniform(0.92, 1.08, (3,)))
    la: np.ndarray = field(metadata=_uniform(0.86, 1.06, (3,)))
    ra: np.ndarray = field(metadata=_uniform(0.9, 1.1, (3,)))
    aorta_radius: float = field(metadata=_uniform(12.5, 15.5))
    pa_radius: float = field(metadata=_uniform(11, 13.5))
    vein_radius: np.ndarray = field(metadata=_uniform(5, 6.5, (4,)))
    stub: np.ndarray = field(metadata=_uniform(0, 4, (4,)))
    fat: float = field(metadata=_uniform(2.5, 5))
    skin_depth: float = field(metadata=_uniform(16, 34))
    diaphragm: float = field(metadata=_uniform(-6, 4))
    rib_phase: float = field(metadata=_uniform(0, 30))
    left_hu: float = field(metadata=_uniform(280, 470))
    right_hu: float = field(metadata=_uniform(110, 380))
    chamber_hu: np.ndarray = field(metadata=_uniform(0.94, 1.06, (7,)))
    myocardium_hu: float = field(metadata=_uniform(85, 145))
    lung_hu: float = field(metadata=_uniform(-880, -800))
    mixing: float = field(metadata=_uniform(0.02, 0.2))
    noise_hu: float = field(metadata=_uniform(15, 40))
    noise_width: float = field(metadata=_uniform(0.5, 0.9))
    blur_mm: float = field(metadata=_uniform(0.4, 0.8))

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

    Two axes share the in-plane spacing of 0.9 to 1.4 mm, the third has 1 to 2 mm; `spacing_mm` replaces the three.
    Axes are permuted and flipped at random (left-handed ones too) and turned by up to 10 degrees.
    """
    plane, through = rng.uniform(0.9, 1.4), rng.uniform(1.0, 2.0)
    spacing = np.array([plane, plane, through]) if spacing_mm is None else np.full(3, spacing_mm)
    shape = np.rint(rng.uniform(172, 190, 3) / spacing).astype(int)
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
    chambers, vessels = heart(_in_heart_frame(points, parameters), parameters)
    body = thorax(points, chambers, vessels, parameters)
    label = np.zeros(shape, dtype=np.int16)
    for name, distance in chambers.items():
        label[_largest_part(_upsample(distance, shape) < 0)] = LABELS[name]
    image = np.full(shape, -1000, dtype=np.float32)
    for distance, hu in tissues(body, chambers, vessels, parameters, rng):
        hu = _upsample(hu, shape) if isinstance(hu, np.ndarray) else np.float32(hu)
        image += np.clip(0.5 - _upsample(distance, shape) / np.float32(spacing.mean()), 0, 1) * (hu - image)
    image = gaussian_filter(image, parameters.blur_mm / spacing)
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), parameters.noise_width)
    image += noise * np.float32(parameters.noise_hu / noise.std())
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16), label


def tissues(body, chambers, vessels, p, rng):
    """(distance, HU) pairs in painting order, the later over the earlier; HU a number or a field."""

    def texture(width_mm):
        values = rng.standard_normal(body["skin"].shape, dtype=np.float32)
        values = gaussian_filter(values, width_mm / LATTICE_MM, mode="wrap")
        return values / values.std()

    blood = p.blood_hu
    wall = union(*(chambers[name] - 2.2 for name in ("LA", "RA", "RV", "Myo")),
                 *(chambers[name] - 1.2 for name in ("AO", "PA")), vessels["left"] - 1, vessels["right"] - 0.8)
    fibres = texture(3)
    mixing = 1 + p.mixing * texture(8)
    yield body["skin"], 30
    yield body["skin"] + 2.5, -100 + 10 * texture(4)
    yield body["muscle"], 50 + 12 * fibres
    yield body["bone"], 550
    yield body["bone"] + 2, 200 + 50 * texture(2)
    yield body["lung"], p.lung_hu + 25 * texture(4)
    for width_mm, radius in ((10, 3.2), (6, 2.4)):
        yield intersection(body["lung"], _threads(texture(width_mm), texture(width_mm), width_mm, radius)), 200
    yield body["diaphragm"], 45
    yield body["liver"] + 2, 95 + 6 * fibres
    yield body["stomach"] + 7, -30 + 40 * texture(10)
    yield body["trachea"] - 1.5, 40
    yield body["trachea"], -980
    yield wall, p.myocardium_hu
    yield vessels["left"], p.left_hu
    yield vessels["right"], p.right_hu * mixing
    yield chambers["Myo"], p.myocardium_hu + 6 * fibres
    trabeculae = np.maximum(texture(2.5) - 0.3, 0)
    for name, height_mm in (("LV", 1.5), ("RV", 2.5), ("LA", 0), ("RA", 1), ("AO", 0), ("PA", 0)):
        yield chambers[name] + height_mm * trabeculae, blood[name] * (mixing if name in ("RV", "RA") else 1)
    yield intersection(vessels["papillary"], chambers["LV"]), p.myocardium_hu


def _threads(first, second, width_mm, radius):
    """Threads along the curves where two random fields of unit variance and this correlation width both vanish."""
    return np.sqrt(first**2 + second**2) * np.float32(1.4 * width_mm) - np.float32(radius)


def _largest_part(mask):
    """The largest connected part: carving can leave a crumb of a voxel or two behind."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


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
