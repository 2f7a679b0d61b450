"""What is known of the structures of one evaluated case, in numbers."""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.data.volume import Volume
from implicitmeshnet.evaluation.case import Result
from implicitmeshnet.predict import Surfaces
from implicitmeshnet.surfaces.labelmap import Mesh, overlaps_ml
from implicitmeshnet.surfaces.metrics import dice, surface_distances, volume_ml
from implicitmeshnet.surfaces.quality import triangle_quality
from implicitmeshnet.surfaces.soundness import crossing_faces_of, mesh_area_mm2, mesh_volume_ml

# The columns of a table, in groups: of a structure and its mesh, what may be wrong with it, what the repair did, and
# the comparison with the label.
MEASURED = ("volume_ml", "mesh_volume_ml", "surface_mm2")
CHECKED = ("agreement", "outside_share", "self_intersecting_faces", "self_intersecting_faces_before_repair", "faces")
REPAIRED = ("faces_crossing_others", "faces_crossing_others_before_repair", "move_mean_mm", "move_p95_mm")
COMPARED = ("dice", "assd_mm", "hd95_mm", "unet_dice", "label_volume_ml")


def rows_of(result: Result) -> list[dict]:
    """All that is known of one case, a row per structure."""
    surfaces = result.surfaces
    names = surfaces.names
    overlaps = overlaps_ml(surfaces.meshes, surfaces.structures, surfaces.grid)
    before = [crossed.sum(1).tolist() for crossed in crossing_faces_of(surfaces.raw_vertices, surfaces.faces)]
    rows = []
    for structure, name in enumerate(names):
        row = {"case": result.case.name, "structure": name}
        row |= compare(surfaces, result.labels, structure)
        row |= measure(surfaces, result.meshes[structure], structure, before)
        row |= {f"overlap_{other}_ml": value for other, value in zip(names, overlaps[structure].tolist(), strict=True)}
        rows.append(row | {"seconds": result.seconds, "warnings": "; ".join(result.warnings)})
    return rows


def compare(surfaces: Surfaces, labels: Volume | None, structure: int) -> dict:
    """Metrics of one structure on the image's own grid, mesh label map and voxel segmentation against the label; empty
    where there is no label. Voxels that the label has ignored are left out."""
    value = surfaces.structures.written[surfaces.names[structure]]
    mesh = surfaces.labelmap == value
    row = dict.fromkeys(COMPARED)
    if labels is not None:
        truth = surfaces.structures.mask(labels.data, structure)
        ignored = surfaces.structures.ignored_in(labels.data)
        row |= {
            "dice": dice(mesh, truth, ignored),
            **surface_distances(mesh, truth, surfaces.grid, ignored),
            "unet_dice": dice(surfaces.segmentation == value, truth, ignored),
            "label_volume_ml": volume_ml(truth, surfaces.grid),
        }
    return row | {"volume_ml": volume_ml(mesh, surfaces.grid)}


def measure(surfaces: Surfaces, written: Mesh, structure: int, before: Sequence[list[int]]) -> dict:
    """What is known of one structure's mesh without a label; volume, surface and triangles are those in the file.

    `before` counts by structure the faces that crossed their own mesh before the repair, and those that crossed others.
    """
    moves_mm = surfaces.moves_mm[structure]
    return {
        "mesh_volume_ml": mesh_volume_ml(*written),
        "surface_mm2": mesh_area_mm2(*written),
        "agreement": surfaces.agreement[surfaces.names[structure]],
        "outside_share": surfaces.outside[surfaces.names[structure]],
        "self_intersecting_faces": surfaces.crossing[structure],
        "self_intersecting_faces_before_repair": before[0][structure],
        "faces_crossing_others": surfaces.crossing_others[structure],
        "faces_crossing_others_before_repair": before[1][structure],
        "move_mean_mm": float(moves_mm.mean()),
        "move_p95_mm": float(np.percentile(moves_mm, 95)),
        "faces": len(surfaces.faces),
        **triangle_quality(*written),
    }
