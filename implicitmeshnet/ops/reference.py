"""Each op in plain PyTorch: its definition, and what runs where nothing is compiled for the device."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from implicitmeshnet.coordinates import transform, voxel_from_normalised

LIMIT = 1e9
"""A mesh with a vertex beyond, or not finite, has no distance."""
PAIRS = 2**21
"""Point-face or column-face pairs held in memory at a time."""


class Frame(NamedTuple):
    """Triangles in their own planes: corners (0, 0), (length, 0) on the longest edge, and (cx, cy) with cy >= 0."""

    origin: torch.Tensor  # (F, 3)
    axes: torch.Tensor  # (F, 3, 3), rows: along the longest edge, across it, and the face normal
    length: torch.Tensor  # (F,)
    cx: torch.Tensor  # (F,)
    cy: torch.Tensor  # (F,)
    corners: torch.Tensor  # (F, 3) int64, the vertices that the three corners are

    def take(self, face):
        return Frame(*(field[face] for field in self))


def make_frame(vertices, faces) -> Frame:
    """The frames of faces (F, 3) over vertices (V, 3). Degenerate faces get cy = 0 or length = 0 and any axes."""
    corners = vertices[faces]  # (F, 3, 3)
    longest = (corners.roll(-1, 1) - corners).square().sum(-1).argmax(1)
    order = (longest[:, None] + torch.arange(3, device=faces.device)) % 3
    ordered = faces.gather(1, order)
    a, b, c = vertices[ordered].unbind(1)
    length = torch.linalg.vector_norm(b - a, dim=-1)
    x_axis = torch.where(length[:, None] > 0, (b - a) / length[:, None], a.new_tensor([1.0, 0.0, 0.0]))
    cx = ((c - a) * x_axis).sum(-1)
    across = c - a - cx[:, None] * x_axis
    cy = torch.linalg.vector_norm(across, dim=-1)
    thin = cy <= torch.finfo(a.dtype).eps * length
    across = torch.where(thin[:, None], torch.linalg.cross(_least_axis(x_axis), x_axis), across)
    across = across - (across * x_axis).sum(-1, keepdim=True) * x_axis
    y_axis = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    axes = torch.stack([x_axis, y_axis, torch.linalg.cross(x_axis, y_axis)], 1)
    return Frame(a, axes, length, cx, torch.where(thin, 0, cy), ordered)


def _least_axis(direction):
    """The coordinate axis that each direction (F, 3) is least along."""
    return torch.nn.functional.one_hot(direction.abs().argmin(-1), 3).to(direction.dtype)


def closest(frame: Frame, points):
    """The closest points of triangles: points (..., 3) and frames that broadcast -> s, t, residual.

    The closest point is a + s (b - a) + t (c - a); the residual from it to `points` is three components in the frame.
    """
    offset = (points - frame.origin).unbind(-1)
    x, y, z = (sum(offset[i] * frame.axes[..., row, i] for i in range(3)) for row in range(3))
    length, cx, cy = frame.length, frame.cx, frame.cy
    gx = cx - length
    s_ab = (x * _inverse(length)).clamp(0, 1)
    t_ac = ((x * cx + y * cy) * _inverse(cx * cx + cy * cy)).clamp(0, 1)
    t_bc = (((x - length) * gx + y * cy) * _inverse(gx * gx + cy * cy)).clamp(0, 1)
    s, t = s_ab, torch.zeros_like(s_ab)
    rx, ry = x - s * length, y
    for next_s, next_t in ((torch.zeros_like(t_ac), t_ac), (1 - t_bc, t_bc)):
        next_rx, next_ry = x - next_s * length - next_t * cx, y - next_t * cy
        nearer = next_rx * next_rx + next_ry * next_ry < rx * rx + ry * ry
        s, t = torch.where(nearer, next_s, s), torch.where(nearer, next_t, t)
        rx, ry = torch.where(nearer, next_rx, rx), torch.where(nearer, next_ry, ry)
    interior = (y > 0) & (cx * y < cy * x) & (gx * y > cy * (x - length))
    t_in = y * _inverse(cy)
    s_in = (x - t_in * cx) * _inverse(length)
    s, t = torch.where(interior, s_in, s), torch.where(interior, t_in, t)
    return s, t, (rx.masked_fill(interior, 0), ry.masked_fill(interior, 0), z)


def _inverse(x):
    """1 / x, 0 for lengths below any that a mesh in the unit cube means."""
    return torch.where(x > 1e-30, 1 / x, 0)


def grid_points(shape, like):
    """The normalised coordinates of all voxel centres, (X * Y * Z, 3)."""
    axes = [torch.arange(n, dtype=torch.float64) * 2 / (n - 1) - 1 for n in shape]
    return torch.cartesian_prod(*(axis.to(like.device, like.dtype) for axis in axes))


def check_faces(faces, vertex_count: int):
    """Raise ValueError where faces (F, 3) is empty or points outside the vertices."""
    if len(faces) == 0:
        raise ValueError("faces: wanted at least one face, found none")
    low, high = (int(bound) for bound in faces.aminmax())
    if low < 0 or high >= vertex_count:
        found = low if low < 0 else high
        raise ValueError(f"faces: wanted vertex indices from 0 to {vertex_count - 1}, found {found}")


def extent(vertices, faces):
    """The largest coordinate of the vertices (..., V, 3) in use, at least 1: errors are in proportion to it."""
    return vertices[..., faces.flatten(), :].abs().amax((-2, -1)).clamp(min=1)


def fraction_bits(reach: float) -> int:
    """The sign snaps vertices to 2^-bits voxel, so that int64 edge functions are exact up to `reach` voxels."""
    return min(max(29 - math.frexp(reach)[1], 4), 28)


def mesh2sdf(vertices, faces, shape):
    """See `implicitmeshnet.ops.mesh2sdf`; every voxel is compared with every face."""
    check_faces(faces, vertices.shape[1])
    sdf = vertices.new_empty(len(vertices), *shape)
    face = torch.zeros(sdf.shape, dtype=torch.int32, device=sdf.device)
    for item in range(len(vertices)):
        if not (vertices[item].abs() <= LIMIT).all():
            sdf[item] = torch.nan
            continue
        frame = make_frame(vertices[item], faces)
        parts = [nearest(frame, part) for part in grid_points(shape, vertices).split(max(PAIRS // len(faces), 1))]
        distance, index = (torch.cat(column).view(*shape) for column in zip(*parts, strict=True))
        voxel = transform(voxel_from_normalised(shape), vertices[item].cpu().double())
        inside = voxelize(voxel, faces, shape).to(sdf.device)
        sdf[item], face[item] = torch.where(inside, -distance, distance), index
    return sdf, face


def nearest(frame, points):
    """Distances (N,) and indices (N,) of the faces nearest to points (N, 3)."""
    _, _, residual = closest(frame, points[:, None])
    squared, index = sum(r * r for r in residual).min(1)
    return squared.sqrt(), index


def mesh2sdf_backward(grad, vertices, faces, sdf, face):
    """d sdf / d v_k = -beta_k n: beta the closest point's barycentric weights, n = (p - q) / sdf or the face normal."""
    check_faces(faces, vertices.shape[1])
    grad_vertices = torch.zeros_like(vertices)
    for item in range(len(vertices)):
        active = (grad[item] != 0).flatten().nonzero()[:, 0]
        frame = make_frame(vertices[item], faces).take(face[item].flatten()[active].long())
        s, t, residual = closest(frame, grid_points(sdf.shape[1:], vertices)[active])
        distance = sdf[item].flatten()[active, None]
        on_surface = distance.abs() <= 8 * torch.finfo(sdf.dtype).eps * extent(vertices[item], faces)
        normal = (torch.stack(residual, -1)[..., None] * frame.axes).sum(-2) * distance.sign()
        normal = torch.where(on_surface, frame.axes[:, 2], torch.nn.functional.normalize(normal, dim=-1, eps=0))
        pull = -grad[item].flatten()[active, None] * normal  # (N, 3)
        for weight, corner in zip((1 - s - t, s, t), frame.corners.unbind(-1), strict=True):
            grad_vertices[item].index_add_(0, corner, weight[:, None] * pull)
    return grad_vertices


