"""What labelled cases are like, as far as a config depends on it: label values, their places and sizes, voxels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from implicitmeshnet.data.dataset import Case, read_case
from implicitmeshnet.data.volume import Volume, canonical, slices_along, thick_axis, turned_by

HIGHEST_VALUE = 2**15 - 1  # of a label that a config can name
CT_AIR_HU = -200.0  # below it lie air and lung in CT; other images have no such values
QUANTILES = (0.005, 0.995)  # of the intensities of structures' voxels, as nnU-Net takes them
THICK = 3.0  # ratio of spacings from which slices count as thick (nnU-Net)
SLICES_ALONG_Z = (1.0, 1.0, THICK)
SAMPLES = 20_000  # labelled voxels of a case whose intensities are kept, up to twice as many


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one case is like; lengths are along the axes of the canonical volume, positions from the image's centre."""

    name: str
    shape: tuple[int, int, int]  # of the image
    spacing_mm: np.ndarray  # (3,)
    voxels: dict[int, int]  # by label value
    boxes_mm: dict[int, np.ndarray]  # (2, 3) the outer faces of each label value's bounding box
    contacts_mm2: dict[tuple[int, int], float]  # area between two label values, 0 among them, the smaller one first
    unusable: tuple[int, ...]  # values of the label map that no config can name
    aligned: bool  # whether the image's axes are exactly the patient's
    lowest: float  # value of the image's first channel
    sampled_labels: np.ndarray  # (N,) label values of every n-th labelled voxel
    sampled_intensities: np.ndarray  # (C, N) the image's values there, by channel
    warnings: tuple[str, ...]

    def box_mm(self, values: Iterable[int]) -> np.ndarray | None:
        """The outer faces (2, 3) of the bounding box of label values; None where the case has none of them."""
        boxes = [self.boxes_mm[value] for value in values if value in self.boxes_mm]
        if not boxes:
            return None
        stacked = np.stack(boxes)
        return np.stack([stacked[:, 0].min(0), stacked[:, 1].max(0)])

    def intensity_range(self, values: Iterable[int], channel: int) -> tuple[float, float] | None:
        """QUANTILES of a channel over the voxels of label values; None where the case has none of them."""
        chosen = np.isin(self.sampled_labels, list(values))
        if not chosen.any():
            return None
        low, high = np.quantile(self.sampled_intensities[channel][chosen], QUANTILES)
        return float(low), float(high)


def survey_case(case: Case) -> CaseFacts:
    """Read a labelled case and measure it; InputError as `read_case`."""
    image, labels = read_case(case)
    assert labels is not None, "find_cases was asked for labelled cases"
    if thick_axis(image.grid.spacing_mm, THICK) is not None:  # as a config with thick voxels will have them turned
        turn = slices_along(image.grid, SLICES_ALONG_Z)
        image, labels = turned_by(image, turn), turned_by(labels, turn)
    image = canonical(image)
    labels = canonical(labels)
    inside = _bounding_box(labels.data > 0)
    cut = labels.data[inside]
    present = np.unique(labels.data)
    values = [int(value) for value in present if 0 < value <= HIGHEST_VALUE]
    voxels = {value: int(np.count_nonzero(cut == value)) for value in values}
    boxes_mm = {value: _box_mm(labels, value) for value in values}
    labelled = np.flatnonzero(cut > 0)
    sampled = labelled[:: max(1, len(labelled) // SAMPLES)]
    return CaseFacts(
        case.name,
        image.grid.shape,
        image.grid.spacing_mm,
        voxels,
        boxes_mm,
        _contacts_mm2(cut, image.grid.spacing_mm),
        tuple(int(value) for value in present if value != 0 and int(value) not in values),
        np.count_nonzero(np.abs(image.grid.affine[:3, :3]) > 1e-6) == 3,
        float(image.data.min()),
        cut.ravel()[sampled],
        np.stack([channel[inside].ravel()[sampled] for channel in image.channels]),
        image.warnings + labels.warnings,
    )


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box of a mask (X, Y, Z), one voxel wider where the volume goes on; all of the volume for an empty mask."""
    box = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        if not len(along):
            return (slice(None),) * 3
        box.append(slice(max(along[0] - 1, 0), along[-1] + 2))
    return tuple(box)


def _box_mm(labels: Volume, value: int) -> np.ndarray:
    """The outer faces (2, 3) of a label value's bounding box, in mm from the volume's centre."""
    mask = labels.data == value
    middle = (np.array(mask.shape) - 1) / 2
    ends = np.empty((2, 3))
    for axis in range(3):
        along = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        ends[:, axis] = along[0] - 0.5, along[-1] + 0.5
    return (ends - middle) * labels.grid.spacing_mm


def _contacts_mm2(labels: np.ndarray, spacing_mm: np.ndarray) -> dict[tuple[int, int], float]:
    """The area between the voxels of each two values of a label map (X, Y, Z) that touch."""
    areas: dict[tuple[int, int], float] = {}
    face_mm2 = np.prod(spacing_mm) / spacing_mm
    for axis in range(3):
        first = np.moveaxis(labels, axis, 0)[:-1]
        second = np.moveaxis(labels, axis, 0)[1:]
        differ = first != second
        pairs = np.stack([first[differ], second[differ]], 1)
        pairs.sort(1)
        touching, counts = np.unique(pairs, axis=0, return_counts=True)
        for (low, high), count in zip(touching.tolist(), counts.tolist(), strict=True):
            areas[low, high] = areas.get((low, high), 0.0) + count * float(face_mm2[axis])
    return areas
