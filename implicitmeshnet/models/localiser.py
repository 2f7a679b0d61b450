"""The coarse pass over a whole volume that finds the structures, and so the region for the fine network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.ndimage import gaussian_filter, maximum_filter
from skimage.segmentation import watershed
from torch import nn

from implicitmeshnet.models.unet import UNet

SUMMIT_WIDTH = 3.0  # standard deviation of the smoothing before maxima are sought, in voxels of the overview
SUMMIT_DISTANCE = 4  # voxels around a maximum, along each axis, within which there is no higher one
PART_SHARE = 0.05  # of the strongest basin's summed log-odds: what another part needs to count as a structure
RIVAL_SHARE = 0.25  # the same of what a basin needs to be taken for the structures instead of the strongest
CERTAIN = 0.9  # quantile of a basin's log-odds by which these are compared
BOTTLENECK_VOXELS = 3  # at least, along each axis, as for data.shape


class Found(NamedTuple):
    """What a coarse pass makes of an overview (X, Y, Z)."""

    structures: np.ndarray  # bool (X, Y, Z)
    rival: np.ndarray  # the same: the likeliest region that might have been taken for them instead; empty mostly


class CoarsePass(nn.Module):
    """What finds structures by its logits: overview (B, C, X, Y, Z) -> (B, 2, X, Y, Z) of background and structures."""

    @torch.inference_mode()
    def find(self, overview: torch.Tensor, room: np.ndarray) -> Found:
        """Where the structures are in an overview (C, X, Y, Z).

        What is found fits into `room` voxels along each axis (3,).
        """
        device = next(self.parameters()).device
        background, structures = self(overview[None].to(device))[0].cpu()
        return parts_that_belong((structures - background).numpy(), room)


class Localiser(CoarsePass):
    """The coarse pass of one network, a small UNet that takes overviews of any size."""

    def __init__(self, channels: Sequence[int], image_channels: int = 1):
        super().__init__()
        self.unet = UNet(channels, channels[:-1], 2, 0.0, image_channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        divisor = 2 ** (len(self.unet.encoder) - 1)
        shape = image.shape[2:]
        padding: list[int] = []  # before and after each axis, the last axis first, as F.pad wants it
        for size in reversed(shape):
            at_bottleneck = max(-(-size // divisor), BOTTLENECK_VOXELS)
            padding += [0, at_bottleneck * divisor - size]
        _, logits = self.unet(F.pad(image, padding, value=-1.0))
        return logits[:, :, : shape[0], : shape[1], : shape[2]]


def parts_that_belong(odds: np.ndarray, room: np.ndarray) -> Found:
    """Of the voxels with positive log-odds (X, Y, Z), those of the structures.

    These are the likeliest basin of all, and the strongest basin of each other connected part. Strong is a basin by
    the sum of its log-odds, which a large organ may have that is hardly like the structures. So, of those with
    RIVAL_SHARE of the strongest's, the likeliest is the one with the highest log-odds. A further basin is taken only if
    it has PART_SHARE of the log-odds of the strongest and if all that is taken then still fits into `room` voxels along
    each axis (3,), as the structures do in training.
    """
    basins, strengths = _basins(odds)
    if not len(strengths):
        return Found(odds > 0, odds > 0)
    connected, _ = ndimage.label(odds > 0)
    found = np.zeros(odds.shape, dtype=bool)
    parts: set[int] = set()  # connected parts that have given their strongest basin; their others are cut off
    rivals = np.flatnonzero(strengths >= RIVAL_SHARE * strengths.max())
    certainties = np.array([np.quantile(odds[basins == index + 1], CERTAIN) for index in rivals])
    rivals = rivals[np.argsort(-certainties, kind="stable")]
    for index in [rivals[0], *np.argsort(-strengths, kind="stable")]:
        if strengths[index] < PART_SHARE * strengths.max():
            break
        mask = basins == index + 1
        part = int(connected[mask][0])
        if part not in parts and (not parts or _fits(found | mask, room)):
            found |= mask
            parts.add(part)
    left_out = [basins == index + 1 for index in rivals if not found[basins == index + 1].any()]
    return Found(found, left_out[0] if left_out else np.zeros_like(found))


def _basins(odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The basins of the voxels with positive log-odds, int (X, Y, Z) from 1 on, and the sum of each one's log-odds.

    They are the watershed basins of the smoothed log-odds: another organ of like density that touches the structures,
    as the liver may touch the heart, has a maximum of its own and is cut off at the saddle between the two.
    """
    mask = odds > 0
    smooth = np.where(mask, gaussian_filter(odds, SUMMIT_WIDTH), -np.inf)
    summits = mask & (smooth == maximum_filter(smooth, 2 * SUMMIT_DISTANCE + 1))
    markers, count = ndimage.label(summits)
    if count == 0:
        return markers, np.zeros(0)
    basins = watershed(-smooth, markers, mask=mask)
    strengths = ndimage.sum(odds, basins, range(1, count + 1))
    return basins, np.atleast_1d(strengths)


def _fits(mask: np.ndarray, room: np.ndarray) -> bool:
    """Whether the voxels of a mask, which is not empty, span at most `room` voxels (3,) along each axis."""
    indices = np.argwhere(mask)
    span = indices.max(0) - indices.min(0)
    return bool((span < room).all())
