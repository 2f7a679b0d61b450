import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from meshes import structures_of
from volumes import ball_mask

from implicitmeshnet.config import LossConfig
from implicitmeshnet.mesh import icosphere, neighbours
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.training.losses import (
    MeshLoss,
    border_density,
    class_loss,
    known_neighbourhoods,
    laplacian_loss,
    laplacian_weight,
    occupancy_loss,
    soft_dice_loss,
    structure_masks,
    surface_loss,
)

SHAPE = (20, 24, 28)


def ball(radius, shape=SHAPE):
    sides = np.array(shape) - 1.0
    return torch.from_numpy(ball_mask(shape, sides / 2, radius, 2 / sides)).float()[None, None]


def ball_mesh(radius, subdivisions=3):
    vertices, faces = icosphere(subdivisions)
    return (radius * vertices)[None, None], faces


def exact(faces):
    return lambda vertices, shape: mesh2sdf(vertices, faces, shape)


def occupancy(vertices, faces, masks):
    return occupancy_loss(vertices, exact(faces), masks, 20.0)


def surface(vertices, faces, masks):
    return surface_loss(vertices, faces, border_density(masks))


def test_masks_pick_structures_by_index():
    label = torch.tensor([0, 1, 2, 2]).view(1, 4, 1, 1)
    masks = structure_masks(label, structures_of(1, 2))
    assert masks[0, :, :, 0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]


def test_a_mask_holds_what_its_structure_encloses():
    label = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1)
    masks = structure_masks(label, structures_of(5, 6, 7, encloses={1: (0,)}))
    assert masks[0, :, :, 0, 0].tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("loss", [occupancy, surface])
def test_the_right_radius_has_the_least_loss_and_the_gradient_leads_there(loss):
    masks = ball(0.6)
    losses, slopes = [], []
    for radius in (0.5, 0.6, 0.7):
        vertices, faces = ball_mesh(radius)
        vertices.requires_grad_()
        value = loss(vertices, faces, masks)
        value.backward()
        losses.append(value.item())
        slopes.append((vertices.grad * vertices.detach()).sum().item())  # derivative along the radius
    assert losses[1] < min(losses[0], losses[2])
    assert slopes[0] < 0 < slopes[2]


def test_occupancy_keeps_its_gradient_where_the_sigmoid_saturates():
    vertices, faces = ball_mesh(0.2)
    vertices.requires_grad_()
    occupancy_loss(vertices, exact(faces), ball(0.9), 1000.0).backward()
    assert vertices.grad.abs().max() > 1e-3
    assert torch.isfinite(vertices.grad).all()


def test_surface_loss_of_a_mesh_off_by_half_a_voxel_is_small_and_far_away_is_one():
    masks = ball(0.6)
    near, faces = ball_mesh(0.6)
    assert surface(near, faces, masks) < 0.15
    assert surface(ball_mesh(0.05)[0], faces, masks) > 0.9


@pytest.mark.parametrize("axis", range(3))
def test_the_surface_loss_is_least_where_the_mesh_lies_on_the_border_to_a_quarter_of_a_voxel(axis):
    vertices, faces = ball_mesh(0.5, 4)
    masks = ball(0.5)
    voxel = torch.zeros(3)
    voxel[axis] = 2 / (SHAPE[axis] - 1)
    shifts = [-0.5, -0.25, 0.0, 0.25, 0.5]  # voxels
    losses = [surface(vertices + shift * voxel, faces, masks).item() for shift in shifts]
    assert min(losses) == losses[2]
    assert losses[0] == pytest.approx(losses[4], rel=0.05)  # the ball is symmetric, so must be what a shift costs


def test_border_density_sums_to_the_area_of_a_box_face():
    masks = torch.zeros(1, 1, 16, 16, 16)
    masks[..., :8] = 1
    assert border_density(masks)[..., 1:-1, 1:-1, :].sum().item() == pytest.approx(12 * 12, rel=1e-5)


def test_where_a_structure_touches_what_is_ignored_it_has_no_border():
    masks = torch.zeros(1, 1, 16, 16, 16)
    masks[..., :8] = 1
    kept = torch.ones(1, 1, 16, 16, 16)
    kept[..., 8:] = 0
    assert border_density(masks).sum() > 200
    assert border_density(masks, known_neighbourhoods(kept)).sum() == 0
    kept[..., 8:] = 1
    assert torch.equal(border_density(masks, known_neighbourhoods(kept)), border_density(masks))


