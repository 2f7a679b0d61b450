"""What a folder of phantoms is like against published ranges of adults; prints a Markdown table.

    python benchmarks/phantom_statistics.py --dir=data/phantom/train
    python benchmarks/phantom_statistics.py --dir=data/phantom/any --against=DIR --values=LV=3,RV=1,Myo=2

Sizes and densities are measured on the written files, resampled to 1.5 mm by nearest neighbour; volumes only where the
structure does not touch the volume's border. How the rest is measured stands at its function. With --against only the
label maps are read, of both folders, and sizes and shapes of structures are compared with those of real label maps.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from tqdm import tqdm

from implicitmeshnet.data.dataset import Case, find_cases
from implicitmeshnet.data.nifti import read_image, read_labels
from implicitmeshnet.data.volume import Grid, canonical, resample_nearest
from implicitmeshnet.phantom.patient import LABELS
from implicitmeshnet.script import run_script

STEP_MM = 1.5
SURFACE_POINTS = 100  # of a structure's border, from which surface distances are taken
HUDSMITH = "[Hudsmith 2005](https://doi.org/10.1080/10976640500295516), MR, women to men"
FUCHS = "[Fuchs 2016](https://esc365.escardio.org/journal/49352), CT"
KANG = "Kang 2017, CT, in [Table 3 of this review](https://pmc.ncbi.nlm.nih.gov/articles/PMC7758747/table/t3)"
HINDSO = "[Hindsø 2017](https://doi.org/10.1007/s10554-016-1015-9), CT, mean over the wall"
ROGERS = (
    "[Framingham, CT](https://thoracickey.com/distribution-determinants-and-normal-reference-values-of-thoracic-"
    "and-abdominal-aortic-diameters-by-computed-tomography-from-the-framingham-heart-study)"
)
TRUONG = "[Truong 2012](https://pmc.ncbi.nlm.nih.gov/articles/PMC3275437), CT"
CADEMARTIRI = "[Cademartiri 2004](https://doi.org/10.1007/s00330-003-2188-x), means with and without saline chaser"
RIGHT = "[dual-source CT of 40 patients](https://pubmed.ncbi.nlm.nih.gov/19167178)"
WALL = (
    "[normal 320-row CT](https://discovery.researcher.life/article/normal-perfusion-of-the-left-ventricular-"
    "myocardium-using-320-mdct/0813604bfd783979bb9a6e49a3d33e6a), means of segments"
)
LOW_DOSE = "[Di Cesare 2018](https://doi.org/10.4103/jcis.JCIS_51_18), the scanner's two targets"
KILOVOLTS = "[80 to 100 kV](https://doi.org/10.4329/wjr.v15.i2.32)"
MMWHS = "[MM-WHS, Zhuang 2019](https://doi.org/10.1016/j.media.2019.101537), its CT's means"
PUBLISHED = {  # row: (range or mean ± SD, source)
    "LV volume, ml": ("98 ± 21 to 113 ± 26; 135 ± 26 to 160 ± 29", f"{KANG}, women to men; {HUDSMITH}"),
    "RV volume, ml": ("148 ± 35 to 190 ± 33", HUDSMITH),
    "LA volume, ml": ("89 ± 21 to 103 ± 30, the largest of the cycle", HUDSMITH),
    "RA volume, ml": ("97.5th percentile 73 to 85 ml/m²", f"{FUCHS}, women to men"),
    "Myo volume, ml": ("103 ± 19 to 138 ± 28 (mass over 1.05 g/ml)", f"{KANG}, women to men"),
    "LV wall, mm": (
        "7.8 ± 1.0 to 10.8 ± 1.8; 5.4 and 6.6",
        f"{KANG}, women's posterior wall to men's septum; {HINDSO}, women and men",
    ),
    "ascending aorta, mm": ("31.9 to 34.1, means of women and men", ROGERS),
    "pulmonary trunk, mm": ("25.1 ± 2.8", TRUONG),
    "RV, HU": ("below 175 in 19, above in 21 of 40", RIGHT),
    "Myo, HU": ("79 to 104", WALL),
    "AO, HU": ("325 and 327; 512 ± 108 to 602 ± 125", f"{CADEMARTIRI}; {KILOVOLTS}"),
    "PA, HU": ("320 and 357", CADEMARTIRI),
    "noise in the ascending aorta, SD, HU": ("33 and 51", LOW_DOSE),
    "voxel in plane, mm": ("0.78", MMWHS),
    "voxel through plane, mm": ("1.60", MMWHS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="folder of labelled phantoms")
    parser.add_argument("--against", help="folder of real cases with label maps")
    parser.add_argument("--values", help="their label values: LV=3,RV=1,Myo=2")
    arguments = parser.parse_args()
    if arguments.against:
        compare_sizes(arguments.dir, arguments.against, arguments.values)
        return
    cases = find_cases(arguments.dir, labelled=True)
    rows: dict[str, list[float]] = {}
    for case in tqdm(cases, desc="cases"):
        for name, value in statistics(case).items():
            rows.setdefault(name, []).append(value)
    print(f"| {len(cases)} phantoms | mean ± SD | range | published | source |\n|---|---|---|---|---|")
    for name, found in rows.items():
        values = np.array(found)[~np.isnan(found)]
        if values.size:
            counted = f" (of {values.size})" if values.size < len(cases) else ""
            published, source = PUBLISHED.get(name, ("", ""))
            print(f"| {name}{counted} | {summary(name, values)} | {published} | {source} |")


def compare_sizes(folder: str, real_folder: str, values: str) -> None:
    """Print a table of sizes and shapes of structures in phantoms and in real label maps."""
    wanted = {name: int(value) for name, value in (pair.split("=") for pair in values.split(","))}
    kind = "image" if any(Path(folder).glob("*_image.*")) else "tissues"
    own_values = {name: LABELS[name] for name in wanted}
    phantoms = [Shapes.of(case, own_values) for case in find_cases(folder, True, kind=kind)]
    real = [Shapes.of(case, wanted) for case in find_cases(real_folder, True)]
    print(f"| | {len(phantoms)} phantoms: mean ± SD | range | {len(real)} real: mean ± SD | range | real within |")
    print("|---|---|---|---|---|---|")
    for name in real[0].sizes:
        own, theirs = (np.array([shape.sizes[name] for shape in shapes]) for shapes in (phantoms, real))
        own, theirs = own[np.isfinite(own)], theirs[np.isfinite(theirs)]
        within = np.mean((theirs >= own.min()) & (theirs <= own.max()))
        print(f"| {name} | {summary(name, own)} | {summary(name, theirs)} | {within:.0%} |")
    print("\n| mean surface distance of a real one, mm | to the nearest phantom | to the nearest other real one |")
    print("|---|---|---|")
    for name in wanted:
        phantom_borders = [shape.borders[name] for shape in phantoms]
        borders = [shape.borders[name] for shape in real]
        to_phantom = [nearest_mm(border, phantom_borders) for border in borders]
        to_real = []
        for index, border in enumerate(borders):
            to_real.append(nearest_mm(border, borders[:index] + borders[index + 1 :]))
        cells = [f"{np.mean(found):.1f}, at most {np.max(found):.1f}" for found in (to_phantom, to_real)]
        print(f"| {name} | {' | '.join(cells)} |")


@dataclass(frozen=True)
class Shapes:
    """What is measured of a label map."""

    sizes: dict[str, float]
    borders: dict[str, np.ndarray]
    """Points (N, 3) of each structure's border, in mm along its principal axes from its centre."""

    @classmethod
    def of(cls, case: Case, values: dict[str, int]) -> "Shapes":
        """Of a case's structures by their values: volume, the semi-axes of the ellipsoid with the same moments, and of
        ventricles the wall's thickness and how far apart they lie; NaN for what is not there."""
        labels = read_labels(case.label)
        spacing = labels.grid.spacing_mm
        masks = {name: labels.data == value for name, value in values.items()}
        sizes = {}
        borders = {}
        middles = {}
        for name, mask in masks.items():
            places = np.argwhere(mask) * spacing
            found = len(places) > 3
            variances, axes = np.linalg.eigh(np.cov(places.T)) if found else (np.full(3, np.nan), np.eye(3))
            middles[name] = places.mean(0) if found else np.full(3, np.nan)
            sizes[f"{name} volume, ml"] = len(places) * spacing.prod() / 1000 if found else np.nan
            semi_axes = np.sqrt(5 * variances)[::-1]
            for number, length in zip(("longest", "middle", "shortest"), semi_axes, strict=True):
                sizes[f"{name} {number} semi-axis, mm"] = length
            borders[name] = (_border_mm(mask, spacing) - middles[name]) @ axes
        if {"LV", "RV", "Myo"} <= set(masks):
            sizes["LV wall, mm"] = wall_mm(masks["LV"], masks["Myo"], spacing)
            sizes["RV from LV, centres, mm"] = np.linalg.norm(middles["RV"] - middles["LV"])
        return cls(sizes, borders)