def voxelize(vertices, faces, shape):
    """See `implicitmeshnet.ops.voxelize`. On the CPU whatever the device, as Metal has no float64."""
    check_faces(faces, len(vertices))
    device, faces = vertices.device, faces.cpu()
    exact = vertices.detach().cpu().double()
    bits = fraction_bits(max(*shape[:2], float(exact[faces.flatten(), :2].abs().max())))
    fixed = (exact * 2**bits).clamp(-(2**29), 2**29).round().long()
    corners, depth = fixed[faces], exact[faces][..., 2]  # (F, 3, 3) and (F, 3)
    area = _edge(corners[:, 0], corners[:, 1], *corners[:, 2, :2].unbind(-1))
    low = (-(-corners.amin(1) >> bits)).clamp(min=0)
    high = (corners.amax(1) >> bits).minimum(torch.tensor(shape) - 1)
    columns = (high - low + 1).clamp(min=0)[:, :2]  # of each face's bounding box
    counts = columns.prod(1) * (area != 0)
    ends = counts.cumsum(0)
    delta = torch.zeros(*shape[:2], shape[2] + 1, dtype=torch.int32).flatten()
    for start in range(0, int(ends[-1]), PAIRS):
        pair = torch.arange(start, min(start + PAIRS, int(ends[-1])))
        face = torch.searchsorted(ends, pair, right=True)
        rank = pair - (ends - counts)[face]
        x = low[face, 0] + rank // columns[face, 1]
        y = low[face, 1] + rank % columns[face, 1]
        covered, z = _crossing(corners[face], depth[face], area[face], x << bits, y << bits)
        index = (x * shape[1] + y) * (shape[2] + 1) + z.ceil().clamp(0, shape[2]).long()
        delta.index_add_(0, index[covered], -area[face].sign()[covered].int())
    winding = delta.view(*shape[:2], -1).cumsum(-1, dtype=torch.int32)[..., :-1]
    return (winding != 0).to(device)


