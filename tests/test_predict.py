"""From a volume to surfaces in the world, by a network that is known: spheres in the middle of its box."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from meshes import structures_of
from scipy.spatial.transform import Rotation

from implicitmeshnet.config import Config, DataConfig, IntensityStatistics, NetworkConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid, Volume, canonical, thick_axis
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.ensemble import CoarseEnsemble, Ensemble
from implicitmeshnet.models.localiser import Localiser
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.predict import Predictor, check_alike, preview
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.labelmap import overlaps_ml
from implicitmeshnet.surfaces.proximity import near
from implicitmeshnet.surfaces.soundness import crossing_faces_of, mesh_volume_ml
from implicitmeshnet.surfaces.subdivide import subdivide

SHAPE = (24, 24, 24)
AFFINE = np.array([[0, -1.5, 0, 40], [1.5, 0, 0, -8], [0, 0, 2.0, 5], [0, 0, 0, 1]])


class TwoSpheres(torch.nn.Module):
    """Spheres of radius 0.5 at +-0.3 along X, and a segmentation that holds the first of them alone."""

    localiser = None
    certainty = 20.0

    def __init__(self):
        super().__init__()
        sphere, faces = icosphere(3)
        self.decoder = SimpleNamespace(faces=faces, template=sphere[None])
        shift = torch.tensor([0.3, 0, 0])
        self.vertices = torch.stack([0.5 * sphere - shift, 0.5 * sphere + shift])

    def forward(self, image):
        axes = [torch.linspace(-1, 1, n) for n in SHAPE]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        first = (points + torch.tensor([0.3, 0, 0])).norm(dim=-1) < 0.5
        logits = torch.stack([(~first).float(), first.float(), torch.zeros(SHAPE)])[None]
        return Prediction([self.vertices[None]], self.certainty * logits)


@pytest.fixture
def predictor():
    data = DataConfig(
        structures={"LV": [500], "LA": [420]},
        shape=SHAPE,
        spacing_mm=2.0,
        intensity_statistics=IntensityStatistics(20, (-0.5,) * 9, ((0.0,) * 9,) * 9),
    )
    return Predictor(TwoSpheres(), Config(data=data))


def volume(value=-50.0):
    return Volume(np.full((50, 60, 40), value, np.float32), Grid((50, 60, 40), AFFINE))


def test_surfaces_lie_in_the_middle_of_the_volume_in_world_millimetres(predictor):
    surfaces = predictor(volume())
    middle = (AFFINE @ [24.5, 29.5, 19.5, 1])[:3]
    assert surfaces.vertices.shape == (2, 642, 3)
    assert np.linalg.norm(surfaces.vertices.mean((0, 1)) - middle) < 2
    assert surfaces.labelmap.shape == surfaces.segmentation.shape == (50, 60, 40)
    assert set(np.unique(surfaces.labelmap)) == {0, 420, 500}
    union_ml = np.count_nonzero(surfaces.labelmap) * 4.5 / 1000
    each_ml = [mesh_volume_ml(structure, surfaces.faces) for structure in surfaces.vertices]
    assert union_ml == pytest.approx(sum(each_ml), rel=0.03)


def test_meshes_that_the_network_lets_cross_are_apart_by_the_gap(predictor):
    surfaces = predictor(volume())
    before = [(mesh, surfaces.faces) for mesh in surfaces.raw_vertices]
    raw_ml = overlaps_ml(before, surfaces.structures, surfaces.grid)
    assert raw_ml[0, 1] == raw_ml[1, 0] > 0.1 * mesh_volume_ml(*before[0])
    assert overlaps_ml(surfaces.meshes, surfaces.structures, surfaces.grid)[0, 1] == 0
    assert surfaces.crossing == surfaces.crossing_others == [0, 0]
    assert near(*surfaces.vertices, surfaces.faces, 2.0).distance.min() > 0.9 * predictor.gap_mm
    wide = Predictor(predictor.network, predictor.config, gap_mm=0.3)(volume())
    assert near(*wide.vertices, wide.faces, 2.0).distance.min() > 0.15


def test_subdivided_meshes_that_cross_are_apart_too(predictor):
    surfaces = predictor(volume())
    crossing = replace(surfaces, vertices=surfaces.raw_vertices)
    finer = predictor.subdivided(crossing, 1)
    faces = finer[0][1]
    vertices = np.stack([mesh for mesh, _ in finer])
    smoothed = np.stack([subdivide(*mesh, 1)[0] for mesh in crossing.meshes])
    assert vertices.shape == (2, 2562, 3)
    assert sum(crossed.sum() for crossed in crossing_faces_of(smoothed, faces)) > 0
    assert sum(crossed.sum() for crossed in crossing_faces_of(vertices, faces)) == 0


def test_chosen_structures_are_as_they_are_among_all(predictor):
    everything = predictor(volume())
    alone = Predictor(predictor.network, predictor.config, ["LA"])(volume())
    assert np.array_equal(alone.vertices, everything.vertices[1:])
    assert alone.crossing_others == [0]


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        ({"gap_mm": 0.0}, "gap_mm: wanted 0.001 to 10 mm, found 0"),
        ({"gap_mm": float("nan")}, "gap_mm: wanted 0.001 to 10 mm, found nan"),
        ({"wall_mm": 11.0}, "wall_mm: wanted 0 to 10 mm, found 11"),
    ],
)
def test_a_gap_or_wall_out_of_reach_is_refused(predictor, lengths, sentence):
    with pytest.raises(InputError, match=sentence):
        Predictor(predictor.network, predictor.config, **lengths)


def test_a_network_of_weights_that_are_not_finite_ends_in_one_sentence(predictor):
    predictor.network.vertices[1, 3] = float("nan")
    with pytest.raises(InputError, match=r"^vertices: wanted finite coordinates, found NaN or infinity$"):
        predictor(volume())


def test_what_sticks_out_of_an_enclosing_mesh_is_its_overlap(predictor):
    surfaces = predictor(volume())
    meshes = [(structure, surfaces.faces) for structure in surfaces.raw_vertices]
    shared = overlaps_ml(meshes, structures_of(500, 420), surfaces.grid)[0, 1]
    outside = overlaps_ml(meshes, structures_of(500, 420, encloses={0: (1,)}), surfaces.grid)[0, 1]
    assert shared + outside == pytest.approx(mesh_volume_ml(*meshes[1]), rel=0.03)


def test_a_structure_that_the_segmentation_lacks_and_an_odd_image_are_warned_of(predictor):
    surfaces = predictor(replace(volume(), name="heart"))
    assert surfaces.agreement["LV"] > 0.7
    assert surfaces.agreement["LA"] == 0
    (warning,) = surfaces.warnings
    assert surfaces.moves_mm[1].mean() > 1  # as the mesh lies in that of LV, which is believed
    assert warning.startswith("heart: meshes and voxel segmentation disagree")
    assert "LA 0.00" in warning
    assert "LV" not in warning
    odd = predictor(replace(volume(974.0), name="heart"))
    assert any("heart: the image is unlike the training's" in warning for warning in odd.warnings)


def test_what_is_doubtful_about_the_file_reaches_the_surfaces(predictor, tmp_path):
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(np.full((20, 20, 20), -50, np.int16), None)
    image.header.set_zooms((2, 2, 2))
    nib.save(image, path)
    warnings = predictor(path).warnings
    assert f"{path}: the header gives no world position" in warnings[0]


def test_meshes_that_still_cross_are_warned_of(predictor, monkeypatch):
    monkeypatch.setattr("implicitmeshnet.predict.made_way", lambda vertices, *others: vertices)
    monkeypatch.setattr("implicitmeshnet.predict.separate", lambda vertices, *others: vertices)
    predictor.network.vertices[1, ::2] *= -2
    surfaces = predictor(replace(volume(), name="heart"))
    assert surfaces.crossing[0] == 0
    assert surfaces.crossing[1] > 0
    assert any(
        f"LA {surfaces.crossing[1]}" in warning and "cross themselves" in warning for warning in surfaces.warnings
    )
    assert min(surfaces.crossing_others) > 0
    assert any("still cross each other" in warning for warning in surfaces.warnings)


def test_meshes_that_the_repair_moved_far_are_warned_of(predictor, monkeypatch):
    def moved(vertices, *others):
        return vertices + np.array([[[0, 0.9, 1.2]], [[0, 3, 4]]])

    monkeypatch.setattr("implicitmeshnet.predict.made_way", lambda vertices, *others: vertices)
    monkeypatch.setattr("implicitmeshnet.predict.separate", moved)
    surfaces = predictor(replace(volume(), name="heart"))
    assert surfaces.moves_mm.mean(1) == pytest.approx([1.5, 5])
    (warning,) = [each for each in surfaces.warnings if "the repair moved" in each]
    assert warning.startswith("heart: ")
    assert "(mean mm: LV 1.5)" in warning  # LA is in no segmentation: another warning says so


@pytest.mark.parametrize("labelled", [False, True])
def test_a_preview_with_and_without_a_label(predictor, tmp_path, labelled):
    surfaces = predictor(volume())
    labels = Volume(surfaces.labelmap.astype(np.int32), surfaces.grid) if labelled else None
    preview(tmp_path / "preview.png", surfaces, labels)
    assert (tmp_path / "preview.png").stat().st_size > 10_000


def test_an_ensemble_averages_vertices_and_probabilities(predictor):
    """Of a network and one that is 0.1 further along X and surer of its segmentation, which its vote so outweighs."""
    moved = TwoSpheres()
    moved.vertices = moved.vertices + torch.tensor([0.2, 0, 0])
    moved.certainty = 1.0
    both = Predictor(Ensemble([predictor.network, moved]), predictor.config)
    alone = predictor(volume())
    surfaces = both(volume())
    shift_mm = np.linalg.norm(surfaces.raw_vertices - alone.raw_vertices, axis=-1)
    np.testing.assert_allclose(shift_mm, 0.1 * 23 / 2 * 2.0, rtol=1e-4)
    image = torch.zeros(1, 1, *SHAPE)
    probabilities = [network(image).segmentation.softmax(1) for network in (predictor.network, moved)]
    mean = both.network(image).segmentation.softmax(1)
    torch.testing.assert_close(mean, (probabilities[0] + probabilities[1]) / 2)


def test_an_ensemble_of_one_network_twice_finds_what_the_network_finds(predictor):
    alone = predictor(volume())
    twice = Predictor(Ensemble([predictor.network, predictor.network]), predictor.config)(volume())
    np.testing.assert_array_equal(twice.raw_vertices, alone.raw_vertices)
    np.testing.assert_array_equal(twice.segmentation, alone.segmentation)


def test_coarse_passes_are_averaged_by_their_probabilities():
    """A sure one outvotes an unsure one, however far its logits go."""
    localisers = []
    for logit in (-1.0, 500.0):
        localiser = Localiser((4, 8))
        torch.nn.init.zeros_(localiser.unet.head.weight)
        localiser.unet.head.bias.data = torch.tensor([0.0, logit])
        localisers.append(localiser)
    overview = torch.zeros(1, 12, 12, 12)
    assert not localisers[0].find(overview, np.full(3, 20)).structures.any()
    assert CoarseEnsemble(localisers).find(overview, np.full(3, 20)).structures.all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"structures": {"LA": [420], "LV": [500]}},
            "data.structures {'LV': [500], 'LA': [420]}, as a.json has, found",
        ),
        ({"spacing_mm": 3.0}, "data.spacing_mm 2.0, as a.json has, found 3.0"),
        ({"region": "found"}, "data.region centre, as a.json has, found found"),
    ],
)
def test_networks_that_see_otherwise_are_not_averaged(predictor, data, sentence):
    other = replace(predictor.config, data=replace(predictor.config.data, **data))
    with pytest.raises(InputError, match=r"^b\.json: wanted ") as caught:
        check_alike([predictor.config, other], ["a.json", "b.json"])
    assert sentence in str(caught.value)


def test_networks_of_other_folds_and_folders_may_be_averaged(predictor):
    data = replace(predictor.config.data, dir="elsewhere", fold=1, validation_cases=7, intensity_statistics=None)
    check_alike([predictor.config, Config(data=data)], ["a.json", "b.json"])
    finer = Config(data=data, network=NetworkConfig(template_subdivisions=5))
    with pytest.raises(InputError, match=r"b\.json: wanted network\.template_subdivisions 4, as a\.json has, found 5"):
        check_alike([predictor.config, finer], ["a.json", "b.json"])


def test_the_networks_mode_is_left_as_it_was(predictor):
    predictor.network.train()
    predictor(volume())
    assert predictor.network.training


class WhereItIsBright(TwoSpheres):
    """The first sphere lies towards -X, and the segmentation holds what is bright."""

    def forward(self, image):
        first = image[0, 0] > 0
        logits = torch.stack([(~first).float(), first.float(), torch.zeros(SHAPE)])[None]
        return Prediction([self.vertices[None]], self.certainty * logits)


@pytest.mark.parametrize("side", [1, -1])
def test_a_guessed_orientation_is_the_one_in_which_results_agree(predictor, side):
    """A ball at one side of the world's first axis, which the network expects at its lower one."""
    guessing = Predictor(WhereItIsBright(), predictor.config, ["LV"], orientation="guess")
    middle = (AFFINE @ [24.5, 29.5, 19.5, 1])[:3]
    ball = middle + np.array([side * 0.3 * 23, 0, 0])
    places = np.moveaxis(np.indices((50, 60, 40)), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    image = np.where(np.linalg.norm(places - ball, axis=-1) < 11.5, 700.0, -300.0).astype(np.float32)
    surfaces = guessing(Volume(image, Grid((50, 60, 40), AFFINE)))
    assert surfaces.agreement["LV"] > 0.85
    np.testing.assert_allclose(surfaces.vertices[0].mean(0), ball, atol=2)
    np.testing.assert_allclose(surfaces.grid.affine, AFFINE)
    assert mesh_volume_ml(surfaces.vertices[0], surfaces.faces) > 5
    assert (image[surfaces.labelmap == 500] > 0).mean() > 0.85
    told = [warning for warning in surfaces.warnings if "against its header" in warning]
    assert told == ([] if side < 0 else ["volume: taken with its axes x flipped, against its header"])


def test_whom_to_believe_about_the_axes_is_one_of_two(predictor):
    with pytest.raises(InputError, match="orientation: wanted header or guess, found 'none'"):
        Predictor(predictor.network, predictor.config, orientation="none")


def test_an_oblique_header_that_is_believed_is_taken_as_it_is(predictor):
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (13, 27, 41), degrees=True).as_matrix()
    view = predictor.look(Volume(volume().data, Grid((50, 60, 40), turned @ AFFINE)))
    assert view.others == ()