def _border_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The voxels of a mask on its border, (N, 3) mm, in a random order."""
    places = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    return np.random.default_rng(0).permutation(places) * spacing


def nearest_mm(border: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The smallest of the mean distances from a border to others, and back, with principal axes on each other.

    An axis has no direction, so each of its eight signs is tried; half of them are mirror images, as label maps without
    a true direction may be.
    """
    tree = cKDTree(border)
    distances = []
    for other in others:
        of_other = cKDTree(other)
        for signs in product((-1, 1), repeat=3):
            there = tree.query(other[:SURFACE_POINTS] * signs)[0].mean()
            back = of_other.query(border[:SURFACE_POINTS] * signs)[0].mean()
            distances.append((there + back) / 2)
    return min(distances)


def summary(name: str, values: np.ndarray) -> str:
    """Mean, standard deviation and range as two cells of the table; of a share the mean alone."""
    if name.startswith("share"):
        return f"{values.mean():.2f} | "
    digits = 2 if name.startswith("voxel") else 1
    if np.abs(values).max() > 60:
        digits = 0
    numbers = (values.mean(), values.std(), values.min(), values.max())
    mean, sd, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{mean} ± {sd} | {low} to {high}"


def statistics(case: Case) -> dict[str, float]:
    """One case's row values by name; NaN for what the border cuts."""
    image = read_image(case.image)
    spacing, extent = _patient_axes(image.grid)
    hu = canonical(resample_nearest(image, STEP_MM)).data
    label = canonical(resample_nearest(read_labels(case.label), STEP_MM)).data
    masks = {name: label == value for name, value in LABELS.items()}
    whole = {name: not _touches_border(mask) for name, mask in masks.items()}

    row = {}
    for name, mask in masks.items():
        row[f"{name} volume, ml"] = mask.sum() * STEP_MM**3 / 1000 if whole[name] else np.nan
    row["LV wall, mm"] = wall_mm(masks["LV"], masks["Myo"], STEP_MM) if whole["Myo"] else np.nan
    row["ascending aorta, mm"] = ascending_mm(masks["AO"])
    row["pulmonary trunk, mm"] = trunk_mm(masks["PA"])
    for name, mask in masks.items():
        values = hu[ndimage.binary_erosion(mask)]  # away from the edges, where neighbours blur into it
        row[f"{name}, HU"] = values.mean()
        row[f"{name}, SD within, HU"] = values.std()
    row["noise in the ascending aorta, SD, HU"] = noise_hu(hu, masks["AO"])
    row["voxel in plane, mm"] = spacing[0]
    row["voxel through plane, mm"] = spacing[2]
    row["field of view left-right, mm"] = extent[0]
    row["field of view front-back, mm"] = extent[1]
    row["field of view up-down, mm"] = extent[2]
    chambers = [whole[name] for name in LABELS if name not in ("AO", "PA")]
    row["share with a cut chamber or myocardium"] = float(not all(chambers))
    row["share with a cut AO"] = float(not whole["AO"])
    row["share with a cut PA"] = float(not whole["PA"])
    return row


