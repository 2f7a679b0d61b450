"""What follows from a survey for a config: every choice with its reason.

The rules for voxels, thick slices and the field of view are nnU-Net's where the two methods ask the same (Isensee et
al., Nature Methods 2021, supplementary note 2); those for meshes are ours, from the trainings in docs/results.md.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from implicitmeshnet.config import REPOSITORY, load_config
from implicitmeshnet.data.volume import thick_axis
from implicitmeshnet.planning.survey import CT_AIR_HU, HIGHEST_VALUE, THICK, CaseFacts
from implicitmeshnet.script import InputError, shorten

MMWHS = {"LV": [500], "RV": [600], "LA": [420, 421], "RA": [550], "Myo": [205], "AO": [820], "PA": [850]}
"""The label values of the MM-WHS challenge, which name themselves."""
ENCLOSED = 0.6  # share of a structure's surface that touches the one around it
WIDER = 2.0  # the window's width, relative to the labels' range: what lies around them has to show too
THICK_QUANTILE = 0.1  # of the slices' spacings over the cases, the target along their axis (nnU-Net)
CENTRED = 1.5  # a box around the volume's centre may be this much larger than one around the structures
FOUND_MARGIN_MM = 6.0  # on every side of a box that the coarse pass places: what it may be off by
MARGIN_VOXELS = 1.0  # of the finest spacing, on every side of any box, so that a surface can lie outside its label
LARGEST_STEP = 1.25  # by which a spacing grows at once
VALIDATION_SHARE = 0.2  # of the cases
LOGITS_PER_VOXEL = 1.9  # by which the occupancy's logit changes over one voxel's width
VOXELS_PER_EDGE = 2.0  # of the mesh's edges: the longest that a structure may have
SUBDIVISIONS = (2, 3, 4)  # of the template
LAPLACIAN = 6.0  # final weight of the Laplacian loss for 642 vertices and a mean radius of 0.42, normalised
LAPLACIAN_FALL = 20.0  # the first weight, relative to the final one
WIDTHS = (16, 32, 64, 128)  # of the encoder's levels, in channels, and so the most levels
PROFILE_VOXELS = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)  # of the last stage, see config.NetworkConfig
DECODER_WIDTHS = (16, 16, 32)
LEAST_SIDE = 6  # voxels of a grid, see config.DataConfig.shape
LEAST_BOTTLENECK = 2  # voxels along a side
HEARTS = "configs_implicitmeshnet/whole_heart_any.json"  # of weights that know hearts in any contrast, of WIDTHS


@dataclass(frozen=True)
class Choice:
    """A value for a key of the config, and why."""

    key: str
    value: Any
    reason: str


def tree_of(choices: Iterable[Choice]) -> dict[str, Any]:
    """The choices as the sections of a JSON config."""
    tree: dict[str, Any] = {}
    for choice in choices:
        section, _, name = choice.key.partition(".")
        tree.setdefault(section, {})[name] = choice.value
    return tree


def choose_ignored(description: dict[str, Any]) -> list[Choice]:
    """The label value that dataset.json calls "ignore", as nnU-Net has it."""
    labels = description.get("labels")
    value = labels.get("ignore") if isinstance(labels, dict) else None
    if not isinstance(value, int) or value <= 0:
        return []
    return [Choice("data.ignore", [value], "dataset.json says so")]


def choose_structures(
    facts: Sequence[CaseFacts], description: dict[str, Any], asked: Sequence[str] | None
) -> tuple[Choice, list[str]]:
    """The structures, and a line on each thing about them that may be wrong.

    `description` is what dataset.json says, {} without one. `asked` are names of structures that are there, or
    NAME=VALUE,VALUE for label values of one's own. Raises InputError where there are none, or not those asked for.
    """
    present = sorted(set().union(*(case.voxels for case in facts)))
    named, reason = _named(present, description)
    if not named:
        raise InputError(f"labels: wanted label values of structures, 1 to {HIGHEST_VALUE}, in any case, found none")
    lines = [] if asked else _region_doubts(named, description) + _absence_doubts(present, description)
    lines += _value_doubts(facts)
    if asked:
        named = _all_asked(asked, named, present)
        reason = "as asked for"
    for name, values in named.items():
        cases = [case.name for case in facts if case.box_mm(values) is not None]
        if len(cases) < len(facts):
            which = f"only {cases[0]}" if len(cases) == 1 else f"{len(cases)} of {len(facts)} cases"
            lines.append(f"{name}: is labelled in {which}")
    return Choice("data.structures", named, reason), lines


def _named(present: Sequence[int], description: dict[str, Any]) -> tuple[dict[str, list[int]], str]:
    """Structures by name for the label values that are there, and where the names come from."""
    described = _described(description)
    source = "names of dataset.json" if described else "names of MM-WHS"
    names: dict[int, str] = {}
    # Of nnU-Net's regions the smaller ones keep their values, and one that holds them is named by what is left of it.
    for name, values in sorted((described or MMWHS).items(), key=lambda entry: -len(entry[1])):
        names |= dict.fromkeys(values, name)
    named: dict[str, list[int]] = {}
    ignored = [value for choice in choose_ignored(description) for value in choice.value]
    for value in sorted(set(present) - set(ignored)):
        named.setdefault(names.get(value, f"label_{value}"), []).append(value)
    if not set(names) & set(present):
        source = "the label values that are there"
    return named, source


def _described(description: dict[str, Any]) -> dict[str, list[int]]:
    """The structures of dataset.json, as the Decathlon ("1": "LV") or nnU-Net ("LV": 1) write them."""
    labels = description.get("labels")
    described: dict[str, list[int]] = {}
    if not isinstance(labels, dict):
        return described
    for key, entry in labels.items():
        name, value = (entry, key) if isinstance(entry, str) else (key, entry)
        values = value if isinstance(value, list) else [value]
        numbers = [int(number) for number in values if str(number).isdecimal() and int(number) > 0]
        if numbers and name != "ignore":
            described[_plain(name)] = numbers
    return described


def _region_doubts(named: dict[str, list[int]], description: dict[str, Any]) -> list[str]:
    """A line on each region of dataset.json that is no structure of its own, or only in part."""
    lines = []
    for name, values in _described(description).items():
        others = [other for other in named if other != name and set(named[other]) & set(values)]
        if not others:
            continue
        found = f"{name}: dataset.json's region holds {' '.join(map(str, values))}, of which {', '.join(others)}"
        if name in named:
            left = " ".join(map(str, named[name]))
            lines.append(
                f"{found} have values of their own: its label is {left}; data.encloses says what its mesh holds,"
                " and what is held itself holds nothing"
            )
        else:
            lines.append(f"{found} have all: no structure of its own")
    return lines


def _absence_doubts(present: Sequence[int], description: dict[str, Any]) -> list[str]:
    """A line on each structure of dataset.json that no case has."""
    lines = []
    for name, values in _described(description).items():
        if not set(values) & set(present):
            lines.append(f"{name}: dataset.json says {' '.join(map(str, values))}, and no case has it")
    return lines


def _value_doubts(facts: Sequence[CaseFacts]) -> list[str]:
    """A line on label values that no config can name, which are taken for background."""
    found = sorted(set().union(*(case.unusable for case in facts)))
    if not found:
        return []
    return [f"label values {shorten(', '.join(map(str, found)))}: not from 1 to {HIGHEST_VALUE}, so left out"]


def _plain(name: str) -> str:
    """A name of letters, digits and underscores alone."""
    return re.sub(r"\W+", "_", name).strip("_")[:50] or "label"


def _all_asked(asked: Sequence[str], named: dict[str, list[int]], present: Sequence[int]) -> dict[str, list[int]]:
    """The structures that arguments ask for; InputError where one is asked for twice."""
    chosen: dict[str, list[int]] = {}
    for text in asked:
        name, values = _asked(text, named, present)
        if name in chosen:
            raise InputError(f"--structures: wanted each name once, found {name} twice; LA=420,421 takes both values")
        chosen[name] = values
    return chosen


def _asked(text: str, named: dict[str, list[int]], present: Sequence[int]) -> tuple[str, list[int]]:
    """The structure that an argument asks for; InputError where no case has it."""
    name, equals, numbers = text.partition("=")
    if not equals:
        if name not in named:
            raise InputError(f"--structures: wanted names among {', '.join(named)}, found {shorten(text)}")
        return name, named[name]
    values = numbers.split(",")
    if not all(value.isdecimal() and int(value) in present for value in values):
        raise InputError(
            f"--structures: wanted NAME=VALUE[,VALUE] with label values among {shorten(present)}, found {shorten(text)}"
        )
    return name, [int(value) for value in values]


def choose_encloses(
    facts: Sequence[CaseFacts], structures: dict[str, list[int]], description: dict[str, Any]
) -> Choice:
    """Which structures' meshes hold others: regions of dataset.json, and those that touch most of the other's surface.

    One that is held holds none itself (data.encloses).
    """
    regions = _described(description)
    encloses: dict[str, list[str]] = {}
    reasons = []
    for inner, values in structures.items():
        for outer, around in structures.items():
            if inner == outer or inner in encloses or _is_held(outer, encloses):
                continue
            share = _touching_share(facts, values, around)
            if set(values) < set(regions.get(outer, ())):
                reasons.append(f"dataset.json's region {outer} holds {inner}")
            elif share > ENCLOSED:
                reasons.append(f"{outer} touches {share:.0%} of the surface of {inner}")
            else:
                continue
            encloses.setdefault(outer, []).append(inner)
    return Choice(
        "data.encloses", encloses, ", ".join(reasons) or f"no structure touches {ENCLOSED:.0%} of another's surface"
    )


def _is_held(name: str, encloses: dict[str, list[str]]) -> bool:
    return any(name in inner for inner in encloses.values())


def _touching_share(facts: Sequence[CaseFacts], inner: Sequence[int], outer: Sequence[int]) -> float:
    """The share of a structure's surface that touches another's, over all cases."""
    touching = 0.0
    total = 0.0
    for case in facts:
        for (low, high), area in case.contacts_mm2.items():
            if (low in inner) == (high in inner):
                continue
            total += area
            touching += area if (low in outer or high in outer) else 0.0
    return touching / total if total else 0.0


def channels_of(description: dict[str, Any]) -> list[str]:
    """The names of the images' channels in dataset.json, as nnU-Net or the Decathlon has them; none without it."""
    channels = description.get("channel_names", description.get("modality"))
    return [str(name) for name in channels.values()] if isinstance(channels, dict) else []


