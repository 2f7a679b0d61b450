"""What ships: the phantom snapshot on an unseen phantom, and on a real CT."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, label

import implicitmeshnet_eval
from implicitmeshnet.coordinates import transform
from implicitmeshnet.export import read_mesh
from implicitmeshnet.metrics import euler_characteristic, is_closed
from implicitmeshnet.phantom import create_case
from implicitmeshnet.volume import read_grid, read_image, read_labels, write_volume

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs_implicitmeshnet/phantom_lv_la.json"
HEART_CT = ROOT.parent / "shared/data/heart_ct"


def evaluate(monkeypatch, folder, out):
    arguments = [f"--implicitmeshnet_config={CONFIG}", f"--test_dir_in={folder}", f"--test_dir_out={out}"]
    monkeypatch.setattr(sys, "argv", ["implicitmeshnet_eval.py", *arguments])
    implicitmeshnet_eval.main()


def test_the_snapshot_finds_both_chambers_of_an_unseen_phantom(tmp_path, monkeypatch):
    image, labels, affine = create_case(0, 990)
    write_volume(tmp_path / "in/ct_1990_image.nii.gz", image, affine)
    write_volume(tmp_path / "in/ct_1990_label.nii.gz", labels, affine)
    evaluate(monkeypatch, tmp_path / "in", tmp_path / "out")
    for row in csv.DictReader((tmp_path / "out/metrics.csv").open()):
        assert float(row["dice"]) > 0.9
        assert int(row["self_intersecting_faces"]) <= 0.005 * int(row["faces"])
        _, faces = read_mesh(tmp_path / "out" / f"ct_1990_{row['structure']}_mesh.ply")
        assert is_closed(faces)
        assert euler_characteristic(faces) == 2


@pytest.mark.skipif(not HEART_CT.is_dir(), reason="the real heart CT is not part of the repository")
def test_a_real_ct_keeps_its_grid_and_the_meshes_lie_in_the_body(tmp_path, monkeypatch):
    evaluate(monkeypatch, HEART_CT, tmp_path)
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
