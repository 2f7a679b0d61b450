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
    MESH_TERMS,
    MeshLoss,
    border_density,
    class_loss,
    known_neighbourhoods,
    laplacian_loss,
    laplacian_weight,
    occupancy_dice_loss,
    occupancy_logits,
    occupancy_loss,
    overlap_loss,
    overlap_weight,
    soft_dice_loss,
    structure_masks,
    surface_loss,
    triangle_loss,
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
    return occupancy_loss(logits_of(vertices, faces, 20.0), masks)


def occupancy_dice(vertices, faces, masks):
    return occupancy_dice_loss(logits_of(vertices, faces, 20.0), masks)


def logits_of(vertices, faces, temperature):
    return occupancy_logits(vertices, exact(faces), list(SHAPE), temperature)


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


@pytest.mark.parametrize("loss", [occupancy, occupancy_dice, surface])
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
    occupancy_loss(logits_of(vertices, faces, 1000.0), ball(0.9)).backward()
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
    config = LossConfig(temperature=20.0, occupancy_dice=1.0)
    return MeshLoss(faces, vertex_count, config, structures_of(1, ignore=(9,)))


@pytest.mark.parametrize("term", ["occupancy", "occupancy_dice", "surface"])
def test_the_right_radius_has_the_least_loss_where_half_of_the_ball_is_ignored(term):
    losses = []
    for radius in (0.5, 0.6, 0.7):
        vertices, faces = ball_mesh(radius)
        prediction = Prediction([vertices], torch.zeros(1, 2, *SHAPE))
        _, terms = criterion_with_ignored(faces, vertices.shape[2])(prediction, half_ignored(0.6), 0.0)
        losses.append(getattr(terms, term).item())
    assert losses[1] < min(losses[0], losses[2])
    assert losses[1] < 0.2  # at this temperature the border is blurred by some voxels


@pytest.mark.parametrize("term", ["occupancy", "occupancy_dice", "surface"])
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
    wanted = occupancy_loss(logits_of(vertices, faces, config.temperature), masks)
    torch.testing.assert_close(losses.occupancy, wanted)
    torch.testing.assert_close(losses.surface, sum(surface(stage, faces, masks) for stage in stages) / 2)
    torch.testing.assert_close(losses.laplacian, sum(laplacian_loss(stage, around) for stage in stages) / 2)
    log_share = logits.log_softmax(1).gather(1, label[None])
    torch.testing.assert_close(losses.segmentation, -log_share.mean())


def test_a_coarser_level_is_held_against_the_voxels_that_its_strides_meet_and_counts_half():
    vertices, faces = ball_mesh(0.5, 2)
    config = LossConfig(segmentation_dice=1.0)
    criterion = MeshLoss(faces, vertices.shape[2], config, structures_of(1))
    label = ball(0.6)[0].long()
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(1, 2, *SHAPE, generator=generator)
    coarse = torch.randn(1, 2, SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2], generator=generator)
    _, losses = criterion(Prediction([vertices], fine, [coarse]), label, 0.0)
    thinned = label[:, ::2, ::2]
    for found, loss in ((losses.segmentation, class_loss), (losses.segmentation_dice, soft_dice_loss)):
        torch.testing.assert_close(found, (loss(fine, label, 2) + loss(coarse, thinned, 2) / 2) / 1.5)


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


def slabs(*extents, voxels=40):
    """Logits and masks (1, S, voxels, 2, 2) of structures that claim, and have, the voxels from one number to another
    along X."""
    logits = torch.full((1, len(extents), voxels, 2, 2), -100.0)
    for structure, (start, end) in enumerate(extents):
        logits[:, structure, start:end] = 100.0
    return logits, (logits > 0).float()


def test_the_dice_of_meshes_is_the_mean_of_their_structures():
    masks = slabs((0, 10), (20, 40))[1]
    claims = slabs((0, 20), (20, 40))[0]
    assert occupancy_dice_loss(claims, masks).item() == pytest.approx((1 - 20 / 30) / 2)
    assert occupancy_dice_loss(*slabs((0, 10), (20, 40))).item() == pytest.approx(0, abs=1e-6)


