"""Synthetic whole-heart CT with labels in MM-WHS values: smooth anatomy from signed distances, then a CT of it.

Everything is placed in one patient frame, millimetres RAS, and evaluated at the voxels' own world positions, so the
affine of a case is right by construction. The signed distances are smooth: they are evaluated on a lattice of about
2 mm that spans the volume and are interpolated linearly to the voxels, block by block. docs/phantom.md holds what comes
out (volumes, diameters, densities, noise) against published ranges.
"""

from dataclasses import dataclass, field, fields
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from implicitmeshnet.phantom.anatomy import CENTRE, CHEST_CENTRE, heart, table, thorax
from implicitmeshnet.phantom.solids import intersection, union
from implicitmeshnet.phantom.warp import integrate, sample, velocity_field

LABELS = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "Myo": 205, "AO": 820, "PA": 850}
RIGHT = ("RV", "RA", "PA")
PHASES = {
    "arterial": {"left": (300, 500), "right": (80, 200), "myocardium": (75, 125)},
    "biphasic": {"left": (280, 460), "right": (240, 440), "myocardium": (85, 135)},
    "venous": {"left": (150, 250), "right": (150, 250), "myocardium": (95, 140)},
}
"""Ranges in HU of the blood in the left and right heart and of the myocardium, by contrast phase."""
FIELDS_OF_VIEW = ("cardiac", "chest")
WIDE_SHARE = 0.25  # of the cardiac views, that have the chest's width and depth
MAX_MATRIX = 512  # voxels in plane
MAX_VOXELS = 70e6
LATTICE_MM = 2.0
BLOCK = 48  # voxels along each axis
WARP_STEP_MM = 8.0
WARP_LOW_MM = np.array([-216.0, -216.0, -176.0])  # corner of the warp's lattice in the patient frame
WARP_SHAPE = (57, 51, 49)


def _uniform(low, high, shape=None):
    return {"range": (low, high), "shape": shape}


@dataclass
class Parameters:
    """One case's patient: lengths in mm, densities in HU, angles in degrees, each uniform in its range."""

    scale: float = field(metadata=_uniform(0.90, 1.08))
    rotation_deg: np.ndarray = field(metadata=_uniform(-10, 10, (3,)))
    warp_noise: np.ndarray = field(metadata=_uniform(-1, 1, (3, *WARP_SHAPE)))
    warp_sd_mm: float = field(metadata=_uniform(2.5, 4.0))
    warp_smoothing_mm: float = field(metadata=_uniform(13, 20))
    lv_radius: float = field(metadata=_uniform(20.5, 27.5))
    lv_length: float = field(metadata=_uniform(60, 71))
    wall: float = field(metadata=_uniform(7, 11))
    rv: np.ndarray = field(metadata=_uniform(0.9, 1.12, (3,)))
    la: np.ndarray = field(metadata=_uniform(0.82, 1.1, (3,)))
    ra: np.ndarray = field(metadata=_uniform(0.85, 1.12, (3,)))
    aorta_radius: float = field(metadata=_uniform(13, 18))
    pa_radius: float = field(metadata=_uniform(10.5, 15))
    vein_radius: np.ndarray = field(metadata=_uniform(5, 7, (4,)))
    stub: np.ndarray = field(metadata=_uniform(0, 5, (4,)))
    fat: float = field(metadata=_uniform(2, 6))
    chest: np.ndarray = field(metadata=_uniform(0.93, 1.02, (2,)))
    skin_depth: float = field(metadata=_uniform(12, 28))
    pressed: float = field(metadata=_uniform(4, 10))
    diaphragm: float = field(metadata=_uniform(-8, 6))
    rib_phase: float = field(metadata=_uniform(0, 30))
    phase: float = field(metadata=_uniform(0, len(PHASES)))
    left: float = field(metadata=_uniform(0, 1))
    right: float = field(metadata=_uniform(0, 1))
    muscle: float = field(metadata=_uniform(0, 1))
    chamber_hu: np.ndarray = field(metadata=_uniform(0.94, 1.06, (7,)))
    lung_hu: float = field(metadata=_uniform(-890, -800))
    table_hu: float = field(metadata=_uniform(-100, 100))
    mixing: float = field(metadata=_uniform(0.02, 0.25))
    streak_hu: float = field(metadata=_uniform(0, 12))
    noise_hu: float = field(metadata=_uniform(15, 45))
    noise_width_mm: float = field(metadata=_uniform(0.35, 0.8))
    blur_mm: float = field(metadata=_uniform(0.9, 1.9))

    @classmethod
    def draw(cls, rng):
        """Draw every parameter from a numpy Generator, in the order of the fields."""
        return cls(**{f.name: rng.uniform(*f.metadata["range"], f.metadata["shape"]) for f in fields(cls)})

    @property
    def phase_name(self):
        """The contrast phase, a key of PHASES."""
        return list(PHASES)[min(int(self.phase), len(PHASES) - 1)]

    @property
    def left_hu(self):
        return self._hu("left", self.left)

    @property
    def right_hu(self):
        return self._hu("right", self.right)

    @property
    def myocardium_hu(self):
        return self._hu("myocardium", self.muscle)

    @property
    def blood_hu(self):
        """Density of the blood in each chamber, by name."""
        base = {name: self.right_hu if name in RIGHT else self.left_hu for name in LABELS}
        hu = {name: float(base[name] * factor) for (name, factor) in zip(LABELS, self.chamber_hu, strict=True)}
        return hu | {"Myo": self.myocardium_hu}

    def _hu(self, tissue, fraction):
        low, high = PHASES[self.phase_name][tissue]
        return low + fraction * (high - low)


