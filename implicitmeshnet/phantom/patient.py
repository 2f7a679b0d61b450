"""One synthetic patient as numbers: sizes of heart and chest, contrast and noise, each drawn from its own range."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

LABELS = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "Myo": 205, "AO": 820, "PA": 850}
"""The label values of MM-WHS."""
RIGHT = ("RV", "RA", "PA")  # the structures that hold the blood of the right heart
Range = tuple[float, float]
PHASES: dict[str, dict[str, Range]] = {
    "arterial": {"left": (300, 500), "right": (80, 200), "myocardium": (75, 125)},
    "biphasic": {"left": (280, 460), "right": (240, 440), "myocardium": (85, 135)},
    "venous": {"left": (150, 250), "right": (150, 250), "myocardium": (95, 140)},
}
"""Ranges in HU of the blood in the left and right heart and of the myocardium, by contrast phase."""
WARP_SHAPE = (57, 51, 49)  # nodes of the lattice on which the patient's random deformation is drawn


VARIETIES = ("usual", "wide")
"""Usual: adults without disease. Wide: from a child's heart to a dilated or a thick one, at any time of the beat."""


def _uniform(
    low: float, high: float, shape: tuple[int, ...] | None = None, wide: Range | None = None
) -> dict[str, Any]:
    """A number that is uniform in a range, and of patients of wide variety in another one where that is given."""
    return {"range": (low, high), "shape": shape, "wide": wide or (low, high)}


def _usually(value: float, wide: Range) -> dict[str, Any]:
    """A number that only patients of wide variety differ in."""
    return {"value": value, "range": wide, "shape": None, "wide": wide}