def test_a_structure_that_no_case_has_counts_nothing_in_the_dice_of_meshes():
    claims, masks = slabs((0, 20), (20, 40))
    masks[:, 1] = 0
    assert occupancy_dice_loss(claims, masks).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_the_dice_of_meshes_is_that_of_its_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = (torch.rand(2, 2, 3, 2, 2, generator=generator) > 0.5).double()
    kept = torch.ones(2, 1, 3, 2, 2)
    kept[:, :, 0] = 0
    assert torch.autograd.gradcheck(lambda each: occupancy_dice_loss(each, masks), logits)
    assert torch.autograd.gradcheck(lambda each: occupancy_dice_loss(each, masks * kept, kept), logits)


def test_overlap_is_the_share_of_voxels_that_two_claim_summed_over_pairs_by_the_structures():
    logits, masks = slabs((0, 20), (10, 30), (15, 40))
    shared = 10 + 5 + 15  # of the first two, of the first and the third, of the last two
    assert overlap_loss(logits, masks, [(), (), ()]).item() == pytest.approx(shared / 40 / 3)


def test_half_a_claim_of_two_counts_a_quarter():
    masks = torch.ones(1, 2, 4, 4, 4)
    assert overlap_loss(torch.zeros(1, 2, 4, 4, 4), masks, [(), ()]).item() == pytest.approx(0.25 / 2)


def test_of_an_enclosed_structure_what_sticks_out_counts():
    logits, masks = slabs((0, 20), (15, 28), (28, 40))
    assert overlap_loss(logits, masks, [(1,), (), ()]).item() == pytest.approx(8 / 40 / 3)  # the second's outside
    assert overlap_loss(logits, masks, [(), (0,), ()]).item() == pytest.approx(15 / 40 / 3)  # the first's outside


def test_a_structure_that_the_label_lacks_pushes_no_other_in_its_case_alone():
    logits, masks = slabs((0, 20), (10, 30))
    masks = torch.cat([masks, masks])
    masks[1, 1] = 0
    logits = logits.repeat(2, 1, 1, 1, 1).clamp(-3, 3).requires_grad_()
    loss = overlap_loss(logits, masks, [(), ()])
    assert loss.item() == pytest.approx(overlap_loss(logits[:1], masks[:1], [(), ()]).item() / 2)
    loss.backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0, :, 10:20] > 0).all()


def test_one_structure_overlaps_nothing():
    logits, masks = slabs((0, 20))
    assert overlap_loss(logits, masks, [()]) == 0


def test_no_voxel_that_is_ignored_overlaps():
    logits, masks = slabs((0, 20), (10, 30))
    kept = torch.ones(1, 1, 40, 2, 2)
    assert torch.equal(overlap_loss(logits, masks, [(), ()], kept), overlap_loss(logits, masks, [(), ()]))
    kept[:, :, 15:] = 0
    assert overlap_loss(logits, masks, [(), ()], kept).item() == pytest.approx(5 / 15 / 2)
    assert overlap_loss(logits, masks, [(), ()], torch.zeros_like(kept)) == 0


@pytest.mark.parametrize("encloses", [[(), (), ()], [(1,), (), ()]])
def test_the_gradient_of_the_overlap_is_that_of_its_differences(encloses):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = torch.ones(2, 3, 3, 2, 2)
    kept = torch.ones(2, 1, 3, 2, 2)
    kept[:, :, 0] = 0
    assert torch.autograd.gradcheck(lambda each: overlap_loss(each, masks, encloses), logits)
    assert torch.autograd.gradcheck(lambda each: overlap_loss(each, masks, encloses, kept), logits)


def two_balls(distance):
    """Two balls of radius 0.4 so far apart along X: meshes (1, 2, V, 3) and faces."""
    mesh, faces = ball_mesh(0.4)
    shift = torch.tensor([distance / 2, 0.0, 0.0])
    return torch.cat([mesh - shift, mesh + shift], 1), faces


