"""Images -> closed surface meshes in world millimetres, label maps on the images' own grids, and metrics.

    python implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \\
        --test_dir_in=data/phantom/test --test_dir_out=test_out [--device=cpu|cuda|mps]

Writes per case <case>_mesh.ply (<case>_<structure>_mesh.ply for several structures), <case>_mesh_labelmap.nii.gz,
<case>_unet_segmentation.nii.gz and <case>_preview.png; and metrics.csv where labels lie beside the images.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from implicitmeshnet.checkpoint import load_network, pick_device, snapshot_path
from implicitmeshnet.config import Config, load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.dataset import find_cases, prepare_case, split_cases
from implicitmeshnet.export import mesh_to_mask, meshes_to_labelmap, own_parts, write_mesh
from implicitmeshnet.figures import Structure, case_preview
from implicitmeshnet.io import InputError, run_script, write_table
from implicitmeshnet.localise import locate
from implicitmeshnet.metrics import dice, mean_and_deviation, self_intersecting_faces, surface_distances, volume_ml
from implicitmeshnet.ops import sample_trilinear
from implicitmeshnet.repair import untangle
from implicitmeshnet.volume import Grid, read_grid, read_labels, write_volume


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--implicitmeshnet_config", required=True, help="JSON config of a trained network")
    parser.add_argument("--test_dir_in", required=True, help="folder of images, in one of the layouts of the README")
    parser.add_argument("--test_dir_out", required=True, help="folder for the results, made where missing")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--mesh_format", default="ply", choices=("ply", "stl", "obj", "vtp"))
    parser.add_argument("--space", default="LPS", choices=("LPS", "RAS"), help="of the mesh files; 3D Slicer wants LPS")
    parser.add_argument("--validation_split", action="store_true",
                        help="only the cases of --test_dir_in that a training with this config holds out")
    arguments = parser.parse_args()
    config, device = load_config(arguments.implicitmeshnet_config), pick_device(arguments.device)
    network = load_network(config, snapshot_path(config, arguments.implicitmeshnet_config), device)
    cases = find_cases(arguments.test_dir_in, labelled=arguments.validation_split)
    if arguments.validation_split:
        _, cases = split_cases(cases, config.data.validation_cases, config.training.seed)
    out = Path(arguments.test_dir_out)
    check_output(out, Path(arguments.test_dir_in), cases, list(config.data.structures))

    rows, failures = [], []
    for case in tqdm(cases, desc="cases"):
        try:
            rows += evaluate_case(network, case, config, device, out, arguments.mesh_format, arguments.space)
        except InputError as error:
            failures.append(str(error))
    if rows:
        write_table(out / "metrics.csv", rows)
        print_summary(rows, list(config.data.structures))
    print(f"{len(cases) - len(failures)} of {len(cases)} cases written to {out}")
    if failures:
        raise InputError(f"{len(failures)} of {len(cases)} cases failed: " + "; ".join(failures))


def check_output(out: Path, source: Path, cases, structures: list[str]):
    """Refuse, before anything is computed, a folder that cannot hold the results or names that would collide."""
    if out.resolve() == source.resolve():
        raise InputError(f"--test_dir_out: wanted another folder than --test_dir_in, found {out} for both")
    stems = {}
    for case in cases:
        for stem in mesh_stems(case.name, structures):
            if stem in stems:
                raise InputError(f"{case.image}: wanted mesh names of its own, found {stem}_mesh for {stems[stem]} too")
            stems[stem] = case.image
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--test_dir_out: {out} cannot be made a folder ({error.strerror})") from error


def mesh_stems(case: str, structures: list[str]) -> list[str]:
    return [case] if len(structures) == 1 else [f"{case}_{name}" for name in structures]


def evaluate_case(network, case, config: Config, device, out: Path, mesh_format: str, space: str) -> list[dict]:
    """Write one case's files; a row of metrics per structure, none where the case has no label."""
    start = time.perf_counter()
    names = list(config.data.structures)
    reference = None if case.label is None else read_labels(case.label).data
    if reference is not None and not has_value(reference, config.data.label_values).any():
        tqdm.write(f"{case.label}: has none of the label values of data.structures, so there are no metrics for it")
        case, reference = replace(case, label=None), None
    grid = read_grid(case.image)
    sample = prepare_case(case, config.data, locate=lambda overview: locate(network.localiser, overview, device))
    with torch.inference_mode():
        prediction = network(sample.image[None, None].to(device))
    normalised = prediction.vertices[0].cpu().double().numpy()  # (S, V, 3)
    faces = network.decoder.faces.cpu().numpy()
    predicted = transform(sample.grid.world_from_normalised, normalised)  # mm
    vertices = [untangle(structure, faces) for structure in predicted]
    values = [config.data.structures[name][0] for name in names]
    labelmap = meshes_to_labelmap([(structure, faces) for structure in vertices], values, grid,
                                  config.data.members)
    segmentation = segmentation_on_grid(prediction.segmentation[0], sample.grid, values, grid)
    seconds = time.perf_counter() - start

    for stem, structure in zip(mesh_stems(case.name, names), vertices, strict=True):
        write_mesh(out / f"{stem}_mesh.{mesh_format}", structure, faces, space)
    write_volume(out / f"{case.name}_mesh_labelmap.nii.gz", labelmap, grid.affine)
    write_volume(out / f"{case.name}_unet_segmentation.nii.gz", segmentation, grid.affine)
    preview(out / f"{case.name}_preview.png", sample, config, vertices, faces)
    rows = []
    if reference is not None:
        for name, structure, raw in zip(names, vertices, predicted, strict=True):
            rows.append({"case": case.name, "structure": name}
                        | compare(labelmap, segmentation, reference, config.data.structures[name], grid)
                        | {"self_intersecting_faces": int(self_intersecting_faces(structure, faces).sum()),
                           "before_repair": int(self_intersecting_faces(raw, faces).sum()),
                           "faces": len(faces), "seconds": seconds})
    return rows