HALF = SHAPE[0] // 2


def half_ignored(radius):
    """A ball of class 1 of which nothing is known beyond the middle of X, where the class is 2."""
    classes = ball(radius)[0].long()
    classes[:, HALF:] = 2
    return classes


def criterion_with_ignored(faces, vertex_count):
    return MeshLoss(faces, vertex_count, LossConfig(temperature=20.0), structures_of(1, ignore=(9,)))


@pytest.mark.parametrize("term", ["occupancy", "surface"])
def test_the_right_radius_has_the_least_loss_where_half_of_the_ball_is_ignored(term):
    losses = []
    for radius in (0.5, 0.6, 0.7):
        vertices, faces = ball_mesh(radius)
        prediction = Prediction([vertices], torch.zeros(1, 2, *SHAPE))
        _, terms = criterion_with_ignored(faces, vertices.shape[2])(prediction, half_ignored(0.6), 0.0)
        losses.append(getattr(terms, term).item())
    assert losses[1] < min(losses[0], losses[2])
    assert losses[1] < 0.15


@pytest.mark.parametrize("term", ["occupancy", "surface"])
def test_nothing_pulls_at_a_mesh_where_voxels_are_ignored(term):
    vertices, faces = ball_mesh(0.5)
    vertices.requires_grad_()
    prediction = Prediction([vertices], torch.zeros(1, 2, *SHAPE))
    _, terms = criterion_with_ignored(faces, vertices.shape[2])(prediction, half_ignored(0.6), 0.0)
    getattr(terms, term).backward()
    pull = vertices.grad[0, 0].norm(dim=-1)
    x = vertices.detach()[0, 0, :, 0]
    assert (pull[x > 0.3] == 0).all()
    assert (pull[x < -0.3] > 0).any()


def test_the_segmentation_learns_nothing_from_what_is_ignored():
    logits = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = half_ignored(0.6)
    loss = class_loss(logits, classes, 2)
    loss.backward()
    assert (logits.grad[:, :, HALF:] == 0).all()
    assert (logits.grad[:, :, :HALF] != 0).all()
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :, :HALF], classes[:, :HALF]))
    nothing_known = class_loss(logits, torch.full_like(classes, 2), 2)
    assert nothing_known == 0


def test_a_config_that_ignores_nothing_has_the_losses_of_one_whose_values_do_not_occur():
    vertices, faces = ball_mesh(0.5, 2)
    logits = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    results = []
    for structures in (structures_of(1), structures_of(1, ignore=(9,))):
        criterion = MeshLoss(faces, vertices.shape[2], LossConfig(), structures)
        results.append(criterion(Prediction([vertices], logits), ball(0.6)[0].long(), 0.0)[0])
    assert torch.equal(*results)


def test_laplacian_vanishes_on_a_flat_patch_and_grows_with_noise():
    vertices, faces = icosphere(3)
    around = neighbours(faces, len(vertices))
    smooth = laplacian_loss(vertices, around)
    noise = 0.1 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    assert laplacian_loss(vertices + noise, around) > 10 * smooth
    assert laplacian_loss(torch.ones_like(vertices), around) == 0


def test_laplacian_weight_anneals_by_a_cosine():
    config = LossConfig(laplacian_start=1000.0, laplacian_end=0.0, laplacian_epochs=800)
    assert laplacian_weight(config, 0) == 1000
    assert laplacian_weight(config, 200) == pytest.approx(500 * (1 + math.cos(math.pi / 4)))
    assert laplacian_weight(config, 800) == laplacian_weight(config, 2000) == 0


def test_the_total_is_the_weighted_sum():
    vertices, faces = ball_mesh(0.5, 2)
    criterion = MeshLoss(faces, vertices.shape[2], LossConfig(laplacian_start=3.0, laplacian_end=3.0), structures_of(1))
    label = ball(0.6)[0].long()
    logits = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    total, losses = criterion(Prediction([0.9 * vertices, vertices], logits), label, 0.0)
    wanted = losses.occupancy + 0.1 * losses.surface + 3 * losses.laplacian + 0.1 * losses.segmentation
    torch.testing.assert_close(total, wanted)