@dataclass
class Patient:
    """The numbers that describe one patient: lengths in mm, densities in HU, angles in degrees.

    Each is uniform in the range beside it, or in the wide one. `draw` follows the order of the fields, so a field that
    is added or moved changes every case, unless it is one that usual patients do not differ in.
    """

    # The whole heart: its size and pose, and the smooth random deformation of the whole patient.
    scale: float = field(metadata=_uniform(0.90, 1.08, wide=(0.74, 1.2)))
    rotation_deg: np.ndarray = field(metadata=_uniform(-10, 10, (3,), wide=(-18, 18)))
    warp_noise: np.ndarray = field(metadata=_uniform(-1, 1, (3, *WARP_SHAPE)))
    warp_sd_mm: float = field(metadata=_uniform(2.5, 4.0))
    warp_smoothing_mm: float = field(metadata=_uniform(13, 20))
    # Its parts; a scale multiplies the part's three semi-axes.
    lv_radius: float = field(metadata=_uniform(20.5, 27.5, wide=(18, 36)))
    lv_length: float = field(metadata=_uniform(60, 71, wide=(54, 78)))
    wall_thickness: float = field(metadata=_uniform(7, 11, wide=(4.5, 13)))
    rv_scale: np.ndarray = field(metadata=_uniform(0.9, 1.12, (3,), wide=(0.75, 1.45)))
    la_scale: np.ndarray = field(metadata=_uniform(0.82, 1.1, (3,), wide=(0.65, 1.3)))
    ra_scale: np.ndarray = field(metadata=_uniform(0.85, 1.12, (3,), wide=(0.7, 1.35)))
    aorta_radius: float = field(metadata=_uniform(13, 18, wide=(11, 22)))
    pa_radius: float = field(metadata=_uniform(10.5, 15, wide=(9, 18)))
    vein_radius: np.ndarray = field(metadata=_uniform(5, 7, (4,), wide=(4, 8.5)))  # of the pulmonary veins
    stub_length: np.ndarray = field(
        metadata=_uniform(0, 5, (4,), wide=(0, 18))
    )  # how much of each vein is labelled left atrium
    # What only patients of wide variety differ in.
    filling: float = field(
        metadata=_usually(1, wide=(0, 1.6))
    )  # of the ventricles, 0 at end-systole, from 1 on end-diastole
    septum_deg: float = field(metadata=_usually(0, wide=(-18, 18)))  # the right ventricle's turn about the left one
    veins: float = field(metadata=_usually(4, wide=(3, 6)))  # its whole part: pulmonary veins that join the left atrium
    la_depth: float = field(metadata=_usually(1, wide=(0.55, 0.95)))  # of the left atrium, front to back
    rv_depth: float = field(metadata=_usually(1, wide=(0.85, 1.6)))  # of the right ventricle, from the septum
    rv_apex_mm: float = field(metadata=_usually(0, wide=(3, 28)))  # how far it ends before the left one's
    papillary_scale: float = field(metadata=_usually(1, wide=(0.7, 1.8)))  # of the papillary muscles' radii
    appendage_scale: float = field(metadata=_usually(1, wide=(0.6, 1.45)))  # of both atria's
    pa_drop_mm: float = field(metadata=_usually(0, wide=(0, 14)))  # of the right pulmonary artery, towards the atria
    # The chest around it.
    fat_thickness: float = field(metadata=_uniform(2, 6, wide=(1, 12)))  # on the heart
    chest_scale: np.ndarray = field(metadata=_uniform(0.93, 1.02, (2,), wide=(0.9, 1.06)))  # of its width and depth
    skin_depth: float = field(metadata=_uniform(12, 28, wide=(8, 40)))  # from the ribs to the skin
    back_pressed_in: float = field(metadata=_uniform(4, 10))  # by the table
    diaphragm_height: float = field(metadata=_uniform(-8, 6, wide=(-15, 12)))  # above its usual place
    rib_shift: float = field(metadata=_uniform(0, 30))  # of ribs and vertebrae along the body
    # Contrast; a level of 0 to 1 is the place within the phase's range.
    phase: float = field(metadata=_uniform(0, len(PHASES)))  # its whole part is the index in PHASES
    left_level: float = field(metadata=_uniform(0, 1))
    right_level: float = field(metadata=_uniform(0, 1))
    myocardium_level: float = field(metadata=_uniform(0, 1))
    chamber_factor: np.ndarray = field(metadata=_uniform(0.94, 1.06, (7,)))  # of each structure's own density
    lung_hu: float = field(metadata=_uniform(-890, -800))
    table_hu: float = field(metadata=_uniform(-100, 100))
    mixing: float = field(metadata=_uniform(0.02, 0.25))  # relative deviation of the density in the right heart
    # The scanner.
    streak_hu: float = field(metadata=_uniform(0, 12))
    noise_hu: float = field(metadata=_uniform(15, 45))  # standard deviation
    noise_width_mm: float = field(metadata=_uniform(0.35, 0.8))  # of the Gaussian that correlates the noise
    blur_mm: float = field(metadata=_uniform(0.9, 1.9))  # width of the ramp at every edge

    @classmethod
    def draw(cls, rng: np.random.Generator, variety: str = "usual") -> "Patient":
        """Draw every number, in the order of the fields, for a patient of one of VARIETIES."""
        values = {}
        for each in fields(cls):
            if variety == "usual" and "value" in each.metadata:
                values[each.name] = each.metadata["value"]
                continue
            low, high = each.metadata["wide" if variety == "wide" else "range"]
            values[each.name] = rng.uniform(low, high, each.metadata["shape"])
        return cls(**values)

    @property
    def is_usual(self) -> bool:
        """Whether he is of usual variety; a wide patient's right ventricle ends before the left one's by some mm."""
        return self.rv_apex_mm == 0

    @property
    def emptied(self) -> float:
        """How far the ventricles are from end-diastole: 0, to 1 at end-systole."""
        return max(0.0, 1 - self.filling)

    @property
    def cavity_radius(self) -> float:
        """Of the left ventricle at this time of the beat: at end-systole about half the area is left."""
        return self.lv_radius * (1 - 0.33 * self.emptied)

    @property
    def cavity_length(self) -> float:
        """Likewise."""
        return self.lv_length * (1 - 0.1 * self.emptied)

    @property
    def wall_mm(self) -> float:
        """Of the left ventricle at this time of the beat: its muscle keeps its volume."""
        return self.wall_thickness * (1 + 0.42 * self.emptied)

    @property
    def phase_name(self) -> str:
        """The contrast phase, a key of PHASES."""
        last = len(PHASES) - 1
        return list(PHASES)[min(int(self.phase), last)]

    @property
    def left_hu(self) -> float:
        """The density of the blood in the left heart."""
        return self._hu("left", self.left_level)

    @property
    def right_hu(self) -> float:
        """The density of the blood in the right heart."""
        return self._hu("right", self.right_level)

    @property
    def myocardium_hu(self) -> float:
        """The density of the heart's muscle."""
        return self._hu("myocardium", self.myocardium_level)

    @property
    def blood_hu(self) -> dict[str, float]:
        """The density of each structure by name: of the blood in it, and for "Myo" of the muscle."""
        densities = {}
        for name, factor in zip(LABELS, self.chamber_factor, strict=True):
            base = self.right_hu if name in RIGHT else self.left_hu
            densities[name] = float(base * factor)
        densities["Myo"] = self.myocardium_hu
        return densities

    def _hu(self, tissue: str, level: float) -> float:
        low, high = PHASES[self.phase_name][tissue]
        return low + level * (high - low)
