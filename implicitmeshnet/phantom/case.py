"""Synthetic whole-heart CT with labels in MM-WHS values: smooth anatomy from signed distances, then a CT of it.

Everything is placed in one patient frame, millimetres RAS, and evaluated at the voxels' own world positions, so the
affine of a case is right by construction. The signed distances are smooth: they are evaluated on a lattice of about
2 mm that spans the volume, and are interpolated linearly to the voxels, tile by tile, which bounds the memory.
docs/phantom.md compares what comes out (volumes, diameters, densities, noise) with published ranges.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from implicitmeshnet.phantom.anatomy import CENTRE, CHEST_CENTRE, Fields, heart, table, thorax
from implicitmeshnet.phantom.patient import LABELS, Patient
from implicitmeshnet.phantom.solids import intersection, union
from implicitmeshnet.phantom.warp import integrate, sample, velocity_field
from implicitmeshnet.tissues import BLOOD_OF, Tissue

FIELDS_OF_VIEW = ("cardiac", "chest")
WIDE_SHARE = 0.25  # of the cardiac views, that have the chest's width and depth
MAX_MATRIX = 512  # voxels in plane
MAX_VOXELS = 70e6
LATTICE_MM = 2.0
TILE = 48  # voxels along each axis
WARP_STEP_MM = 8.0
WARP_LOW_MM = np.array([-216.0, -216.0, -176.0])  # corner of the warp's lattice in the patient frame
AIR_HU = -1000


class Layer(NamedTuple):
    """What is painted over the layers before it."""

    distance: np.ndarray  # a field in mm
    density: float | np.ndarray  # in HU, a number or a field
    tissue: Tissue


class Phantom(NamedTuple):
    """What is drawn of a case."""

    image: np.ndarray  # (X, Y, Z) int16, HU
    label: np.ndarray  # (X, Y, Z) int16
    tissues: np.ndarray  # (X, Y, Z) uint8, see `Tissue`
    affine: np.ndarray  # (4, 4)


Texture = Callable[[float], np.ndarray]
"""Draws a random field of mean 0 and variance 1 on the lattice, given its correlation width in mm."""


def create_case(
    seed: int,
    case: int,
    spacing_mm: float | None = None,
    field_of_view: str = "cardiac",
    shift_mm: float = 0.0,
    variety: str = "usual",
) -> Phantom:
    """Draw case number `case` of `seed`.

    The three options that follow are those of `draw_grid`, the last is one of VARIETIES. The same arguments give the
    same case to the bit.
    """
    rng = np.random.default_rng([seed, case])
    patient = Patient.draw(rng, variety)
    shape, affine, origin = draw_grid(rng, spacing_mm, field_of_view, shift_mm)
    return render(patient, shape, affine, origin, rng)


def draw_grid(
    rng: np.random.Generator,
    spacing_mm: float | None = None,
    field_of_view: str = "cardiac",
    shift_mm: float = 0.0,
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Draw a volume's shape (3,) and (4, 4) affine, and the world position (3,) that the patient frame's origin has.

    The slices' axis is the patient's superior-inferior one; the two others share the in-plane spacing of 0.3 to 1.0 mm
    (512 voxels at most), and through plane it is 0.4 to 1.6 mm; `spacing_mm` replaces all three. The array axes are
    permuted and flipped at random (left-handed ones occur too) and turned by up to 10 degrees.
    "cardiac" views are centred on the heart, and one in four has the width and depth of a "chest" view, which is
    centred on the chest. A `shift_mm` above 0 adds to one side of each axis, even beyond the 512 voxels, until the
    volume's centre is that far from the heart's.
    """
    extent, centre = _draw_view(rng, field_of_view)
    spacing = _draw_spacing(rng, extent)
    if spacing_mm is not None:  # only now, so that the draws that follow are the same
        spacing = np.full(3, spacing_mm)
    order = rng.permutation(3)  # array axis a runs along the patient's axis order[a]
    axes = _draw_axes(rng, order)
    spacing = spacing[order]
    extent = extent[order]
    origin = rng.uniform(-150, 150, 3)
    direction = rng.normal(size=3)
    if shift_mm:
        # To move the centre by a step and lose nothing, the volume grows by twice the step towards its side.
        wanted = shift_mm * direction / np.linalg.norm(direction) + CENTRE
        step = (wanted - centre) @ axes
        extent = extent + 2 * np.abs(step)
        centre = centre + axes @ step
    shape = np.rint(extent / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    from_corner = affine[:3, :3] @ (shape - 1) / 2  # to the centre of the volume
    affine[:3, 3] = origin + centre - from_corner
    return tuple(int(n) for n in shape), affine, origin


def _draw_view(rng: np.random.Generator, field_of_view: str) -> tuple[np.ndarray, np.ndarray]:
    """Extent (3,) and centre (3,) of a view in the patient frame, mm."""
    # Every kind of view is drawn whichever is wanted, so that the rest of the case does not depend on it.
    chest = rng.uniform([375, 270, 260], [400, 330, 330])
    side = rng.uniform(182, 260)
    height = rng.uniform(140, 190)
    jitter = rng.uniform(-4.5, 4.5, 3)
    wide = rng.random() < WIDE_SHARE
    if field_of_view == "chest":
        return chest, CHEST_CENTRE + jitter
    extent = np.array([chest[0], chest[1], height] if wide else [side, side, height])
    return extent, CENTRE + jitter


def _draw_spacing(rng: np.random.Generator, extent: np.ndarray) -> np.ndarray:
    """Spacing (3,) in mm along the patient's axes: as fine as the limits of voxels in plane and in all allow."""
    finest = extent[:2].max() / MAX_MATRIX
    plane = rng.uniform(max(0.3, finest), 1.0)
    finest = extent.prod() / plane**2 / MAX_VOXELS
    through = rng.uniform(max(0.4, finest), 1.6)
    return np.array([plane, plane, through])


def _draw_axes(rng: np.random.Generator, order: np.ndarray) -> np.ndarray:
    """Unit vectors (3, 3), a column for each array axis: the patient's axes in this order, flipped and turned."""
    axes = np.eye(3)[:, order] * rng.choice([-1, 1], 3)
    turn = rng.normal(size=3)
    angle = np.radians(max(0, rng.uniform(-5, 10)))  # one volume in three is not turned
    turn *= angle / np.linalg.norm(turn)
    return Rotation.from_rotvec(turn).as_matrix() @ axes


def render(
    patient: Patient, shape: tuple[int, ...], affine: np.ndarray, origin: np.ndarray, rng: np.random.Generator
) -> Phantom:
    """A patient on the grid of this shape and (4, 4) affine.

    `origin` (3,) is the world position of the patient frame's origin; `rng` draws textures, streaks and noise.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lattice = _lattice_shape(shape, spacing)
    points = _lattice_points(shape, lattice, affine, origin)
    warped = _warped(points, patient)
    chambers, vessels = heart(_in_heart_frame(warped, patient), patient)
    body = thorax(warped, chambers, vessels, patient)
    body["table"] = table(points, patient)
    layers = list(layers_of(body, chambers, vessels, patient, rng))
    streaks = _streaks(points, patient, rng)
    noise = _noise(shape, spacing, patient, rng)
    edge_mm = max(patient.blur_mm, spacing.mean())
    label = np.zeros(shape, dtype=np.int16)
    image = np.empty(shape, dtype=np.int16)
    tissues = np.full(shape, Tissue.AIR, dtype=np.uint8)
    for tile in _tiles(shape, lattice):
        _write_labels(label, chambers, tile)
        values = _paint(layers, tile, edge_mm, tissues) + noise[tile.voxels] + tile.upsample(streaks)
        image[tile.voxels] = np.rint(np.clip(values, -1024, 3071))  # the range of a 12-bit scanner
    for value in LABELS.values():
        _keep_largest_part(label, value)
    return Phantom(image, label, tissues, affine)


def _lattice_shape(shape: tuple[int, ...], spacing: np.ndarray) -> list[int]:
    """Nodes of the lattice along each axis: LATTICE_MM apart or closer, and no more of them than voxels."""
    lattice = []
    for count, step in zip(shape, spacing, strict=True):
        nodes = int(np.ceil((count - 1) * step / LATTICE_MM)) + 1
        lattice.append(max(2, min(count, nodes)))
    return lattice


def _lattice_points(shape: tuple[int, ...], lattice: list[int], affine: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Positions (3, I, J, K) float32 of the lattice's nodes in the patient frame; it spans the voxels' centres."""
    lines = [np.linspace(0, count - 1, nodes) for count, nodes in zip(shape, lattice, strict=True)]
    index = np.stack(np.meshgrid(*lines, indexing="ij"))
    offset = affine[:3, 3] - origin
    points = np.tensordot(affine[:3, :3], index, 1) + offset[:, None, None, None]
    return points.astype(np.float32)


def _warped(points: np.ndarray, patient: Patient) -> np.ndarray:
    """Points of the patient frame displaced by the patient's random diffeomorphism, which no grid changes."""
    velocity = velocity_field(patient.warp_noise, patient.warp_sd_mm, patient.warp_smoothing_mm, WARP_STEP_MM)
    displacement = integrate(velocity, WARP_STEP_MM)
    low = WARP_LOW_MM[:, None, None, None].astype(np.float32)
    index = (points - low) / np.float32(WARP_STEP_MM)
    return points + sample(displacement, index)


def _in_heart_frame(points: np.ndarray, patient: Patient) -> np.ndarray:
    """Points where the heart of standard pose and size has them: its rotation and scale about CENTRE undone."""
    turn = Rotation.from_rotvec(np.radians(patient.rotation_deg)).as_matrix()
    undo = turn.T.astype(np.float32) / np.float32(patient.scale)
    shift = (CENTRE - undo @ CENTRE).astype(np.float32)
    return np.tensordot(undo, points, 1) + shift[:, None, None, None]


def layers_of(
    body: Fields, chambers: Fields, vessels: Fields, patient: Patient, rng: np.random.Generator
) -> Iterator[Layer]:
    """The layers in painting order, the later over the earlier; `body` is what `thorax` gives and the "table"."""
    texture = partial(_texture, rng, body["skin"].shape)
    fibres = texture(3)
    mixing = 1 + patient.mixing * texture(8)
    yield from _surroundings(body, fibres, patient, texture)
    yield from _vessels_and_heart(chambers, vessels, fibres, mixing, patient, texture)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], width_mm: float) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, width_mm / LATTICE_MM, mode="wrap", truncate=3)
    return smooth / smooth.std()


