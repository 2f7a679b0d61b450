"""The coarse pass over a whole volume that finds the structures, and so the region for the fine network."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.ndimage import gaussian_filter, maximum_filter
from skimage.segmentation import watershed
from torch import nn

from implicitmeshnet.models.unet import UNet

SUMMIT_WIDTH = 3.0  # standard deviation of the smoothing in which summits are sought, voxels of the overview
SUMMIT_DISTANCE = 4  # voxels from a summit, along each axis, within which there is no other
PART_SHARE = 0.05  # of the strongest part's log-odds, that another part must have to belong to it


class Localiser(nn.Module):
    """A small UNet: overview (B, 1, X, Y, Z) of any size -> logits (B, 2, X, Y, Z) of background and structures."""

    def __init__(self, channels):
        super().__init__()
        self.unet = UNet(channels, channels[:-1], 2, 0.0)

    def forward(self, image):
        divisor = 2 ** (len(self.unet.encoder) - 1)
        shape = image.shape[2:]
        sizes = [max(-(-n // divisor), 3) * divisor for n in shape]  # three voxels at the bottleneck, see data.shape
        padding = [size for n, wanted in zip(reversed(shape), reversed(sizes), strict=True) for size in (0, wanted - n)]
        logits = self.unet(F.pad(image, padding, value=-1.0))[1]
        return logits[:, :, : shape[0], : shape[1], : shape[2]]

    @torch.inference_mode()
    def find(self, overview, room) -> np.ndarray:
        """Where the structures are in an overview (X, Y, Z), within so many voxels along each axis: bool (X, Y, Z)."""
        device = next(self.parameters()).device
        logits = self(overview[None, None].to(device))[0].cpu()
        return parts_that_belong((logits[1] - logits[0]).numpy(), room)


def parts_that_belong(odds, room) -> np.ndarray:
    """Of the voxels with positive log-odds (X, Y, Z), those of the structures, bool (X, Y, Z).

    The strongest basin of all; and of each other connected part its strongest basin, where that has PART_SHARE of the
    former's log-odds and all that is taken fits into `room` voxels along each axis, as the structures do in training.
    """
    basins, strengths = _basins(odds)
    if not len(strengths):
        return odds > 0
    connected, _ = ndimage.label(odds > 0)
    found, parts = np.zeros(odds.shape, dtype=bool), set()
    for basin in 1 + np.argsort(-strengths, kind="stable"):
        if strengths[basin - 1] < PART_SHARE * strengths.max():
            break
        mask = basins == basin
        part = connected[mask][0]
        if part not in parts and (not parts or _fits(found | mask, room)):
            found |= mask
            parts.add(part)  # others of it are cut off
    return found


def _basins(odds) -> tuple[np.ndarray, np.ndarray]:
    """The basins of the voxels with positive log-odds, int (X, Y, Z) from 1 on, and the sum of each one's log-odds.

    Watershed of the smoothed log-odds: another organ of like density that touches the structures, as the liver may
    touch the heart, has a summit of its own and is cut off at the saddle between the two.
    """
    mask = odds > 0
    smooth = np.where(mask, gaussian_filter(odds, SUMMIT_WIDTH), -np.inf)
    summits = mask & (smooth == maximum_filter(smooth, 2 * SUMMIT_DISTANCE + 1))
    markers, count = ndimage.label(summits)
    if count == 0:
        return markers, np.zeros(0)
    basins = watershed(-smooth, markers, mask=mask)
    return basins, np.atleast_1d(ndimage.sum(odds, basins, range(1, count + 1)))


def _fits(mask, room) -> bool:
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return all(line[-1] - line[0] < size for line, size in zip(lines, room, strict=True))
