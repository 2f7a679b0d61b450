import pytest
import torch
import torch.nn.functional as F
from meshes import structures_of

from implicitmeshnet.config import Config, DataConfig, NetworkConfig
from implicitmeshnet.data.augment import rotation
from implicitmeshnet.data.ellipsoids import ellipsoid_of
from implicitmeshnet.mesh import icosphere, signed_volumes
from implicitmeshnet.models.mesh_net import SegmentedTemplate, build_network
from implicitmeshnet.models.weights import load_checkpoint, load_network, save_checkpoint, save_snapshot
from implicitmeshnet.script import InputError


def small_config(**network):
    settings = {
        "encoder_channels": (4, 8, 8),
        "decoder_channels": (4, 4),
        "template": "centred",
        "template_subdivisions": 1,
        "stage_levels": (("e2",), ("e0", "d1")),
        "stage_channels": (8, 4),
    }
    return Config(
        data=DataConfig(structures={"LV": [500], "LA": [420], "RV": [600]}, shape=(16, 12, 8)),
        network=NetworkConfig(**settings | network),
    )


def test_shapes_for_several_structures_and_an_anisotropic_grid():
    network = build_network(small_config())
    prediction = network(torch.randn(2, 1, 16, 12, 8))
    assert [tuple(stage.shape) for stage in prediction.stages] == [(2, 3, 42, 3)] * 2
    assert prediction.segmentation.shape == (2, 4, 16, 12, 8)
    assert prediction.segmentation.dtype == prediction.vertices.dtype == torch.float32


def test_the_first_convolutions_take_all_channels():
    config = small_config()
    config.data.intensity = ["window", "percentile", "percentile"]
    config.data.region = "found"
    network = build_network(config)
    assert network(torch.randn(1, 3, 16, 12, 8)).segmentation.shape == (1, 4, 16, 12, 8)
    assert network.localiser(torch.randn(1, 3, 16, 12, 8)).shape == (1, 2, 16, 12, 8)