def _surroundings(body: Fields, fibres: np.ndarray, patient: Patient, texture: Texture) -> Iterator[Layer]:
    """The table, the body's wall, the lungs with their vessels, and the organs below and between them."""
    foam = np.abs(body["table"] - 18) - 17
    yield Layer(foam, -850, Tissue.TABLE_FOAM)
    yield Layer(np.abs(foam) - 1.2, patient.table_hu, Tissue.TABLE_SHELL)  # around it
    skin = intersection(body["skin"], body["table"])
    yield Layer(skin, 30, Tissue.SKIN)
    yield Layer(skin + 2.5, -100 + 10 * texture(4), Tissue.FAT)
    yield Layer(body["muscle"], 50 + 12 * fibres, Tissue.MUSCLE)
    yield Layer(body["bone"], 550, Tissue.BONE)
    yield Layer(body["bone"] + 2, 200 + 50 * texture(2), Tissue.MARROW)
    yield Layer(body["lung"], patient.lung_hu + 25 * texture(4), Tissue.LUNG)
    # Lung vessels of three sizes: the wider ones are fewer, as their fields vary more slowly.
    for width_mm, radius_mm in ((14, 4.5), (9, 3.2), (6, 2.2)):
        threads = _random_threads(texture(width_mm), texture(width_mm), width_mm, radius_mm)
        yield Layer(intersection(body["lung"], threads), 200, Tissue.LUNG_VESSEL)
    yield Layer(body["diaphragm"], 45, Tissue.DIAPHRAGM)
    yield Layer(body["stomach"] + 7, -30 + 40 * texture(10), Tissue.STOMACH)
    yield Layer(body["spleen"], 120 + 6 * fibres, Tissue.SPLEEN)
    yield Layer(body["liver"] + 2, 95 + 6 * fibres, Tissue.LIVER)
    yield Layer(body["trachea"] - 1.5, 40, Tissue.AIRWAY_WALL)
    yield Layer(body["trachea"], -980, Tissue.AIRWAY)