def choose_intensity(
    facts: Sequence[CaseFacts], channels: Sequence[str], structures: dict[str, list[int]]
) -> list[Choice]:
    """How each channel's values become [-1, 1]: by a window in CT, by each volume's own percentiles else.

    Without names of channels, of which there is one then, its values decide. The window is that of the structures'
    voxels in the first channel of CT.
    """
    lowest = float(np.median([case.lowest for case in facts]))
    if channels:
        rules = ["window" if name.upper() == "CT" else "percentile" for name in channels]
        reason = f"dataset.json says {shorten(', '.join(channels))}"
    else:
        is_ct = lowest < CT_AIR_HU
        rules = ["window" if is_ct else "percentile"]
        reason = f"values from {lowest:.0f} (median over the cases) are {'' if is_ct else 'not '}those of CT"
    chosen = [Choice("data.intensity", rules[0] if len(rules) == 1 else rules, reason)]
    if "window" not in rules:
        return chosen
    values = [value for group in structures.values() for value in group]
    ranges = [case.intensity_range(values, rules.index("window")) for case in facts]
    low, high = np.median([found for found in ranges if found is not None], axis=0).tolist()
    level = 25 * round((low + high) / 50)
    width = 50 * math.ceil(max(WIDER * (high - low), 50) / 50)
    near = f"{WIDER:g} times the structures' own range, {low:.0f} to {high:.0f} HU"
    return [*chosen, Choice("data.window_hu", float(width), near), Choice("data.level_hu", float(level), near)]


