"""A heart filled with tetrahedra by TetGen and cut open, as a picture.

    pip install tetgen
    python benchmarks/cut_open.py --config=configs_implicitmeshnet/whole_heart.json \
        --image=data/phantom/test/ct_train_1901_image.nii.gz --out=docs/tetrahedra.png

The tetrahedra fill the surface with shared walls (`--conforming`). Those whose centre lies before a plane are left out,
and the outermost faces of the rest are drawn, in the colour of their region. The plane goes through the centres of both
ventricles and of the aorta.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from judges import tetrahedra_by_region
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from PIL import Image
from scipy.spatial import cKDTree

from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError, run_script
from implicitmeshnet.surfaces.conforming import conforming_surface
from implicitmeshnet.surfaces.figures import colours
from implicitmeshnet.surfaces.render import camera_from
from implicitmeshnet.surfaces.walls import WALL_MM

THROUGH = ("LV", "RV", "AO")
LARGEST_MM3 = 15.0
"""Of a tetrahedron. Without a limit those within the chambers are so large that the cut is ragged."""
TILT = 0.35
"""Of the viewer against the plane's normal, so that the heart behind the plane shows its depth."""
LIGHT = (-0.35, 0.55, 0.75)  # on the screen: right, up, towards the viewer
NEIGHBOURS = 200
"""Faces around each that take light from it; FACET of them are those whose mean normal it shares."""
FACET = 30
OWN = 0.35
"""Of the light that a face's own normal takes, so that single tetrahedra stand out without hiding the shape."""
AMBIENT = 0.55
EDGE = 0.7
"""How bright edges are, relative to their face."""
INCHES = 6.0
DPI = 140
COLOURS = 192
"""Of the file, which keeps it small."""
FACES_OF_TETRAHEDRON = np.array([(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--out", required=True, help="picture to write")
    arguments = parser.parse_args()
    predictor = Predictor.from_config(arguments.config)
    missing = [name for name in THROUGH if name not in predictor.structures.names]
    if missing:
        raise InputError(f"--config: wanted structures {', '.join(THROUGH)}, found no {missing[0]}")
    surfaces = predictor(arguments.image)
    surface = conforming_surface(surfaces.meshes, surfaces.structures, (predictor.gap_mm + WALL_MM) / 2)
    found = tetrahedra_by_region(surface, LARGEST_MM3)
    if found is None:
        raise InputError(f"{arguments.image}: wanted a heart that TetGen fills, found one that it refuses")
    draw(*found, surfaces.names, Path(arguments.out))


def draw(corners: np.ndarray, regions: np.ndarray, names: tuple[str, ...], out: Path) -> None:
    """The picture of tetrahedra (T, 4, 3) in mm RAS, each of the region (T,) of which 0 is outside."""
    centres = corners.mean(1)
    a, b, c = (centres[regions == 1 + names.index(name)].mean(0) for name in THROUGH)
    normal = np.cross(b - a, c - a)
    normal *= np.sign(normal[1]) / np.linalg.norm(normal)  # forwards, to the viewer
    kept = ((centres - a) @ normal < 0) & (regions > 0)
    triangles, owners = exposed(corners[kept])
    camera = camera_from(normal + TILT * np.array([-1.0, 0.0, 0.4]))
    screen = triangles @ camera  # (F, 3, 3): right, up, towards the viewer
    depth = screen[..., 2].mean(1)
    normals = unit(np.cross(screen[:, 1] - screen[:, 0], screen[:, 2] - screen[:, 0]))
    palette = np.array([to_rgb(colour) for colour in colours(names).values()])
    rgb = palette[regions[kept][owners] - 1] * shaded(screen.mean(1), normals)[:, None]
    seen = np.flatnonzero(normals[:, 2] > 0)
    order = seen[depth[seen].argsort()]  # from far to near, as a painter does
    figure = plt.figure(figsize=(INCHES, INCHES), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.add_collection(
        PolyCollection(screen[order, :, :2], facecolors=rgb[order], edgecolors=EDGE * rgb[order], linewidths=0.25)
    )
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, palette, strict=True)]
    axes.legend(handles=handles, loc="lower right", frameon=False)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


def exposed(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces (F, 3, 3) that only one of tetrahedra (T, 4, 3) has, seen counter-clockwise, and whose they are."""
    _, numbers = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    faces = np.sort(numbers.reshape(-1, 4)[:, FACES_OF_TETRAHEDRON].reshape(-1, 3), axis=1)
    _, first, count = np.unique(faces, axis=0, return_index=True, return_counts=True)
    owners, places = np.divmod(first[count == 1], 4)
    triangles = corners[owners[:, None], FACES_OF_TETRAHEDRON[places]]
    outward = triangles.mean(1) - corners[owners].mean(1)
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    inward = (normals * outward).sum(1) < 0
    triangles[inward] = triangles[inward, ::-1]
    return triangles, owners


def shaded(centres: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """How bright faces are, by their centres and normals (F, 3) on the screen: (F,).

    Light from LIGHT and from all around, of which what lies near and before a face takes its part (after Bunnell, GPU
    Gems 2, 2005).
    """
    _, near = cKDTree(centres).query(centres, k=NEIGHBOURS)
    offsets = unit(centres[near[:, 1:]] - centres[:, None])
    open_to_light = 1 - np.einsum("fkc,fc->fk", offsets, normals).clip(0).mean(1)
    around = unit(normals[near[:, :FACET]].mean(1))
    direct = ((OWN * normals + (1 - OWN) * around) @ unit(np.array(LIGHT))).clip(0)
    return ((AMBIENT + (1 - AMBIENT) * direct) * open_to_light).clip(0, 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


if __name__ == "__main__":
    run_script(main)
