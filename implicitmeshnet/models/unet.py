"""The image encoder: a residual 3-D UNet that yields a feature pyramid and a voxel segmentation."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class InstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d with weights, item by item through the batch norm kernel, which keeps channels_last_3d.

    torch's own converts each volume to channels first, and so costs a UNet on a CPU a third of its time.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, volume):
        return torch.cat(
            [
                F.batch_norm(item, None, None, self.weight, self.bias, training=True, eps=self.eps)
                for item in volume.split(1)
            ]
        )


def bfloat16_is_fast(device: str) -> bool:
    """Whether convolutions in bfloat16 beat float32 there: Ampere or newer, or a CPU with AVX-512 BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm and leaky ReLU beside a 1x1x1 skip; `stride` 2 halves the grid."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride, 1, bias=False),
            InstanceNorm3d(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Dropout3d(dropout),
            nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False),
            InstanceNorm3d(out_channels),
        )
        self.skip = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, volume):
        return self.activation(self.body(volume) + self.skip(volume))


class UNet(nn.Module):
    """Image (B, 1, X, Y, Z) -> pyramid {"e0": ..., "d0": ...} and segmentation logits (B, classes, X, Y, Z).

    Level i of the pyramid is 2^i times coarser than the image and has encoder_channels[i] or decoder_channels[i]
    channels; the deepest encoder level is the bottleneck. X, Y, Z must divide by 2^(levels - 1). Runs in bfloat16, the
    pyramid's type then, where that is fast; the logits are float32.
    """

    def __init__(self, encoder_channels, decoder_channels, classes: int, dropout: float):
        super().__init__()
        widths = [1, *encoder_channels]
        self.encoder = nn.ModuleList(
            ResidualBlock(before, after, 1 if level == 0 else 2, dropout)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        below = [*decoder_channels[1:], encoder_channels[-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(before, after, 2, 2) for before, after in zip(below, decoder_channels, strict=True)
        )
        self.decoder = nn.ModuleList(
            ResidualBlock(skip + width, width, 1, dropout)
            for skip, width in zip(encoder_channels, decoder_channels, strict=False)
        )
        self.head = nn.Conv3d(decoder_channels[0], classes, 1)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, image):
        device, image = image.device.type, image.to(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            pyramid, logits = self._run(image)
        return pyramid, logits.float()

    def _run(self, image):
        pyramid, volume = {}, image
        for level, block in enumerate(self.encoder):
            pyramid[f"e{level}"] = volume = block(volume)
        for level in reversed(range(len(self.decoder))):
            volume = torch.cat([pyramid[f"e{level}"], self.up[level](volume)], 1)
            pyramid[f"d{level}"] = volume = self.decoder[level](volume)
        return pyramid, self.head(volume)