def choose_orientation(facts: Sequence[CaseFacts], intensity: str | list[str]) -> list[Choice]:
    """training.orientation and the template where headers say nothing of directions, else nothing: defaults are right.

    Slices of MR follow the organ. Where they are thick and all lie exactly across the patient's axes, the files have
    lost their directions, and other files may have lost them in another way.
    """
    spacing_mm = np.median([case.spacing_mm for case in facts], 0)
    is_lost = thick_axis(spacing_mm, THICK) is not None and all(case.aligned for case in facts)
    if "window" in intensity or not is_lost:
        return []
    reason = "thick slices, and no header with a direction other than the patient's axes: they have lost it"
    return [
        Choice("training.orientation", "any", reason),
        Choice("network.template", "oblique", "what lies anyhow is nowhere on average"),
    ]


def choose_start(structures: Iterable[str]) -> list[Choice]:
    """training.init_from for structures of the heart, by their names, else nothing; nothing without the weights."""
    path = REPOSITORY / HEARTS
    if not path.is_file():
        return []
    hearts = load_config(path)
    known = [name for name in structures if name in hearts.data.structures]
    if not known or hearts.snapshot is None or not Path(hearts.snapshot).is_file():
        return []
    return [Choice("training.init_from", str(path), f"its weights know {', '.join(known)} in any image, from phantoms")]