@pytest.mark.parametrize(("encloses", "way"), [({}, 1), ({1: (0,)}, -1)])
def test_the_overlap_parts_two_balls_and_draws_one_into_its_encloser(encloses, way):
    vertices, faces = two_balls(0.5)
    vertices.requires_grad_()
    structures = structures_of(1, 2, encloses=encloses)
    masks = torch.ones(1, 2, *SHAPE)
    overlap_loss(logits_of(vertices, faces, 20.0), masks, structures.encloses).backward()
    pull = -vertices.grad[0, :, :, 0].sum(1)  # along X, of each
    assert pull[0] * way < -1e-3
    assert pull[1] * way > 1e-3


def test_the_overlap_of_distant_balls_is_next_to_none():
    vertices, faces = two_balls(1.1)
    masks = torch.ones(1, 2, *SHAPE)
    near = overlap_loss(logits_of(two_balls(0.5)[0], faces, 60.0), masks, [(), ()])
    assert overlap_loss(logits_of(vertices, faces, 60.0), masks, [(), ()]) < 1e-3 * near


def test_the_weight_of_the_overlap_rises_from_nothing_as_that_of_the_laplacian_falls():
    config = LossConfig(overlap=0.4, laplacian_start=1000.0, laplacian_end=0.0, laplacian_epochs=80)
    assert overlap_weight(config, 0) == 0
    for epoch in (20, 40, 77.5):
        assert overlap_weight(config, epoch) / 0.4 == pytest.approx(1 - laplacian_weight(config, epoch) / 1000)
    assert overlap_weight(config, 80) == overlap_weight(config, 200) == 0.4


def test_an_equilateral_triangle_lacks_nothing_and_a_right_one_its_share_at_any_size():
    equilateral = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, math.sqrt(0.75), 0.0]])
    right = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    face = torch.tensor([[0, 1, 2]])
    for size in (0.01, 1.0, 100.0):
        assert triangle_loss(size * equilateral, face).item() == pytest.approx(0, abs=1e-6)
        assert triangle_loss(size * right, face).item() == pytest.approx(1 - 4 * math.sqrt(3) * 6 / 50, rel=1e-5)


def test_triangles_are_worst_without_area_and_their_gradient_stays_finite():
    vertices, faces = icosphere(1)
    needles = (vertices * torch.tensor([1.0, 0.0, 0.0])).requires_grad_()
    point = torch.zeros_like(vertices).requires_grad_()
    speck = (1e-6 * vertices).requires_grad_()
    for mesh in (needles, point, speck):
        loss = triangle_loss(mesh, faces)
        loss.backward()
        assert torch.isfinite(mesh.grad).all()
        assert mesh.grad.norm() < 1e3
    assert triangle_loss(needles, faces) == triangle_loss(point, faces) == 1


def test_a_sphere_has_good_triangles_which_no_gradient_shrinks():
    vertices, faces = icosphere(3)
    vertices.requires_grad_()
    loss = triangle_loss(vertices, faces)
    loss.backward()
    along_the_radius = (vertices.grad * vertices.detach()).sum()
    assert 0 < loss.item() < 0.02
    assert abs(along_the_radius.item()) < 1e-6
    assert triangle_loss(vertices * torch.tensor([1.0, 1.0, 3.0]), faces) > 10 * loss


def test_the_gradient_of_the_triangles_is_that_of_their_differences():
    vertices, faces = icosphere(0)
    noise = torch.randn(2, *vertices.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    meshes = (vertices.double() + 0.2 * noise).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: triangle_loss(each, faces), meshes)


def test_triangles_are_measured_in_mm_where_a_voxel_has_unequal_sides():
    vertices, faces = icosphere(2)
    sides = torch.tensor([50.0, 100.0, 25.0])
    structures = structures_of(1)
    criterion = MeshLoss(
        faces, len(vertices), LossConfig(triangles=1.0), structures, half_sides_mm=tuple(sides.tolist())
    )
    round_in_mm = (20 * vertices / sides)[None, None]
    prediction = Prediction([round_in_mm], torch.zeros(1, 2, *SHAPE))
    _, losses = criterion(prediction, ball(0.5)[0].long(), 0.0)
    assert losses.triangles.item() == pytest.approx(triangle_loss(vertices, faces).item(), rel=1e-4)