def preview(path: Path, sample, config: Config, vertices, faces):
    """Slices with contours on the network's grid, the label's dashed, and the meshes; vertices (S, V, 3) mm."""
    masks = own_parts([mesh_to_mask(structure, faces, sample.grid) for structure in vertices], config.data.members)
    structures = [
        Structure(name, mask, None if sample.label is None else (sample.label == index).numpy(), structure, faces)
        for index, (name, mask, structure) in enumerate(zip(config.data.structures, masks, vertices, strict=True), 1)
    ]
    case_preview(path, sample.image.numpy(), sample.grid.spacing_mm, structures)


def has_value(labels, values: list[int]) -> np.ndarray:
    """np.isin for a few values, 20 times as fast."""
    found = labels == values[0]
    for value in values[1:]:
        found |= labels == value
    return found


def compare(labelmap, segmentation, reference, values: list[int], grid: Grid) -> dict:
    """Metrics of one structure on the image's own grid, mesh label map and voxel segmentation against the label."""
    mesh, unet, truth = labelmap == values[0], segmentation == values[0], has_value(reference, values)
    return {
        "dice": dice(mesh, truth),
        **surface_distances(mesh, truth, grid.spacing_mm),
        "volume_ml": volume_ml(mesh, grid.spacing_mm),
        "label_volume_ml": volume_ml(truth, grid.spacing_mm),
        "unet_dice": dice(unet, truth),
    }


def segmentation_on_grid(logits, network_grid: Grid, values: list[int], grid: Grid) -> np.ndarray:
    """Logits (S + 1, X, Y, Z) on the network's grid -> int16 label map on `grid`, background outside the former.

    Probabilities are interpolated linearly and the largest wins. Where all eight voxels around a point agree, that is
    their class, so only the rest is interpolated. The two grids' axes must be parallel, as `network_grid` makes them.
    """
    around = 2  # voxels of background, so that the outermost cells hold nothing else
    others = F.pad(logits.cpu().softmax(0)[1:], (around,) * 6)
    probabilities = torch.cat([1 - others.sum(0, keepdim=True), others])[None]  # (1, S + 1, X + 4, Y + 4, Z + 4)
    probabilities = probabilities.contiguous(memory_format=torch.channels_last_3d)
    classes = probabilities.argmax(1).float()  # (1, X + 4, ...)
    highest, lowest = F.max_pool3d(classes, 2, 1), -F.max_pool3d(-classes, 2, 1)
    cells = torch.where(highest == lowest, highest, -1)[0].to(torch.int16).numpy()  # (X + 3, ...)
    matrix = np.linalg.inv(network_grid.affine) @ grid.affine
    axes = np.abs(matrix[:3, :3]).argmax(0)  # of the network's grid, by axis of `grid`
    positions = [matrix[axis, own] * np.arange(count) + matrix[axis, 3] + around
                 for own, (axis, count) in enumerate(zip(axes, grid.shape, strict=True))]
    index = [np.clip(np.floor(line), 0, cells.shape[axis] - 1).astype(int)
             for axis, line in zip(axes, positions, strict=True)]
    found = cells.transpose(axes)[np.ix_(*index)]
    mixed = np.nonzero(found < 0)
    points = torch.empty(1, len(mixed[0]), 3)
    for axis, line, voxels in zip(axes, positions, mixed, strict=True):
        points[0, :, axis] = torch.from_numpy(2 * line[voxels] / cells.shape[axis] - 1)
    found[mixed] = sample_trilinear([probabilities], points)[0].argmax(-1).numpy()
    return np.array([0, *values], dtype=np.int16)[found]


def print_summary(rows: list[dict], structures: list[str]):
    """Mean and standard deviation per structure over the cases in which it is labelled."""
    print(f"{'structure':<16}{'cases':>6}{'Dice':>17}{'ASSD_mm':>20}{'HD95_mm':>20}{'crossing %':>13}{'UNet Dice':>17}")
    for name in structures:
        chosen = [row for row in rows if row["structure"] == name and row["label_volume_ml"] > 0]
        cells = [mean_and_deviation([row[key] for row in chosen])
                 for key in ("dice", "assd_mm", "hd95_mm", "unet_dice")]
        crossing = 100 * np.mean([row["self_intersecting_faces"] / row["faces"] for row in chosen or rows])
        print(f"{name:<16}{len(chosen):>6}{cells[0]:>17}{cells[1]:>20}{cells[2]:>20}{crossing:>13.3f}{cells[3]:>17}")


if __name__ == "__main__":
    run_script(main)