def finest_spacing_mm(facts: Sequence[CaseFacts]) -> tuple[np.ndarray, str]:
    """The spacing (3,) of the network's grid where time and memory allow it, and why."""
    spacings = np.array([case.spacing_mm for case in facts])
    median = np.median(spacings, 0)
    text = " x ".join(f"{value:.3g}" for value in median)
    thick = thick_axis(median, THICK)
    if thick is None:
        side = float(np.prod(median) ** (1 / 3))
        return np.full(3, side), f"the images' own, {text} mm in the median"
    others = [axis for axis in range(3) if axis != thick]
    target = np.empty(3)
    target[others] = np.prod(median[others]) ** 0.5
    target[thick] = max(np.quantile(spacings[:, thick], THICK_QUANTILE), target[others].max())
    return target, f"slices are thick, {text} mm in the median: their axis has a spacing of its own"


def coarser_mm(spacing_mm: np.ndarray, excess: float) -> np.ndarray:
    """The spacing (3,) of a grid that costs so many times less, or LARGEST_STEP coarser where that is finer.

    Only the axes of the finest spacing grow, so that thick slices stay as they are until the others reach them.
    """
    growing = spacing_mm < 1.01 * spacing_mm.min()
    factor = min(max(excess ** (1 / growing.sum()), 1.05), LARGEST_STEP)
    return np.where(growing, spacing_mm * factor, np.maximum(spacing_mm, spacing_mm.min() * factor))


def choose_box(facts: Sequence[CaseFacts], values: Sequence[int], spacing_mm: np.ndarray) -> list[Choice]:
    """Region, shape and spacing of the network's grid, so that no label of any case is cut."""
    boxes = np.stack([box for case in facts if (box := case.box_mm(values)) is not None])  # (N, 2, 3)
    extents = boxes[:, 1] - boxes[:, 0]
    around = extents.max(0)
    fields = np.array([case.shape * case.spacing_mm for case in facts]).max(0)
    centred = np.minimum(2 * np.abs(boxes).max((0, 1)), fields)
    off = np.abs(boxes.mean(1)).max(0)
    ratio = float(np.prod(centred / around))
    where = f"structures lie up to {_mm(off)} mm off the centre"
    if ratio <= CENTRED:
        region, side_mm = "centre", centred
        reason = f"{where}, so a centred box is {ratio:.2g} times one around them"
    else:
        region, side_mm = "found", np.minimum(around + 2 * FOUND_MARGIN_MM, np.maximum(fields, around))
        reason = f"{where}, so a centred box would be {ratio:.2g} times one around them"
    sides = (side_mm + 2 * MARGIN_VOXELS * spacing_mm.min()) / spacing_mm
    flat = np.floor(np.log2(spacing_mm / spacing_mm.min())).astype(int)  # until voxels are about as wide as long
    levels = _levels(sides * 2**flat)
    divisors = 2 ** np.maximum(levels - 1 - flat, 0)
    shape = [_grid_side(side, int(divisor)) for side, divisor in zip(sides, divisors, strict=True)]
    if shape[0] == 2 * divisors[0]:
        shape[0] = 3 * int(divisors[0])  # two voxels at the bottleneck along x have wrong gradients, see config.RULES
    spacing = [round(float(value), 3) for value in spacing_mm]
    extent = f"labels extend over {_mm(extents.mean(0))} mm (mean), {_mm(around)} mm (most)"
    return [
        Choice("data.region", region, reason),
        Choice("data.shape", shape, extent),
        Choice("data.spacing_mm", spacing[0] if len(set(spacing)) == 1 else spacing, ""),
        Choice("network.encoder_channels", list(WIDTHS[:levels]), f"{levels} levels fit {min(shape)} voxels"),
        *_choose_flat_levels(np.minimum(flat, levels - 1)),
        Choice("network.decoder_channels", list(DECODER_WIDTHS[: levels - 1]), "one fewer"),
        Choice("network.stage_levels", _stage_levels(levels), "coarse to fine"),
        Choice("network.stage_channels", [96, 64, 32], "one for each stage"),
        Choice("network.displacement_factor", 0.1, "a stage can move a vertex across the box"),
        Choice("network.profile_voxels", list(PROFILE_VOXELS), "along the normals, on both sides of a vertex"),
    ]