def test_the_papers_layers_are_the_defaults():
    network = build_network(Config(network=NetworkConfig(template="centred", template_subdivisions=2)))
    widths = [stage.input.weight.shape[1] for stage in network.decoder.stages]
    assert widths == [384 + 3, 144 + 3 + 288, 64 + 3 + 96]  # sampled features, vertices, hidden features before
    assert [stage.input.weight.shape[2] // 2 for stage in network.decoder.stages] == [288, 96, 32]
    assert len(NetworkConfig().encoder_channels) == 5


def test_the_untrained_network_returns_the_template():
    config = small_config(template="mean", template_centres=((0.1, 0, 0),) * 3, template_radii=((0.2, 0.3, 0.4),) * 3)
    vertices = build_network(config).eval()(torch.zeros(1, 1, 16, 12, 8)).vertices[0]
    torch.testing.assert_close(vertices.amax(1), torch.tensor([[0.3, 0.3, 0.4]]).expand(3, 3), atol=0.06, rtol=0)
    torch.testing.assert_close(vertices.mean(1), torch.tensor([[0.1, 0, 0]]).expand(3, 3))


def test_meshes_that_training_left_inside_out_are_predicted_outside_out():
    radii = ((0.2, 0.3, 0.4), (0.2, 0.3, -0.4), (0.2, 0.3, 0.4))
    config = small_config(template="mean", template_centres=((0.1, 0, 0),) * 3, template_radii=radii)
    network = build_network(config)
    image = torch.zeros(1, 1, 16, 12, 8)
    learnt = network(image).vertices
    predicted = network.eval()(image).vertices
    assert (signed_volumes(learnt, network.decoder.faces) > 0).tolist() == [[True, False, True]]
    assert (signed_volumes(predicted, network.decoder.faces) > 0).all()
    assert torch.equal(predicted[0, [0, 2]], learnt[0, [0, 2]])
    assert sorted(predicted[0, 1].tolist()) == sorted(learnt[0, 1].tolist())


def test_every_parameter_gets_a_gradient():
    network = build_network(small_config())
    for stage in network.decoder.stages:
        torch.nn.init.normal_(stage.output.weight)
    prediction = network(torch.randn(2, 1, 16, 12, 8))
    (prediction.vertices.square().sum() + prediction.segmentation.square().sum()).backward()
    without = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # an output bias moves all vertices alike, a displacement like any other; nothing may be left out
    assert without == []


def test_a_snapshot_is_half_precision_and_gives_the_same_meshes(tmp_path):
    torch.manual_seed(0)
    config = small_config()
    network = build_network(config).eval()
    for stage in network.decoder.stages:
        torch.nn.init.normal_(stage.output.weight)
    save_snapshot(tmp_path / "best.pt", network)
    stored = load_checkpoint(tmp_path / "best.pt")["network"]
    assert {value.dtype for value in stored.values()} == {torch.float16}
    image = torch.randn(1, 1, 16, 12, 8)
    loaded = load_network(config, tmp_path / "best.pt")
    torch.testing.assert_close(loaded(image).vertices, network(image).vertices, atol=1e-2, rtol=0)


def test_a_snapshot_that_does_not_fit_is_refused_with_one_sentence(tmp_path):
    path = tmp_path / "best.pt"
    save_snapshot(path, build_network(small_config()))
    with pytest.raises(InputError, match=r"best\.pt: does not fit the config: wanted unet\.encoder\.0"):
        load_network(small_config(encoder_channels=(5, 8, 8)), path)
    with pytest.raises(InputError, match="template_centres"):
        load_network(small_config(template="mean"), path)
    with pytest.raises(InputError, match=r"none\.pt: wanted trained weights, found no such file"):
        load_network(small_config(), tmp_path / "none.pt")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="unreadable"):
        load_network(small_config(), path)
    save_checkpoint(path, {"other": torch.zeros(1)})
    with pytest.raises(InputError, match="'network'"):
        load_network(small_config(), path)


def test_profiles_read_the_finest_level_before_and_behind_each_vertex():
    steps = (-2.0, 1.0)
    config = small_config(template="mean", template_centres=((0.0, 0, 0),) * 3, template_radii=((0.5, 0.5, 0.5),) * 3)
    config.network.profile_voxels = steps
    decoder = build_network(config).decoder
    shape = (25, 25, 25)
    index = torch.stack(torch.meshgrid(*[torch.arange(size) - 12.0 for size in shape], indexing="ij"))
    from_centre = index.norm(dim=0)[None, None]  # (1, 1, X, Y, Z), in voxels
    vertices = decoder.template[:, None]  # (3, 1, V, 3): spheres of 6 voxels
    profile = decoder._profile(from_centre, vertices)
    assert profile.shape == (*vertices.shape[:3], 2)
    for step, found in zip(steps, profile.unbind(-1), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, 6 + step), atol=0.15, rtol=0)


def test_deep_supervision_segments_at_coarser_levels_in_training_alone():
    torch.manual_seed(0)
    network = build_network(small_config(deep_supervision=True))
    image = torch.randn(2, 1, 16, 12, 8)
    (coarser,) = network(image).coarser
    assert coarser.shape == (2, 4, 8, 6, 4)
    assert coarser.dtype == torch.float32
    coarser.square().sum().backward()
    assert network.unet.decoder[1].skip.weight.grad.abs().max() > 0
    assert network.unet.decoder[0].skip.weight.grad is None  # the finer level
    assert network.eval()(image).coarser == []
    assert build_network(small_config())(image).coarser == []


def test_a_network_with_profiles_predicts_and_learns():
    network = build_network(small_config(profile_voxels=(-1.0, 1.0)))
    plain = build_network(small_config())
    more = network.decoder.stages[-1].input.weight.shape[1] - plain.decoder.stages[-1].input.weight.shape[1]
    assert more == 2 * small_config().network.decoder_channels[0]
    for stage in network.decoder.stages:
        torch.nn.init.normal_(stage.output.weight)
    network(torch.randn(2, 1, 16, 12, 8)).vertices.square().sum().backward()
    assert network.decoder.stages[-1].input.weight.grad.abs().sum((0, 2)).gt(0).all()


