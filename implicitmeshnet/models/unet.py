"""The image encoder: a residual 3-D UNet that yields a feature pyramid and a voxel segmentation."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import convert_conv3d_weight_memory_format


class InstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d with weights, computed by the batch norm kernel, one item of the batch after the other.

    Unlike torch's own instance norm, that kernel keeps the memory format channels_last_3d; converting each volume to
    channels first and back would cost a UNet on a CPU a third of its time.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._normalised(item) for item in volume.split(1)])

    def _normalised(self, item: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(item, None, None, self.weight, self.bias, training=True, eps=self.eps)


def bfloat16_is_fast(device: str) -> bool:
    """Whether convolutions on a device ('cpu', 'cuda' or another) are faster in bfloat16 than in float32.

    They are on GPUs from Ampere on and on CPUs with AVX-512 BF16 or AMX.
    """
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm and leaky ReLU, and a 1x1x1 skip connection around them.

    (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z), with `stride` 2 half as large along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution_and_norm(in_channels, out_channels, stride),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Dropout3d(dropout),
            *_convolution_and_norm(out_channels, out_channels, 1),
        )
        self.skip = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.activation(self.body(volume) + self.skip(volume))


def _convolution_and_norm(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [convolution, InstanceNorm3d(out_channels)]


class UNet(nn.Module):
    """Image (B, C, X, Y, Z) -> pyramid {"e0": ..., "d0": ...} and segmentation logits (B, classes, X, Y, Z).

    Level i of the pyramid is 2^i times coarser than the image and has encoder_channels[i] or decoder_channels[i]
    channels; the deepest encoder level is the bottleneck. X, Y, Z must be multiples of 2^(levels - 1). Where bfloat16
    is fast, the network runs in it and the pyramid has that type; the logits are always float32.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        decoder_channels: Sequence[int],
        classes: int,
        dropout: float,
        image_channels: int = 1,
    ):
        super().__init__()
        self.encoder = nn.ModuleList([ResidualBlock(image_channels, encoder_channels[0], 1, dropout)])
        for before, after in pairwise(encoder_channels):
            self.encoder.append(ResidualBlock(before, after, 2, dropout))

        # Each decoder level upsamples the one below it, the deepest one the bottleneck.
        below = [*decoder_channels[1:], encoder_channels[-1]]
        self.up = nn.ModuleList()
        for before, after in zip(below, decoder_channels, strict=True):
            self.up.append(nn.ConvTranspose3d(before, after, 2, 2))
        self.decoder = nn.ModuleList()
        for skip, width in zip(encoder_channels[:-1], decoder_channels, strict=True):
            self.decoder.append(ResidualBlock(skip + width, width, 1, dropout))
        self.head = nn.Conv3d(decoder_channels[0], classes, 1)
        convert_conv3d_weight_memory_format(self, torch.channels_last_3d)

    def forward(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        device = image.device.type
        image = image.to(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            pyramid, logits = self._run(image)
        return pyramid, logits.float()

    def _run(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pyramid = {}
        volume = image
        for level, block in enumerate(self.encoder):
            volume = block(volume)
            pyramid[f"e{level}"] = volume
        for level in reversed(range(len(self.decoder))):
            upsampled = self.up[level](volume)
            volume = self.decoder[level](torch.cat([pyramid[f"e{level}"], upsampled], 1))
            pyramid[f"d{level}"] = volume
        return pyramid, self.head(volume)