def _grid_side(side: float, divisor: int) -> int:
    """The least multiple of `divisor` that is no shorter, of at least two voxels at the bottleneck."""
    least = divisor * math.ceil(max(2, LEAST_SIDE / divisor))
    return max(divisor * math.ceil(side / divisor - 0.01), least)


def _choose_flat_levels(flat: np.ndarray) -> list[Choice]:
    """network.flat_levels where slices are thick, else nothing, for its default is right then."""
    reason = "levels that do not look beyond a slice, until voxels are about as wide as thick"
    return [Choice("network.flat_levels", flat.tolist(), reason)] if flat.any() else []


def _mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.0f}" for length in lengths)


def _levels(sides: np.ndarray) -> int:
    """As many levels of the encoder as leave LEAST_BOTTLENECK voxels along the shortest side, WIDTHS at the most."""
    levels = 1 + int(math.log2(max(float(sides.min()) / LEAST_BOTTLENECK, 2)))
    return min(levels, len(WIDTHS))


def _stage_levels(levels: int) -> list[list[str]]:
    """What the three stages of the graph decoder read: the coarsest levels, those in between, the finest."""
    last = levels - 1
    coarse = [f"e{max(last - 1, 0)}", f"e{last}"]
    middle = [f"{kind}{level}" for kind in "ed" for level in (1, 2) if level < (levels if kind == "e" else last)]
    fine = [f"{kind}{level}" for kind in "ed" for level in (0, 1) if level < (levels if kind == "e" else last)]
    return [coarse, middle or fine, fine]


def choose_mesh(
    facts: Sequence[CaseFacts], structures: dict[str, list[int]], shape: Sequence[int], spacing_mm: np.ndarray
) -> list[Choice]:
    """The template's vertices, and what of the loss depends on lengths: temperature and Laplacian weights."""
    voxel_mm = float(np.prod(spacing_mm) ** (1 / 3))
    half_mm = float(np.prod((np.array(shape) - 1) * spacing_mm / 2) ** (1 / 3))
    areas = {name: _surface_mm2(facts, values) for name, values in structures.items()}
    largest = max(areas, key=lambda name: areas[name])
    edges = {n: _edge_mm(areas[largest], n) for n in SUBDIVISIONS}
    fitting = [n for n, edge in edges.items() if edge <= VOXELS_PER_EDGE * voxel_mm]
    subdivisions = fitting[0] if fitting else SUBDIVISIONS[-1]
    radius = math.sqrt(np.mean(list(areas.values())) / (4 * math.pi)) / half_mm
    count = 10 * 4**subdivisions + 2
    final = LAPLACIAN * (count / 642) * (0.42 / radius) ** 2
    temperature = LOGITS_PER_VOXEL * half_mm / voxel_mm
    return [
        Choice(
            "network.template_subdivisions",
            subdivisions,
            f"{count} vertices: edges of {edges[subdivisions]:.1f} mm on {largest}, voxels of {voxel_mm:.2g} mm",
        ),
        Choice("loss.occupancy_dice", 0.2, "meshes of small structures count as much as those of large ones"),
        Choice("loss.segmentation", 1.0, "the UNet's features come from it"),
        Choice("loss.segmentation_dice", 1.0, "likewise in the segmentation"),
        Choice("loss.temperature", round(temperature, 1), f"{LOGITS_PER_VOXEL:g} logits over a voxel"),
        Choice("loss.laplacian_start", _rounded(LAPLACIAN_FALL * final), f"{LAPLACIAN_FALL:g} times the last"),
        Choice("loss.laplacian_end", _rounded(final), f"for {count} vertices and a mean radius of {radius:.2f}"),
    ]


def _surface_mm2(facts: Sequence[CaseFacts], values: Sequence[int]) -> float:
    """The mean area of a structure's surface over the cases that have it.

    The faces of voxels have one and a half times the area of the smooth surface that they follow (the mean of
    |x| + |y| + |z| over the unit sphere).
    """
    areas = []
    for case in facts:
        faces = [area for pair, area in case.contacts_mm2.items() if (pair[0] in values) != (pair[1] in values)]
        if faces:
            areas.append(sum(faces) / 1.5)
    return float(np.mean(areas)) if areas else 1.0


def _edge_mm(area_mm2: float, subdivisions: int) -> float:
    """The mean edge of equilateral triangles that cover an area, as many as the template has."""
    faces = 20 * 4**subdivisions
    return math.sqrt(4 / math.sqrt(3) * area_mm2 / faces)


def _rounded(value: float) -> float:
    """A number to two digits."""
    return float(f"{value:.2g}")