def _random_threads(first: np.ndarray, second: np.ndarray, width_mm: float, radius_mm: float) -> np.ndarray:
    """Threads along the curves where two random fields of unit variance and this correlation width both vanish."""
    # Such a field changes by about 1 / (1.4 width) a millimetre, so this is roughly a distance.
    return np.sqrt(first**2 + second**2) * np.float32(1.4 * width_mm) - np.float32(radius_mm)


def _vessels_and_heart(
    chambers: Fields,
    vessels: Fields,
    fibres: np.ndarray,
    mixing: np.ndarray,
    patient: Patient,
    texture: Texture,
) -> Iterator[Layer]:
    """The walls of vessels and chambers, the blood in them, and muscle; `mixing` varies the right heart's contrast."""
    muscle_hu = patient.myocardium_hu
    yield Layer(_walls(chambers, vessels), muscle_hu, Tissue.WALL)
    yield Layer(vessels["left"], patient.left_hu, Tissue.LEFT_VESSEL)
    yield Layer(vessels["right"], patient.right_hu * mixing, Tissue.RIGHT_VESSEL)
    yield Layer(chambers["Myo"], muscle_hu + 6 * fibres, Tissue.MYOCARDIUM)
    # Muscle stands into some chambers by this much at the most; the labels ignore it.
    trabeculae = np.maximum(texture(2.5) - 0.3, 0)
    for name, height_mm in (("LV", 2.5), ("RV", 3.5), ("LA", 0), ("RA", 1.5), ("AO", 0), ("PA", 0)):
        blood_hu = patient.blood_hu[name] * (mixing if name in ("RV", "RA") else 1)
        yield Layer(chambers[name] + height_mm * trabeculae, blood_hu, BLOOD_OF[name])
    yield Layer(intersection(vessels["papillary"], chambers["LV"]), muscle_hu, Tissue.MYOCARDIUM)


