"""What ships: the trained networks on an unseen phantom and on a real CT, and the pretrained deep distance."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, label
from scripts import call
from volumes import write_case

import implicitmeshnet_eval
from implicitmeshnet.config import DrnConfig, load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.nifti import read_grid, read_image, read_labels
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.drn import sdf_quality
from implicitmeshnet.models.weights import load_drn
from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.phantom.case import create_case
from implicitmeshnet.surfaces.files import read_mesh
from implicitmeshnet.surfaces.soundness import euler_characteristic, is_closed
from implicitmeshnet.training.random_shapes import random_shapes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs_implicitmeshnet"
HEART_CT = ROOT.parent / "shared/data/heart_ct"


def evaluate(config, folder, out):
    arguments = [
        f"--implicitmeshnet_config={CONFIGS / config}.json",
        f"--test_dir_in={folder}",
        f"--test_dir_out={out}",
    ]
    call(implicitmeshnet_eval, *arguments)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """An unseen phantom, and the same one 40 mm off the volume's centre."""
    folder = tmp_path_factory.mktemp("phantoms")
    for name, shift_mm in (("ct_1990", 0.0), ("ct_1991", 40.0)):
        image, labels, _, affine = create_case(0, 990, 1.2, shift_mm=shift_mm)
        write_case(folder, name, image, labels, affine)
    return folder


@pytest.mark.slow
def test_the_whole_heart_of_an_unseen_phantom_wherever_it_lies(unseen, tmp_path):
    evaluate("whole_heart", unseen, tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["structure"] for row in rows] == 2 * ["LV", "RV", "LA", "RA", "Myo", "AO", "PA"]
    for row in rows:
        assert float(row["dice"]) > 0.8, row
        assert int(row["self_intersecting_faces"]) < 0.005 * int(row["faces"])
        _, faces = read_mesh(tmp_path / f"{row['case']}_{row['structure']}_mesh.ply")
        assert is_closed(faces)
        assert euler_characteristic(faces) == 2


@pytest.mark.slow
def test_a_heart_in_any_contrast_is_found(unseen, tmp_path):
    """By the network that has seen no scanner: an unseen phantom as CT, and with its contrast turned around."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = read_image(unseen / "ct_1990_image.nii.gz")
    labels = read_labels(unseen / "ct_1990_label.nii.gz")
    for name, values in (("ct", image.data), ("inverted", 500 - image.data.clip(-200, 500))):
        write_case(folder, name, values, labels.data, image.grid.affine)
    evaluate("whole_heart_any", folder, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    for name in ("ct", "inverted"):
        scores = [float(row["dice"]) for row in rows if row["case"] == name]
        assert len(scores) == 7
        assert np.mean(scores) > 0.6, (name, scores)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "structure"), [("2025-03-31_13-45-41", "LV"), ("2025-03-30_10-03-29", "LA")])
def test_the_papers_two_networks_on_an_unseen_phantom(config, structure, unseen, tmp_path):
    (tmp_path / "in").mkdir()
    for path in unseen.glob("ct_1990_*"):  # the heart in the middle, where the paper's crop is
        (tmp_path / "in" / path.name).symlink_to(path)
    evaluate(config, tmp_path / "in", tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out/metrics.csv").open())
    assert row["structure"] == structure
    assert float(row["dice"]) > 0.85
    _, faces = read_mesh(tmp_path / "out/ct_1990_mesh.ply")
    assert is_closed(faces)
    assert euler_characteristic(faces) == 2


@pytest.mark.slow
@pytest.mark.skipif(not HEART_CT.is_dir(), reason="the real heart CT is not part of the repository")
def test_a_real_ct_keeps_its_grid_and_the_meshes_lie_in_the_body(tmp_path):
    evaluate("whole_heart", HEART_CT, tmp_path)
    image = read_image(HEART_CT / "heart_ct_image.nii.gz")
    for kind in ("mesh_labelmap", "unet_segmentation"):
        grid = read_grid(tmp_path / f"heart_ct_{kind}.nii.gz")
        assert grid.shape == image.grid.shape
        np.testing.assert_allclose(grid.affine, image.grid.affine, atol=1e-4)
    tissue = label(image.data > -500)[0]
    body = tissue == np.bincount(tissue[tissue > 0]).argmax()
    body = np.stack([binary_fill_holes(axial) for axial in np.moveaxis(body, 2, 0)], 2)  # the lungs included
    assert 0.2 < body.mean() < 0.9
    labelmap = read_labels(tmp_path / "heart_ct_mesh_labelmap.nii.gz").data
    for structure, value in (("LV", 500), ("LA", 420)):
        vertices, _ = read_mesh(tmp_path / f"heart_ct_{structure}_mesh.ply")
        voxels = transform(np.linalg.inv(image.grid.affine), vertices).round().astype(int)
        assert body[tuple(voxels.T)].all()
        inside = np.argwhere(labelmap == value)
        assert (inside.min(0) >= voxels.min(0) - 1).all()
        assert (inside.max(0) <= voxels.max(0) + 1).all()


@torch.no_grad()
def test_the_shipped_drn_measures_unseen_spheres_to_half_a_voxel():
    path = CONFIGS / "drn_small.json"
    config = load_config(path, kind=DrnConfig)
    drn = load_drn(path, config.network.template_subdivisions)
    sphere, _ = icosphere(config.network.template_subdivisions)
    spheres = replace(config.shapes, ellipsoids=0.0, tubes=0.0, cups=0.0)
    shapes = random_shapes(sphere, 6, spheres, torch.Generator().manual_seed(2**34))
    quality = sdf_quality(drn(shapes)[-1], mesh2sdf(shapes, drn.faces, list(drn.shape)))
    assert quality["error_voxels"] < 0.5
    assert quality["sign"] > 0.99
    assert quality["dice"] > 0.95
