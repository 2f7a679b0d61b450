"""Each op in plain PyTorch: its definition, and what runs where nothing is compiled for the device."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from implicitmeshnet.coordinates import transform, voxel_from_normalised

LIMIT = 1e9
"""A mesh with a vertex beyond, or not finite, has no distance."""
PAIRS = 2**21
"""Point-face or column-face pairs held in memory at a time."""
EPSILON = 1e-5
"""What norms add to a variance, as torch does."""


class Frame(NamedTuple):
    """Triangles in their own planes: corners (0, 0), (length, 0) on the longest edge, and (cx, cy) with cy >= 0."""

    origin: torch.Tensor  # (F, 3)
    axes: torch.Tensor  # (F, 3, 3), rows: along the longest edge, across it, and the face normal
    length: torch.Tensor  # (F,)
    cx: torch.Tensor  # (F,)
    cy: torch.Tensor  # (F,)
    corners: torch.Tensor  # (F, 3) int64, the vertices that the three corners are

    def take(self, face: torch.Tensor) -> "Frame":
        """The frames of these faces, a frame for each."""
        return Frame(*(field[face] for field in self))


def _longest_first(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """The faces (F, 3), each turned so that its longest edge runs from its first to its second corner."""
    corners = vertices[faces]  # (F, 3, 3)
    longest = (corners.roll(-1, 1) - corners).square().sum(-1).argmax(1)
    order = (longest[:, None] + torch.arange(3, device=faces.device)) % 3
    return faces.gather(1, order)


def make_frame(vertices: torch.Tensor, faces: torch.Tensor) -> Frame:
    """The frames of faces (F, 3) over vertices (V, 3). Degenerate faces get cy = 0 or length = 0 and any axes."""
    ordered = _longest_first(vertices, faces)
    a, b, c = vertices[ordered].unbind(1)
    length = torch.linalg.vector_norm(b - a, dim=-1)
    any_axis = a.new_tensor([1.0, 0.0, 0.0])
    x_axis = torch.where(length[:, None] > 0, (b - a) / length[:, None], any_axis)
    cx = ((c - a) * x_axis).sum(-1)
    across = c - a - cx[:, None] * x_axis
    cy = torch.linalg.vector_norm(across, dim=-1)
    thin = cy <= torch.finfo(a.dtype).eps * length  # no area: any axis across will do
    any_across = torch.linalg.cross(_least_axis(x_axis), x_axis)
    across = torch.where(thin[:, None], any_across, across)
    # Once more, so that slivers have axes as exact as any.
    across = across - (across * x_axis).sum(-1, keepdim=True) * x_axis
    y_axis = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    axes = torch.stack([x_axis, y_axis, torch.linalg.cross(x_axis, y_axis)], 1)
    return Frame(a, axes, length, cx, torch.where(thin, 0, cy), ordered)


def _least_axis(direction: torch.Tensor) -> torch.Tensor:
    """The coordinate axis that each direction (F, 3) is least along."""
    axis = direction.abs().argmin(-1)
    return F.one_hot(axis, 3).to(direction.dtype)


def closest(
    frame: Frame, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The closest points of triangles: points (..., 3) and frames that broadcast -> s, t, residual.

    The closest point is a + s (b - a) + t (c - a); the residual from it to `points` is three components in the frame.
    """
    x, y, z = _to_frame(frame, points)
    length, cx, cy = frame.length, frame.cx, frame.cy
    gx = cx - length  # (gx, cy) runs from b to c
    # The closest points of the three edges; the best of them is right unless the point is above the triangle itself.
    s_ab = (x * _inverse(length)).clamp(0, 1)
    t_ac = ((x * cx + y * cy) * _inverse(cx * cx + cy * cy)).clamp(0, 1)
    along_bc = (x - length) * gx + y * cy
    t_bc = (along_bc * _inverse(gx * gx + cy * cy)).clamp(0, 1)
    s, t = s_ab, torch.zeros_like(s_ab)
    rx, ry = x - s * length, y
    for next_s, next_t in ((torch.zeros_like(t_ac), t_ac), (1 - t_bc, t_bc)):
        next_rx = x - next_s * length - next_t * cx
        next_ry = y - next_t * cy
        nearer = next_rx * next_rx + next_ry * next_ry < rx * rx + ry * ry
        s, t = torch.where(nearer, next_s, s), torch.where(nearer, next_t, t)
        rx, ry = torch.where(nearer, next_rx, rx), torch.where(nearer, next_ry, ry)
    interior = (y > 0) & (cx * y < cy * x) & (gx * y > cy * (x - length))
    t_in = y * _inverse(cy)
    s_in = (x - t_in * cx) * _inverse(length)
    s = torch.where(interior, s_in, s)
    t = torch.where(interior, t_in, t)
    return s, t, (rx.masked_fill(interior, 0), ry.masked_fill(interior, 0), z)


