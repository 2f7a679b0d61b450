"""The coarse pass over a whole volume that finds the structures, and so the region for the fine network."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.ndimage import gaussian_filter, maximum_filter
from skimage.segmentation import watershed
from torch import nn

from implicitmeshnet.coordinates import transform
from implicitmeshnet.io import InputError
from implicitmeshnet.unet import UNet
from implicitmeshnet.volume import Grid, Volume, network_grid, resample_image, resample_labels

MAX_VOXELS = 2**24  # of an overview: a body of 2 m at 4 mm
SUMMIT_WIDTH = 3.0  # standard deviation of the smoothing in which summits are sought, voxels of the overview
SUMMIT_DISTANCE = 4  # voxels from a summit, along each axis, within which there is no other


@dataclass(frozen=True, eq=False)
class Overview:
    """A whole volume at a coarse spacing."""

    image: torch.Tensor  # (X, Y, Z) in [-1, 1]
    label: torch.Tensor | None  # the same shape, uint8: 1 where any structure is
    grid: Grid


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


def overview_of(image: Volume, labels: Volume | None, spacing_mm: float, values: list[int]) -> Overview:
    """The overview of a canonical volume of normalised intensity and of its label map, where there is one.

    At least three voxels along each axis, of which the middle one then lies in the volume however thin it is. Raises
    InputError where the overview would have more than MAX_VOXELS.
    """
    shape = [max(3, int(np.ceil(side_mm / spacing_mm))) for side_mm in image.data.shape * image.grid.spacing_mm]
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(f"data.overview_spacing_mm: wanted an overview of at most {MAX_VOXELS} voxels, found"
                         f" {tuple(shape)} for {spacing_mm:g} mm")
    grid = network_grid(image.grid, shape, spacing_mm)
    label = None if labels is None else torch.from_numpy(resample_labels(labels, grid, [values]))
    return Overview(torch.from_numpy(resample_image(image, grid, background=-1.0)), label, grid)


def centre_mm(mask, grid: Grid) -> np.ndarray | None:
    """World position (3,) of the centroid of a mask's largest connected part; None where the mask is empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return None
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return transform(grid.affine, np.argwhere(largest).mean(0))


def strongest_basin(odds) -> np.ndarray:
    """Of the voxels with positive log-odds (X, Y, Z), those of the basin with the greatest sum: bool (X, Y, Z).

    Watershed of the smoothed log-odds: another organ of like density that touches the structures, as the liver may
    touch the heart, has a summit of its own and is cut off at the saddle between the two.
    """
    mask = odds > 0
    smooth = np.where(mask, gaussian_filter(odds, SUMMIT_WIDTH), -np.inf)
    summits = mask & (smooth == maximum_filter(smooth, 2 * SUMMIT_DISTANCE + 1))
    markers, count = ndimage.label(summits)
    if count == 0:
        return mask
    basins = watershed(-smooth, markers, mask=mask)
    return basins == 1 + np.argmax(ndimage.sum(odds, basins, range(1, count + 1)))


@torch.inference_mode()
def locate(localiser: Localiser, overview: Overview, device) -> np.ndarray | None:
    """World position (3,) of the structures that the coarse pass finds, None where it finds none."""
    logits = localiser(overview.image[None, None].to(device))[0].cpu()
    return centre_mm(strongest_basin((logits[1] - logits[0]).numpy()), overview.grid)