def two_claims():
    """A criterion's input in which two balls overlap: meshes, faces and label."""
    vertices, faces = two_balls(0.6)
    label = torch.zeros(1, *SHAPE, dtype=torch.long)
    label[:, : SHAPE[0] // 2] = 1
    label[:, SHAPE[0] // 2 :] = 2
    return vertices, faces, label


@pytest.mark.parametrize(("term", "at_the_end"), [("occupancy_dice", False), ("overlap", True), ("triangles", False)])
def test_a_term_of_the_meshes_is_weighed_into_the_loss_and_left_out_at_weight_zero(monkeypatch, term, at_the_end):
    vertices, faces, label = two_claims()
    prediction = Prediction([0.9 * vertices, vertices], torch.zeros(1, 3, *SHAPE))
    schedule = {"laplacian_epochs": 10, "laplacian_start": 5.0, "laplacian_end": 5.0}
    weighed = MeshLoss(faces, vertices.shape[2], LossConfig(**{term: 2.0}, **schedule), structures_of(1, 2))
    left_out = MeshLoss(faces, vertices.shape[2], LossConfig(**schedule), structures_of(1, 2))
    begin, terms = weighed(prediction, label, 0.0)
    end, _ = weighed(prediction, label, 10.0)
    found = getattr(terms, term).item()
    for name in ("occupancy_dice_loss", "overlap_loss", "triangle_loss"):
        monkeypatch.setattr(f"implicitmeshnet.training.losses.{name}", None)  # so that a call fails
    without, none = left_out(prediction, label, 10.0)
    assert getattr(none, term) == 0
    assert found > 1e-3
    assert end.item() - without.item() == pytest.approx(2 * found, rel=1e-3)
    assert begin.item() - without.item() == pytest.approx(0 if at_the_end else 2 * found, abs=1e-5)


def test_the_overlap_takes_no_distance_of_its_own():
    vertices, faces, label = two_claims()
    calls = []

    def distance(meshes, shape):
        calls.append(len(meshes))
        return mesh2sdf(meshes, faces, shape)

    criterion = MeshLoss(faces, vertices.shape[2], LossConfig(overlap=1.0), structures_of(1, 2), distance)
    _, terms = criterion(Prediction([vertices], torch.zeros(1, 3, *SHAPE)), label, 0.0)
    assert calls == [2]
    logits = logits_of(vertices, faces, LossConfig().temperature)
    wanted = overlap_loss(logits, torch.ones(1, 2, *SHAPE), [(), ()])
    torch.testing.assert_close(terms.overlap, wanted)


def test_without_stages_only_the_segmentation_is_learnt():
    _, faces = ball_mesh(0.5, 2)
    criterion = MeshLoss(faces, 162, LossConfig(segmentation=2.0, segmentation_dice=1.0), structures_of(1))
    logits = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    total, losses = criterion(Prediction([], logits), ball(0.6)[0].long(), 0.0)
    assert losses.segmentation > 0 and losses.segmentation_dice > 0
    torch.testing.assert_close(total, 2 * losses.segmentation + losses.segmentation_dice)
    for term in MESH_TERMS:
        assert getattr(losses, term) == 0


MESH_WEIGHTS = ("occupancy", "occupancy_dice", "surface", "overlap", "triangles", "laplacian_start", "laplacian_end")


@pytest.mark.parametrize("term", MESH_WEIGHTS)
def test_meshes_are_trained_where_any_of_their_terms_has_a_weight(term):
    nothing = dict.fromkeys(MESH_WEIGHTS, 0.0)
    assert not LossConfig(**nothing).has_meshes
    assert LossConfig(**nothing | {term: 0.1}).has_meshes