def _walls(chambers: Fields, vessels: Fields) -> np.ndarray:
    """Everything within a wall's thickness of a chamber or a vessel."""
    thick = [chambers[name] - 2.2 for name in ("LA", "RA", "RV", "Myo")]
    thin = [chambers[name] - 1.2 for name in ("AO", "PA")]
    return union(*thick, *thin, vessels["left"] - 1, vessels["right"] - 0.8)


def _streaks(points: np.ndarray, patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """Mild streaks in HU at points (3, ...): axial rays from the upper vena cava that fade within 60 mm."""
    x = points[0] - np.float32(38)
    y = points[1] + np.float32(6)
    angle = np.arctan2(y, x)
    rays = np.zeros_like(angle)
    for count in (5, 8, 13):
        start = np.float32(rng.uniform(0, 2 * np.pi))
        rays = rays + np.sin(count * angle + start)
    fading = np.exp(-np.hypot(x, y) / np.float32(60))
    return rays * np.float32(patient.streak_hu / 2) * fading


def _noise(shape: tuple[int, ...], spacing: np.ndarray, patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """The scanner's noise in HU, (X, Y, Z) float32, correlated over `patient.noise_width_mm`."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter(noise, patient.noise_width_mm / spacing, truncate=3)
    noise *= np.float32(patient.noise_hu / noise.std())
    return noise


class Piece(NamedTuple):
    """A run of voxels on one axis of the volume."""

    voxels: slice
    nodes: slice  # of the lattice, around the voxels
    weights: torch.Tensor  # of the nodes for linear interpolation to the voxels, (voxels, nodes)


@dataclass
class Tile:
    """A block of the volume, and the piece of the lattice around it from which its values are interpolated."""

    voxels: tuple[slice, ...]  # of the volume
    nodes: tuple[slice, ...]  # of the lattice
    weights: list[torch.Tensor]  # as in Piece, for each axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels along each axis."""
        return tuple(len(each) for each in self.weights)

    def upsample(self, field: np.ndarray) -> np.ndarray:
        """A field on the whole lattice, linearly interpolated to the tile's voxels: float32 of the tile's shape."""
        first, second, third = self.weights
        piece = np.ascontiguousarray(field[self.nodes], dtype=np.float32)
        # Linear interpolation works axis by axis, each one a product of matrices.
        values = second @ (torch.from_numpy(piece) @ third.T)
        return (first @ values.flatten(1)).unflatten(1, values.shape[1:]).numpy()


def _tiles(shape: Sequence[int], lattice: Sequence[int]) -> Iterator[Tile]:
    """Tiles of at most TILE voxels along each axis that cover a volume whose lattice has this many nodes."""
    axes = [_cut_axis(count, nodes) for count, nodes in zip(shape, lattice, strict=True)]
    for pieces in product(*axes):
        voxels = tuple(piece.voxels for piece in pieces)
        nodes = tuple(piece.nodes for piece in pieces)
        yield Tile(voxels, nodes, [piece.weights for piece in pieces])


def _cut_axis(count: int, nodes: int) -> list[Piece]:
    """An axis of `count` voxels, which the lattice's `nodes` span, in pieces of at most TILE voxels."""
    pieces = []
    for start in range(0, count, TILE):
        stop = min(start + TILE, count)
        around, weights = _linear_weights(start, stop, count, nodes)
        pieces.append(Piece(slice(start, stop), around, weights))
    return pieces


def _linear_weights(start: int, stop: int, count: int, nodes: int) -> tuple[slice, torch.Tensor]:
    """For voxels start..stop of `count`: the slice of `nodes` around them and linear weights (voxels, nodes of it)."""
    # The first voxel lies on the first node and the last voxel on the last one.
    position = np.arange(start, stop) * ((nodes - 1) / max(count - 1, 1))
    low = int(position[0])
    high = min(int(position[-1]) + 2, nodes)
    distance = np.abs(position[:, None] - np.arange(low, high))
    weights = np.maximum(1 - distance, 0).astype(np.float32)
    return slice(low, high), torch.from_numpy(weights)


def _write_labels(label: np.ndarray, chambers: Fields, tile: Tile):
    """Set the voxels of a tile that lie inside a structure to its value."""
    for name, distance in chambers.items():
        # Interpolation goes nowhere below the nodes' lowest value: most structures are far away and can be skipped.
        if distance[tile.nodes].min() < 0:
            label[tile.voxels][tile.upsample(distance) < 0] = LABELS[name]


def _paint(layers: list[Layer], tile: Tile, edge_mm: float, tissues: np.ndarray) -> np.ndarray:
    """The density of a tile in HU: each layer painted over the earlier ones, its edge a ramp of `edge_mm`.

    The tile's voxels of a map of `tissues` (X, Y, Z) become what fills most of them.
    """
    image = np.full(tile.shape, AIR_HU, dtype=np.float32)
    of_tile = tissues[tile.voxels]  # a view
    for layer in _visible(layers, tile, edge_mm):
        density = layer.density
        hu = tile.upsample(density) if isinstance(density, np.ndarray) else np.float32(density)
        # The layer's share of a voxel falls from 1 to 0 over the ramp; in place, as this is where the time goes.
        share = tile.upsample(layer.distance)
        of_tile[share < 0] = layer.tissue
        share *= np.float32(-1 / edge_mm)
        share += np.float32(0.5)
        np.clip(share, 0, 1, out=share)
        image += share * (hu - image)
    return image


def _visible(layers: list[Layer], tile: Tile, edge_mm: float) -> Iterator[Layer]:
    """The layers that show in a tile, in painting order: those that reach it and that no later one hides."""
    seen = []
    for layer in reversed(layers):
        part = layer.distance[tile.nodes]
        if part.min() < edge_mm / 2:
            seen.append(layer)
            if part.max() < -edge_mm / 2:  # it fills the tile
                break
    return reversed(seen)


def _keep_largest_part(label: np.ndarray, value: int):
    """Set all but the largest connected part of a value to 0: carving can leave a crumb, a border can cut a vessel."""
    mask = label == value
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return
    inside = label[boxes[0]]  # a view: finding parts in the box alone is much faster
    parts, count = ndimage.label(inside == value)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        largest = 1 + np.argmax(sizes[1:])
        inside[(parts > 0) & (parts != largest)] = 0