def test_the_surface_loss_is_the_mean_over_cases_and_structures_and_never_below_zero():
    vertices, faces = ball_mesh(0.5)
    meshes = torch.stack([vertices[0, 0], 0.8 * vertices[0, 0], 1.2 * vertices[0, 0], 1.4 * vertices[0, 0]])
    masks = torch.cat([ball(radius) for radius in (0.5, 0.45, 0.5, 0.7)])
    each = [surface(mesh[None, None], faces, mask[None]).item() for mesh, mask in zip(meshes, masks, strict=True)]
    together = surface(meshes.view(2, 2, -1, 3), faces, masks.view(2, 2, *SHAPE))
    assert together.item() == pytest.approx(sum(each) / 4, rel=1e-5)
    assert 0 <= min(each) < 0.15
    assert max(each) < 1


def test_the_laplacian_loss_is_the_mean_squared_distance_to_the_neighbours_mean():
    corners = torch.cat([torch.eye(3), -torch.eye(3)])  # of an octahedron: each one's neighbours have their mean at 0
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    around = neighbours(faces, 6)
    assert laplacian_loss(3 * corners[None, None] + 0.5, around).item() == pytest.approx(9)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_border_density_is_the_same_along_each_axis(axis):
    masks = torch.zeros(1, 1, 16, 16, 16)
    masks.narrow(axis, 0, 8).fill_(1)
    middle = border_density(masks)[..., 1:-1, 1:-1, 1:-1]
    along = middle.sum([other for other in (2, 3, 4) if other != axis]).flatten()
    assert along.sum().item() == pytest.approx(12 * 12, rel=1e-5)
    assert torch.equal(along, along.flip(0))  # the border lies in the middle


def test_the_losses_are_those_of_the_last_stage_and_the_means_over_all():
    vertices, faces = ball_mesh(0.5, 2)
    routed = []

    def distance(meshes, shape):
        routed.append(shape)
        return mesh2sdf(meshes, faces, shape)

    config = LossConfig()
    criterion = MeshLoss(faces, vertices.shape[2], config, structures_of(1), distance)
    label = ball(0.6)[0].long()
    logits = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    stages = [0.7 * vertices, vertices]
    _, losses = criterion(Prediction(stages, logits), label, 0.0)
    assert routed == [list(SHAPE)]
    masks = label[None].float()
    around = neighbours(faces, vertices.shape[2])
    wanted = occupancy_loss(vertices, exact(faces), masks, config.temperature)
    torch.testing.assert_close(losses.occupancy, wanted)
    torch.testing.assert_close(losses.surface, sum(surface(stage, faces, masks) for stage in stages) / 2)
    torch.testing.assert_close(losses.laplacian, sum(laplacian_loss(stage, around) for stage in stages) / 2)
    log_share = logits.log_softmax(1).gather(1, label[None])
    torch.testing.assert_close(losses.segmentation, -log_share.mean())


def test_the_soft_dice_loss_is_that_of_the_structures_that_are_there_whatever_their_size():
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    classes[0, 0, 0, 0] = 1  # one voxel
    classes[0, 2:] = 2  # half of them; 3 is nowhere
    certain = 50 * F.one_hot(classes, 4).movedim(-1, 1).float()
    assert soft_dice_loss(certain, classes, 9).item() == pytest.approx(0, abs=1e-6)
    blind = certain.clone()
    blind[:, 1] = -50  # the single voxel is missed: one structure of two has no overlap
    assert soft_dice_loss(blind, classes, 9).item() == pytest.approx(0.5, abs=0.01)


def test_the_soft_dice_loss_pulls_at_no_ignored_voxel():
    classes = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    classes[:, :2] = 3
    logits = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
    soft_dice_loss(logits, classes, 3).backward()
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().min() > 0


def test_the_soft_dice_of_a_segmentation_is_weighed_into_the_loss():
    vertices, faces = ball_mesh(0.5, 2)
    label = ball(0.5)[0].long()
    prediction = Prediction([vertices], torch.zeros(1, 2, *SHAPE))
    totals = []
    for weight in (0.0, 2.0):
        criterion = MeshLoss(faces, vertices.shape[2], LossConfig(segmentation_dice=weight), structures_of(1))
        total, terms = criterion(prediction, label, 0.0)
        totals.append(total.item())
    assert terms.segmentation_dice > 0
    assert totals[1] - totals[0] == pytest.approx(2 * terms.segmentation_dice.item(), rel=1e-5)