def wall_mm(cavity: np.ndarray, wall: np.ndarray, spacing: np.ndarray | float) -> float:
    """Median over the wall's outer surface of the distance to the cavity."""
    outer = wall & ndimage.binary_dilation(~(wall | cavity))
    distance = ndimage.distance_transform_edt(~cavity, sampling=spacing)
    return np.median(distance[outer])


def ascending_mm(aorta: np.ndarray) -> float:
    """Diameter of a disc of the aorta's axial area, median over the slices from 40 to 80 % of the label's height."""
    area = aorta.sum((0, 1))
    area = area[area > 0]  # voxels in each slice that it reaches
    middle = area[int(0.4 * len(area)) : int(0.8 * len(area))]
    return 2 * np.sqrt(np.median(middle) / np.pi) * STEP_MM


def trunk_mm(artery: np.ndarray) -> float:
    """Twice the largest distance to the wall: the trunk is the label's widest part."""
    padded = np.pad(artery, 1, "edge")  # where the volume cuts it, there is no wall
    distance = ndimage.distance_transform_edt(padded, sampling=STEP_MM)
    return 2 * distance.max() - STEP_MM


def noise_hu(image: np.ndarray, aorta: np.ndarray) -> float:
    """Standard deviation in a ball of 8 mm around the aorta's innermost voxel, as radiologists take it."""
    depth = ndimage.distance_transform_edt(aorta)
    innermost = np.unravel_index(depth.argmax(), aorta.shape)
    offset = np.indices(image.shape) - np.reshape(innermost, (3, 1, 1, 1))
    squared_mm = (offset**2).sum(0) * STEP_MM**2
    return image[squared_mm < 8**2].std()


def _touches_border(mask: np.ndarray) -> bool:
    return any(mask.take(end, axis).any() for axis in range(3) for end in (0, -1))


def _patient_axes(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Spacing and extent (3,) in mm along the patient's left-right, front-back and up-down axes."""
    directions = grid.affine[:3, :3] / grid.spacing_mm
    order = np.argsort(np.abs(directions).argmax(0))
    extent = grid.shape * grid.spacing_mm
    return grid.spacing_mm[order], extent[order]


if __name__ == "__main__":
    run_script(main)