def _edge(a, b, x, y):
    """Twice the signed area of (a, b, (x, y)) in the XY projection, exact."""
    return (b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (b[:, 1] - a[:, 1]) * (x - a[:, 0])


def _crossing(corners, depth, area, x, y):
    """Whether the columns at (x + e, y + e^2), e infinitesimal, cross the faces, and at which Z."""
    covered, weights = torch.ones_like(area, dtype=torch.bool), []
    for a, b in ((corners[:, i], corners[:, j]) for i, j in ((0, 1), (1, 2), (2, 0))):
        value, dx, dy = _edge(a, b, x, y), b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
        side = torch.where(value != 0, value, torch.where(dy != 0, -dy, dx))
        covered &= (side > 0) == (area > 0)
        weights.append(value.double())
    rise = weights[2] * (depth[:, 1] - depth[:, 0]) + weights[0] * (depth[:, 2] - depth[:, 0])
    return covered, depth[:, 0] + rise / area.double()


def trilinear(vertices, shape):
    """The eight voxels around each vertex (B, V, 3): flat indices (B, V, 8), weights, and their slopes (B, V, 8, 3).

    Slopes are derivatives by the normalised position; 0 along an axis where the position is clamped.
    """
    last = vertices.new_tensor(shape) - 1
    position = ((vertices + 1) * (last / 2)).clamp(torch.zeros_like(last), last)
    low = position.floor().minimum((last - 1).clamp(min=0))
    fraction = torch.stack([1 - (position - low), position - low], -1)  # (B, V, 3, 2)
    slope = (last / 2) * (vertices.abs() <= 1)
    slope = torch.stack([-slope, slope], -1)
    low = low.nan_to_num(0).long()
    bounds = torch.stack([low, (low + 1).minimum(last.long())], -1)  # (B, V, 3, 2)
    corner = torch.cartesian_prod(*[torch.arange(2, device=vertices.device)] * 3).T  # (3, 8)
    index, fraction, slope = (t.gather(-1, corner.expand(*t.shape[:2], 3, 8)) for t in (bounds, fraction, slope))
    flat = (index[:, :, 0] * shape[1] + index[:, :, 1]) * shape[2] + index[:, :, 2]  # (B, V, 8)
    x, y, z = fraction.unbind(2)
    slopes = torch.stack([slope[:, :, 0] * y * z, x * slope[:, :, 1] * z, x * y * slope[:, :, 2]], -1)
    return flat, x * y * z, slopes


def memory_format(channels_last: bool):
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def splat(vertices, features, shape, channels_last=False, dtype=None):
    """See `implicitmeshnet.ops.splat_trilinear`; dtype is the volume's, features' own if None."""
    index, weight, _ = trilinear(vertices, shape)
    volume = weight.new_zeros(len(vertices), *shape, features.shape[-1]).flatten(1, 3)  # (B, XYZ, C)
    for item in range(len(vertices)):
        parts = weight[item, ..., None] * features[item, :, None].to(weight.dtype)  # (V, 8, C)
        volume[item].index_add_(0, index[item].flatten(), parts.flatten(0, 1))
    volume = volume.view(len(vertices), *shape, features.shape[-1]).permute(0, 4, 1, 2, 3)
    return volume.to(dtype or features.dtype).contiguous(memory_format=memory_format(channels_last))


def splat_backward(grad, vertices, features):
    """The gradients by vertices and features of sum(splat(vertices, features) * grad)."""
    gathered = gather([grad], vertices).to(features.dtype)
    return position_gradient([grad], vertices, features.to(vertices.dtype)), gathered


def _corner_values(volume, index):
    """The values (B, V, 8, C) of a volume (B, C, X, Y, Z) at flat indices (B, V, 8)."""
    batch = torch.arange(len(volume), device=volume.device)[:, None, None]
    shape = volume.shape[2:]
    x, y, z = index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]
    return volume.permute(0, 2, 3, 4, 1)[batch, x, y, z]