def test_the_decoder_rests_in_training_alone_where_no_meshes_are_trained():
    network = build_network(small_config())
    network.trains_meshes = False
    image = torch.randn(2, 1, 16, 12, 8)
    assert network(image).stages == []
    assert len(network.eval()(image).stages) == len(network.decoder.stages)


def test_templates_start_as_the_ellipsoids_of_what_is_segmented():
    sphere, _ = icosphere(2)
    structures = structures_of(1, 2, 3, encloses={0: (1,)})
    template = 0.1 * sphere.repeat(3, 1, 1)
    classes = torch.zeros(2, 20, 24, 16, dtype=torch.long)
    classes[0, 4:10, 3:9, 2:9] = 1
    classes[0, 10:14, 3:9, 2:9] = 2
    logits = F.one_hot(classes, 4).movedim(-1, 1).float()
    image = torch.zeros(2, 1, 20, 24, 16)
    image[:, :, 16:] = -1
    logits[:, 1, 16:] = 9  # beyond the image
    start = SegmentedTemplate(template, sphere, structures, is_oblique=False)(logits, image)
    assert start.shape == (3, 2, len(sphere), 3)
    for structure in (0, 1):
        centre, radii = ellipsoid_of(structures.held(classes[0], structure).numpy())
        wanted = torch.from_numpy(centre + radii * sphere.double().numpy()).float()
        torch.testing.assert_close(start[structure, 0], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(start[2, 0], template[2])  # not segmented at all
    torch.testing.assert_close(start[:, 1], template)


def test_a_template_lies_as_obliquely_as_what_is_segmented():
    sphere, _ = icosphere(3)
    sides = (40, 36, 44)
    axes = [torch.linspace(-1, 1, side) for side in sides]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    turn = rotation(0, 0.5) @ rotation(1, 0.4) @ rotation(2, 0.9)
    shape = turn @ torch.diag(torch.tensor([0.8, 0.3, 0.4])) @ turn.T
    centre = torch.tensor([0.1, -0.05, 0.0])
    inside = ((points - centre) @ torch.linalg.inv(shape)).norm(dim=-1) < 1
    logits = F.one_hot(inside.long(), 2).movedim(-1, 0).float()[None]
    template = SegmentedTemplate(sphere[None], sphere, structures_of(1), is_oblique=True)
    start = template(logits, torch.zeros(1, 1, *sides))
    torch.testing.assert_close(start[0, 0], centre + sphere @ shape, atol=0.02, rtol=0)


def test_a_network_that_starts_at_its_segmentation_predicts_there_and_learns():
    centres, radii = ((0.0, 0, 0),) * 3, ((0.2, 0.2, 0.2),) * 3
    config = small_config(template="segmented", template_centres=centres, template_radii=radii)
    network = build_network(config)
    torch.nn.init.zeros_(network.unet.head.weight)
    with torch.no_grad():
        network.unet.head.bias.copy_(torch.tensor([0.0, 0, 1, 0]))  # all is the second structure
    for stage in network.decoder.stages:
        torch.nn.init.zeros_(stage.output.weight)
        torch.nn.init.zeros_(stage.output.bias)
    prediction = network(torch.randn(2, 1, 16, 12, 8))
    of_all = 5**0.5 / 3**0.5  # semi-axis of the ellipsoid with a full box's moments
    torch.testing.assert_close(prediction.vertices[:, 1].amax((0, 1)), torch.full((3,), of_all), atol=0.2, rtol=0)
    assert prediction.vertices[:, 0].abs().max() < 0.21
    prediction.vertices.square().sum().backward()
    assert network.decoder.stages[-1].output.weight.grad.abs().max() > 0