def test_slices_that_lie_across_another_of_the_patients_axes_are_seen_alike(predictor, tmp_path):
    """A stack whose header has a direction: its slices are the network's, whose voxels are as thick, all the same."""
    thick = Config(data=replace(predictor.config.data, spacing_mm=(2.0, 2.0, 6.0)))
    seeing = Predictor(predictor.network, thick)
    data = np.random.default_rng(0).normal(0, 100, (40, 44, 20)).astype(np.float32)
    straight = np.diag([1.0, 1.0, 6.0, 1.0])
    about_y = np.eye(4)
    about_y[:3, :3] = Rotation.from_euler("y", 60, degrees=True).as_matrix()  # slices lie nearest to the sagittal plane
    along_z = seeing(Volume(data, Grid(data.shape, straight)))
    oblique = seeing(Volume(data, Grid(data.shape, about_y @ straight)))
    assert thick_axis(canonical(Volume(data, Grid(data.shape, about_y @ straight))).grid.spacing_mm) == 0
    np.testing.assert_array_equal(oblique.sample.image, along_z.sample.image)
    np.testing.assert_allclose(oblique.raw_vertices, transform(about_y, along_z.raw_vertices), atol=1e-3)
    np.testing.assert_allclose(oblique.sample.grid.affine, about_y @ along_z.sample.grid.affine, atol=1e-6)
    assert (oblique.labelmap != along_z.labelmap).mean() < 0.005  # the repair depends on rounding
    preview(tmp_path / "preview.png", oblique, Volume(along_z.labelmap, oblique.grid))