def _to_frame(frame: Frame, points: torch.Tensor) -> list[torch.Tensor]:
    """The coordinates x, y and z of points (..., 3) in frames that broadcast."""
    dx, dy, dz = (points - frame.origin).unbind(-1)
    coordinates = []
    for axis in frame.axes.unbind(-2):
        coordinates.append(dx * axis[..., 0] + dy * axis[..., 1] + dz * axis[..., 2])
    return coordinates


def _inverse(x: torch.Tensor) -> torch.Tensor:
    """1 / x, 0 for lengths below any that a mesh in the unit cube means."""
    return torch.where(x > 1e-30, 1 / x, 0)


def grid_points(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """The normalised coordinates (X * Y * Z, 3) of all voxel centres, in the dtype and on the device of `like`."""
    axes = []
    for n in shape:
        axis = torch.arange(n, dtype=torch.float64) * 2 / (n - 1) - 1
        axes.append(axis.to(like.device, like.dtype))
    return torch.cartesian_prod(*axes)


def check_faces(faces: torch.Tensor, vertex_count: int) -> None:
    """Raise ValueError where faces (F, 3) is empty or points outside the vertices."""
    if len(faces) == 0:
        raise ValueError("faces: wanted at least one face, found none")
    low, high = (int(bound) for bound in faces.aminmax())
    if low < 0 or high >= vertex_count:
        found = low if low < 0 else high
        raise ValueError(f"faces: wanted vertex indices from 0 to {vertex_count - 1}, found {found}")


def extent(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """The largest coordinate of the vertices (..., V, 3) in use, at least 1: errors are in proportion to it."""
    used = vertices[..., faces.flatten(), :]
    return used.abs().amax((-2, -1)).clamp(min=1)


def fraction_bits(reach: float) -> int:
    """The sign snaps vertices to 2^-bits voxel, so that int64 edge functions are exact up to `reach` voxels."""
    return min(max(29 - math.frexp(reach)[1], 4), 28)


def mesh2sdf(vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """See `implicitmeshnet.ops.mesh2sdf`; every voxel is compared with every face."""
    check_faces(faces, vertices.shape[1])
    sdf = vertices.new_empty(len(vertices), *shape)
    face = torch.zeros(sdf.shape, dtype=torch.int32, device=sdf.device)
    for item in range(len(vertices)):
        if not (vertices[item].abs() <= LIMIT).all():
            sdf[item] = torch.nan
            continue
        distance, index = _nearest_face(vertices[item], faces, shape)
        voxel = transform(voxel_from_normalised(shape), vertices[item].cpu().double())
        inside = voxelize(voxel, faces, shape).to(sdf.device)
        sdf[item] = torch.where(inside, -distance, distance)
        face[item] = index
    return sdf, face


def _nearest_face(
    vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance of each voxel from a mesh and the closest face, (X, Y, Z) each."""
    frame = make_frame(vertices, faces)
    points = grid_points(shape, vertices)
    parts = [nearest(frame, part) for part in points.split(max(PAIRS // len(faces), 1))]
    distances, indices = zip(*parts, strict=True)
    return torch.cat(distances).view(*shape), torch.cat(indices).view(*shape)


def nearest(frame: Frame, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (N,) and indices (N,) of the faces nearest to points (N, 3)."""
    _, _, (x, y, z) = closest(frame, points[:, None])
    squared, index = (x * x + y * y + z * z).min(1)
    return squared.sqrt(), index


def mesh2sdf_backward(
    grad: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor, sdf: torch.Tensor, face: torch.Tensor
) -> torch.Tensor:
    """d sdf / d v_k = -beta_k n: beta the closest point's barycentric weights, n = (p - q) / sdf or the face normal."""
    check_faces(faces, vertices.shape[1])
    grad_vertices = torch.zeros_like(vertices)
    for item in range(len(vertices)):
        active = grad[item].flatten().nonzero()[:, 0]
        closest_face = face[item].flatten()[active].long()
        frame = make_frame(vertices[item], faces).take(closest_face)
        s, t, residual = closest(frame, grid_points(sdf.shape[1:], vertices)[active])
        distance = sdf[item].flatten()[active, None]
        # On the surface itself rounding would decide the direction of the residual.
        rounding = 8 * torch.finfo(sdf.dtype).eps * extent(vertices[item], faces)
        on_surface = distance.abs() <= rounding
        outward = (torch.stack(residual, -1)[..., None] * frame.axes).sum(-2) * distance.sign()
        outward = F.normalize(outward, dim=-1, eps=0)
        normal = torch.where(on_surface, frame.axes[:, 2], outward)
        pull = -grad[item].flatten()[active, None] * normal  # (N, 3)
        for weight, corner in zip((1 - s - t, s, t), frame.corners.unbind(-1), strict=True):
            grad_vertices[item].index_add_(0, corner, weight[:, None] * pull)
    return grad_vertices


def voxelize(vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """See `implicitmeshnet.ops.voxelize`. On the CPU whatever the device, as Metal has no float64."""
    check_faces(faces, len(vertices))
    device = vertices.device
    faces = faces.cpu()
    exact = vertices.detach().cpu().double()
    largest = float(exact[faces.flatten(), :2].abs().max())
    bits = fraction_bits(max(*shape[:2], largest))
    fixed = (exact * 2**bits).clamp(-(2**29), 2**29).round().long()
    corners = fixed[faces]  # (F, 3, 3)
    depth = exact[faces][..., 2]  # (F, 3)
    area = _edge(corners[:, 0], corners[:, 1], *corners[:, 2, :2].unbind(-1))
    low, columns = _columns(corners, shape, bits)
    counts = columns.prod(1) * (area != 0)
    ends = counts.cumsum(0)
    changes = torch.zeros(*shape[:2], shape[2] + 1, dtype=torch.int32).flatten()
    for start in range(0, int(ends[-1]), PAIRS):
        # Pairs of a face and a column: the face that each is of, and its rank among the face's columns.
        pair = torch.arange(start, min(start + PAIRS, int(ends[-1])))
        face = torch.searchsorted(ends, pair, right=True)
        rank = pair - (ends - counts)[face]
        x = low[face, 0] + rank // columns[face, 1]
        y = low[face, 1] + rank % columns[face, 1]
        covered, z = _crossing(corners[face], depth[face], area[face], x << bits, y << bits)
        voxel = z.ceil().clamp(0, shape[2]).long()  # the first at or above the crossing
        index = (x * shape[1] + y) * (shape[2] + 1) + voxel
        change = -area[face].sign().int()
        changes.index_add_(0, index[covered], change[covered])
    winding = changes.view(*shape[:2], -1).cumsum(-1, dtype=torch.int32)[..., :-1]
    return (winding != 0).to(device)


def _columns(corners: torch.Tensor, shape: Sequence[int], bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first voxel (F, 3) of each face's bounding box, and the box's columns (F, 2) along X and Y."""
    last = torch.tensor(shape) - 1
    low = (-(-corners.amin(1) >> bits)).clamp(min=0)
    high = (corners.amax(1) >> bits).minimum(last)
    return low, (high - low + 1).clamp(min=0)[:, :2]


def _edge(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Twice the signed area of (a, b, (x, y)) in the XY projection, exact."""
    return (b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (b[:, 1] - a[:, 1]) * (x - a[:, 0])


def _crossing(
    corners: torch.Tensor, depth: torch.Tensor, area: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the columns at (x + e, y + e^2), e infinitesimal, cross the faces, and at which Z."""
    covered = torch.ones_like(area, dtype=torch.bool)
    weights = []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        a, b = corners[:, i], corners[:, j]
        value = _edge(a, b, x, y)
        dx, dy = (b - a)[:, :2].unbind(-1)
        # A column on the edge itself: the side on which its infinitesimal offset lies.
        on_edge = torch.where(dy != 0, -dy, dx)
        side = torch.where(value != 0, value, on_edge)
        covered &= (side > 0) == (area > 0)
        weights.append(value.double())
    rise = weights[2] * (depth[:, 1] - depth[:, 0]) + weights[0] * (depth[:, 2] - depth[:, 0])
    return covered, depth[:, 0] + rise / area.double()


def trilinear(vertices: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The eight voxels around each vertex (B, V, 3): flat indices (B, V, 8), weights, and their slopes (B, V, 8, 3).

    Slopes are derivatives by the normalised position; 0 along an axis where the position is clamped.
    """
    last = vertices.new_tensor(shape) - 1
    position = ((vertices + 1) * (last / 2)).clamp(torch.zeros_like(last), last)
    low = position.floor().minimum((last - 1).clamp(min=0))
    fraction = torch.stack([1 - (position - low), position - low], -1)  # (B, V, 3, 2)
    slope = (last / 2) * (vertices.abs() <= 1)
    slope = torch.stack([-slope, slope], -1)
    low = low.nan_to_num(0).long()  # NaN reads voxel 0, and stays NaN in its weights
    high = (low + 1).minimum(last.long())
    bounds = torch.stack([low, high], -1)  # (B, V, 3, 2)
    # Lower or upper along each axis, (B, V, 8) each, for all eight corners.
    i, j, k = _at_corners(bounds)
    x, y, z = _at_corners(fraction)
    slope_x, slope_y, slope_z = _at_corners(slope)
    flat = (i * shape[1] + j) * shape[2] + k
    slopes = torch.stack([slope_x * y * z, x * slope_y * z, x * y * slope_z], -1)
    return flat, x * y * z, slopes


def _at_corners(pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is given for the lower and the upper end of each axis, (B, V, 3, 2), at eight corners: three (B, V, 8)."""
    ends = torch.arange(2, device=pair.device)
    corner = torch.cartesian_prod(ends, ends, ends).T  # (3, 8)
    return pair.gather(-1, corner.expand(*pair.shape[:2], 3, 8)).unbind(2)


def memory_format(channels_last: bool) -> torch.memory_format:
    """What torch calls the layout of a volume."""
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def splat(
    vertices: torch.Tensor,
    features: torch.Tensor,
    shape: Sequence[int],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See `implicitmeshnet.ops.splat_trilinear`; dtype is the volume's, features' own if None."""
    index, weight, _ = trilinear(vertices, shape)
    channels = features.shape[-1]
    volume = weight.new_zeros(len(vertices), math.prod(shape), channels)
    for item in range(len(vertices)):
        parts = weight[item, ..., None] * features[item, :, None].to(weight.dtype)  # (V, 8, C)
        volume[item].index_add_(0, index[item].flatten(), parts.flatten(0, 1))
    volume = volume.view(len(vertices), *shape, channels).permute(0, 4, 1, 2, 3)
    layout = memory_format(channels_last)
    return volume.to(dtype or features.dtype).contiguous(memory_format=layout)


def splat_backward(
    grad: torch.Tensor, vertices: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by vertices and features of sum(splat(vertices, features) * grad)."""
    gathered = gather([grad], vertices).to(features.dtype)
    positions = position_gradient([grad], vertices, features.to(vertices.dtype))
    return positions, gathered


def _corner_values(volume: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The values (B, V, 8, C) of a volume (B, C, X, Y, Z) at flat indices (B, V, 8)."""
    batch = torch.arange(len(volume), device=volume.device)[:, None, None]
    shape = volume.shape[2:]
    x = index // (shape[1] * shape[2])
    y = index // shape[2] % shape[1]
    z = index % shape[2]
    return volume.permute(0, 2, 3, 4, 1)[batch, x, y, z]


def gather(volumes: Sequence[torch.Tensor], vertices: torch.Tensor) -> torch.Tensor:
    """See `implicitmeshnet.ops.sample_trilinear`, of a list."""
    parts = []
    for volume in volumes:
        index, weight, _ = trilinear(vertices, volume.shape[2:])
        values = _corner_values(volume, index).to(weight.dtype)
        parts.append((values * weight[..., None]).sum(2))
    return torch.cat(parts, -1)


def position_gradient(volumes: Sequence[torch.Tensor], vertices: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The gradient (B, V, 3) of sum(gather(volumes, vertices) * features) by the vertices; features (B, V, C)."""
    total = torch.zeros_like(vertices)
    channels = [volume.shape[1] for volume in volumes]
    for volume, part in zip(volumes, features.split(channels, -1), strict=True):
        index, _, slope = trilinear(vertices, volume.shape[2:])
        values = _corner_values(volume, index).to(slope.dtype)
        products = (values * part[:, :, None]).sum(-1)  # (B, V, 8)
        total += (products[..., None] * slope).sum(2)
    return total


def neighbour_sum(features: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool) -> torch.Tensor:
    """See `implicitmeshnet.ops.neighbour_sum`."""
    rest, around = features.chunk(2, -1) if own else (0, features)
    rows = around.reshape(-1, around.shape[-1])
    # One embedding bag for each vertex of each copy of the graph, whose rows follow each other.
    copies = len(rows) // max(len(index), 1)
    first = torch.arange(copies, device=index.device)[:, None, None] * len(index)
    bags = (index + first).view(-1, index.shape[1])  # (copies * V, D)
    weights = weight.to(rows.dtype).repeat(copies, 1)
    sums = F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights)
    return rest + sums.view(around.shape)


def neighbour_sum_backward(grad: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool) -> torch.Tensor:
    """The gradient by the features of sum(neighbour_sum(features) * grad), the operator being symmetric."""
    around = neighbour_sum(grad, index, weight, False)
    return torch.cat([grad, around], -1) if own else around


def layer_norm_leaky_relu(features: torch.Tensor, slope: float) -> torch.Tensor:
    """See `implicitmeshnet.ops.layer_norm_leaky_relu`."""
    normed = F.layer_norm(features, features.shape[-1:])
    return F.leaky_relu(normed, slope)


def layer_norm_leaky_relu_backward(grad: torch.Tensor, features: torch.Tensor, slope: float) -> torch.Tensor:
    """The gradient by the features of sum(layer_norm_leaky_relu(features) * grad)."""
    normed = F.layer_norm(features, features.shape[-1:])
    scale = (features.var(-1, correction=0, keepdim=True) + EPSILON).rsqrt()
    grad = torch.where(normed > 0, grad, slope * grad)
    mean = grad.mean(-1, keepdim=True)
    product = (grad * normed).mean(-1, keepdim=True)
    return scale * (grad - mean - normed * product)


def instance_norm_leaky_relu(
    volume: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    multiplier: torch.Tensor | None,
    slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `implicitmeshnet.ops.instance_norm_leaky_relu`; and the mean and 1 / deviation (B, C) of each channel.

    By the batch norm kernel, one item of the batch after the other: unlike torch's own instance norm, it keeps the
    memory format channels_last_3d.
    """
    result = torch.empty_like(volume, memory_format=torch.channels_last_3d)
    mean = volume.new_zeros(volume.shape[:2], dtype=weight.dtype)
    scale = torch.zeros_like(mean)
    for item in range(len(volume) if volume.numel() else 0):
        own = slice(item, item + 1)
        normed, mean[item], scale[item] = torch.native_batch_norm(
            volume[own], weight, bias, None, None, True, 0.0, EPSILON
        )
        result[own] = normed
    if residual is not None:
        result += residual
    F.leaky_relu_(result, slope)
    if multiplier is not None:
        result *= multiplier[..., None, None, None]
    return result, mean, scale


def instance_norm_leaky_relu_backward(
    grad: torch.Tensor,
    volume: torch.Tensor,
    result: torch.Tensor,
    weight: torch.Tensor,
    multiplier: torch.Tensor | None,
    mean: torch.Tensor,
    scale: torch.Tensor,
    slope: float,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients by volume, weight and bias, and by the residual if `summed`, of sum(result * grad)."""
    grad = torch.where(result > 0, grad, slope * grad)
    if multiplier is not None:
        grad = grad * multiplier[..., None, None, None].to(grad.dtype)
    grad = grad.contiguous(memory_format=torch.channels_last_3d)
    by_volume = torch.empty_like(volume, memory_format=torch.channels_last_3d)
    by_weight = torch.zeros_like(weight)
    by_bias = torch.zeros_like(weight)
    for item in range(len(volume) if volume.numel() else 0):
        own = slice(item, item + 1)
        found = torch.ops.aten.native_batch_norm_backward(
            grad[own], volume[own], weight, None, None, mean[item], scale[item], True, EPSILON, [True] * 3
        )
        by_volume[own] = found[0]
        by_weight += found[1]
        by_bias += found[2]
    return by_volume, by_weight, by_bias, grad if summed else grad.new_empty(0)