def draw_grid(rng, spacing_mm=None, field_of_view="cardiac", shift_mm=0.0):
    """Draw a volume's shape (3,) and (4, 4) affine, and the world position (3,) that the patient frame's origin has.

    The slices' axis is the patient's superior-inferior one; the two others share the in-plane spacing of 0.3 to 1.0 mm
    (512 voxels at most), through plane it is 0.4 to 1.6 mm; `spacing_mm` replaces the three. Array axes are permuted
    and flipped at random (left-handed ones too) and turned by up to 10 degrees. "cardiac" views are centred on the
    heart, one in four with the width and depth of "chest", which is centred on the chest. `shift_mm` above 0 adds to
    one side of each axis, over the 512 voxels if need be, until the volume's centre is that far from the heart's.
    """
    extent, centre = _draw_view(rng, field_of_view)
    plane = rng.uniform(max(0.3, extent[:2].max() / MAX_MATRIX), 1.0)
    through = rng.uniform(max(0.4, extent.prod() / plane**2 / MAX_VOXELS), 1.6)
    spacing = np.array([plane, plane, through]) if spacing_mm is None else np.full(3, spacing_mm)
    order = rng.permutation(3)
    axes = np.eye(3)[:, order] * rng.choice([-1, 1], 3)
    turn = rng.normal(size=3)
    turn *= np.radians(max(0, rng.uniform(-5, 10))) / np.linalg.norm(turn)
    axes = Rotation.from_rotvec(turn).as_matrix() @ axes
    spacing, extent = spacing[order], extent[order]
    origin = rng.uniform(-150, 150, 3)
    direction = rng.normal(size=3)
    if shift_mm:
        step = (shift_mm * direction / np.linalg.norm(direction) + CENTRE - centre) @ axes
        extent, centre = extent + 2 * np.abs(step), centre + axes @ step
    shape = np.rint(extent / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin + centre - affine[:3, :3] @ (shape - 1) / 2
    return tuple(int(n) for n in shape), affine, origin


def _draw_view(rng, field_of_view):
    """Extent (3,) and centre (3,) of a view in the patient frame, mm."""
    chest = rng.uniform([375, 270, 260], [400, 330, 330])
    narrow = np.append(np.full(2, rng.uniform(182, 260)), rng.uniform(140, 190))
    jitter, wide = rng.uniform(-4.5, 4.5, 3), rng.random() < WIDE_SHARE
    if field_of_view == "chest":
        return chest, CHEST_CENTRE + jitter
    return np.append(chest[:2], narrow[2]) if wide else narrow, CENTRE + jitter


def create_case(seed, case, spacing_mm=None, field_of_view="cardiac", shift_mm=0.0):
    """Draw case number `case` of `seed`: image (X, Y, Z) int16 in HU, label (X, Y, Z) int16, affine (4, 4)."""
    rng = np.random.default_rng([seed, case])
    parameters = Parameters.draw(rng)
    shape, affine, origin = draw_grid(rng, spacing_mm, field_of_view, shift_mm)
    image, label = render(parameters, shape, affine, origin, rng)
    return image, label, affine


def render(parameters, shape, affine, origin, rng):
    """Image and label, both (X, Y, Z) int16, of the patient that `parameters` describes, on the given grid."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lattice = [
        max(2, min(n, int(np.ceil((n - 1) * step / LATTICE_MM)) + 1)) for n, step in zip(shape, spacing, strict=True)
    ]
    index = np.meshgrid(*(np.linspace(0, n - 1, m) for n, m in zip(shape, lattice, strict=True)), indexing="ij")
    points = np.tensordot(affine[:3, :3], np.stack(index), 1) + (affine[:3, 3] - origin)[:, None, None, None]
    points = points.astype(np.float32)
    warped = _warped(points, parameters)
    chambers, vessels = heart(_in_heart_frame(warped, parameters), parameters)
    body = thorax(warped, chambers, vessels, parameters) | {"table": table(points, parameters)}
    painted = list(tissues(body, chambers, vessels, parameters, rng))
    streaks = _streaks(points, parameters, rng)
    noise = gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), parameters.noise_width_mm / spacing, truncate=3
    )
    noise *= np.float32(parameters.noise_hu / noise.std())
    edge_mm = max(parameters.blur_mm, spacing.mean())
    label = np.zeros(shape, dtype=np.int16)
    image = np.empty(shape, dtype=np.int16)
    for block, window, weights in _blocks(shape, lattice):
        for name, distance in chambers.items():
            part = distance[window]
            if part.min() < 0:
                label[block][_upsample(part, weights) < 0] = LABELS[name]
        values = _paint(painted, window, weights, edge_mm) + noise[block] + _upsample(streaks[window], weights)
        image[block] = np.rint(np.clip(values, -1024, 3071))
    for value in LABELS.values():
        _keep_largest_part(label, value)
    return image, label


def _paint(painted, window, weights, edge_mm):
    """Density of a block: each tissue over the earlier ones, its edge a ramp of `edge_mm`; hidden ones are skipped."""
    seen = []
    for distance, hu in reversed(painted):
        part = distance[window]
        if part.min() < edge_mm / 2:
            seen.append((part, hu[window] if isinstance(hu, np.ndarray) else hu))
            if part.max() < -edge_mm / 2:
                break
    image = np.full([len(w) for w in weights], -1000, dtype=np.float32)
    for part, hu in reversed(seen):
        hu = _upsample(hu, weights) if isinstance(hu, np.ndarray) else np.float32(hu)
        share = _upsample(part, weights)
        share *= np.float32(-1 / edge_mm)
        share += np.float32(0.5)
        np.clip(share, 0, 1, out=share)
        image += share * (hu - image)
    return image


def tissues(body, chambers, vessels, p, rng):
    """(distance, HU) pairs in painting order, the later over the earlier; HU a number or a field."""

    def texture(width_mm):
        values = rng.standard_normal(body["skin"].shape, dtype=np.float32)
        values = gaussian_filter(values, width_mm / LATTICE_MM, mode="wrap", truncate=3)
        return values / values.std()

    blood = p.blood_hu
    wall = union(
        *(chambers[name] - 2.2 for name in ("LA", "RA", "RV", "Myo")),
        *(chambers[name] - 1.2 for name in ("AO", "PA")),
        vessels["left"] - 1,
        vessels["right"] - 0.8,
    )
    fibres = texture(3)
    mixing = 1 + p.mixing * texture(8)
    skin = intersection(body["skin"], body["table"])
    yield np.abs(body["table"] - 18) - 17, -850
    yield np.abs(np.abs(body["table"] - 18) - 17) - 1.2, p.table_hu
    yield skin, 30
    yield skin + 2.5, -100 + 10 * texture(4)
    yield body["muscle"], 50 + 12 * fibres
    yield body["bone"], 550
    yield body["bone"] + 2, 200 + 50 * texture(2)
    yield body["lung"], p.lung_hu + 25 * texture(4)
    for width_mm, radius in ((14, 4.5), (9, 3.2), (6, 2.2)):
        yield intersection(body["lung"], _threads(texture(width_mm), texture(width_mm), width_mm, radius)), 200
    yield body["diaphragm"], 45
    yield body["stomach"] + 7, -30 + 40 * texture(10)
    yield body["spleen"], 120 + 6 * fibres
    yield body["liver"] + 2, 95 + 6 * fibres
    yield body["trachea"] - 1.5, 40
    yield body["trachea"], -980
    yield wall, p.myocardium_hu
    yield vessels["left"], p.left_hu
    yield vessels["right"], p.right_hu * mixing
    yield chambers["Myo"], p.myocardium_hu + 6 * fibres
    trabeculae = np.maximum(texture(2.5) - 0.3, 0)
    for name, height_mm in (("LV", 2.5), ("RV", 3.5), ("LA", 0), ("RA", 1.5), ("AO", 0), ("PA", 0)):
        yield chambers[name] + height_mm * trabeculae, blood[name] * (mixing if name in ("RV", "RA") else 1)
    yield intersection(vessels["papillary"], chambers["LV"]), p.myocardium_hu


def _threads(first, second, width_mm, radius):
    """Threads along the curves where two random fields of unit variance and this correlation width both vanish."""
    return np.sqrt(first**2 + second**2) * np.float32(1.4 * width_mm) - np.float32(radius)


def _streaks(points, p, rng):
    """Mild streaks in HU at points (3, ...): axial rays from the upper vena cava that fade within 60 mm."""
    x, y = points[0] - np.float32(38), points[1] + np.float32(6)
    angle = np.arctan2(y, x)
    rays = sum(np.sin(n * angle + np.float32(rng.uniform(0, 2 * np.pi))) for n in (5, 8, 13))
    return rays * np.float32(p.streak_hu / 2) * np.exp(-np.hypot(x, y) / np.float32(60))


def _keep_largest_part(label, value):
    """Set all but the largest connected part of a value to 0: carving can leave a crumb, a border can cut a vessel."""
    mask = label == value
    columns = mask.any(axis=2)
    found = [np.flatnonzero(line) for line in (columns.any(axis=1), columns.any(axis=0), mask.any(axis=(0, 1)))]
    if not found[0].size:
        return
    box = tuple(slice(line[0], line[-1] + 1) for line in found)
    parts, count = ndimage.label(mask[box])
    if count > 1:
        label[box][(parts > 0) & (parts != 1 + np.argmax(np.bincount(parts.ravel())[1:]))] = 0


def _warped(points, p):
    """Points of the patient frame displaced by the patient's random diffeomorphism: smooth, whatever the grid."""
    displacement = integrate(
        velocity_field(p.warp_noise, p.warp_sd_mm, p.warp_smoothing_mm, WARP_STEP_MM), WARP_STEP_MM
    )
    index = (points - WARP_LOW_MM[:, None, None, None].astype(np.float32)) / np.float32(WARP_STEP_MM)
    return points + sample(displacement, index)


def _in_heart_frame(points, p):
    turn = Rotation.from_rotvec(np.radians(p.rotation_deg)).as_matrix().T.astype(np.float32) / np.float32(p.scale)
    shift = (CENTRE - turn @ CENTRE).astype(np.float32)
    return np.tensordot(turn, points, 1) + shift[:, None, None, None]


def _blocks(shape, lattice):
    """Tiles of a volume: voxel slices, the lattice's slices around them, and a weight matrix per axis for _upsample."""
    axes = [
        [
            (slice(start, min(start + BLOCK, count)), *_weights(start, min(start + BLOCK, count), count, nodes))
            for start in range(0, count, BLOCK)
        ]
        for count, nodes in zip(shape, lattice, strict=True)
    ]
    for tiles in product(*axes):
        yield tuple(zip(*tiles, strict=True))


def _weights(start, stop, count, nodes):
    """For voxels start..stop of `count`: the slice of `nodes` around them and linear weights (voxels, nodes of it)."""
    position = np.arange(start, stop) * ((nodes - 1) / max(count - 1, 1))
    low, high = int(position[0]), min(int(position[-1]) + 2, nodes)
    distance = np.abs(position[:, None] - np.arange(low, high))
    return slice(low, high), torch.from_numpy(np.maximum(1 - distance, 0).astype(np.float32))


def _upsample(values, weights):
    """Linear interpolation of a piece of the lattice: one weight matrix (voxels, nodes) per axis."""
    first, second, third = weights
    values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    values = second @ (values @ third.T)
    return (first @ values.flatten(1)).unflatten(1, values.shape[1:]).numpy()