def gather(volumes, vertices):
    """See `implicitmeshnet.ops.sample_trilinear`, of a list."""
    parts = []
    for volume in volumes:
        index, weight, _ = trilinear(vertices, volume.shape[2:])
        parts.append((_corner_values(volume, index).to(weight.dtype) * weight[..., None]).sum(2))
    return torch.cat(parts, -1)


def position_gradient(volumes, vertices, features):
    """The gradient (B, V, 3) of sum(gather(volumes, vertices) * features) by the vertices; features (B, V, C)."""
    total = torch.zeros_like(vertices)
    for volume, part in zip(volumes, features.split([volume.shape[1] for volume in volumes], -1), strict=True):
        index, _, slope = trilinear(vertices, volume.shape[2:])
        products = (_corner_values(volume, index).to(slope.dtype) * part[:, :, None]).sum(-1)  # (B, V, 8)
        total += (products[..., None] * slope).sum(2)
    return total


def neighbour_sum(features, index, weight, own):
    """See `implicitmeshnet.ops.neighbour_sum`."""
    rest, around = features.chunk(2, -1) if own else (0, features)
    rows = around.reshape(-1, around.shape[-1])
    copies = len(rows) // max(len(index), 1)
    first = torch.arange(copies, device=index.device)[:, None, None] * len(index)
    bags = (index + first).view(-1, index.shape[1])  # (copies * V, D)
    weights = weight.to(rows.dtype).repeat(copies, 1)
    return rest + F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights).view(around.shape)


def neighbour_sum_backward(grad, index, weight, own):
    """The gradient by the features of sum(neighbour_sum(features) * grad), the operator being symmetric."""
    around = neighbour_sum(grad, index, weight, False)
    return torch.cat([grad, around], -1) if own else around


def layer_norm_leaky_relu(features, slope):
    """See `implicitmeshnet.ops.layer_norm_leaky_relu`."""
    return F.leaky_relu(F.layer_norm(features, features.shape[-1:]), slope)


def layer_norm_leaky_relu_backward(grad, features, slope):
    """The gradient by the features of sum(layer_norm_leaky_relu(features) * grad)."""
    normed = F.layer_norm(features, features.shape[-1:])
    scale = (features.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    grad = torch.where(normed > 0, grad, slope * grad)
    return scale * (grad - grad.mean(-1, keepdim=True) - normed * (grad * normed).mean(-1, keepdim=True))
