"""The image encoder: a residual 3-D UNet that yields a feature pyramid and a voxel segmentation."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import convert_conv3d_weight_memory_format
from torch.utils.checkpoint import checkpoint

from implicitmeshnet.ops import instance_norm_leaky_relu

SLOPE = 0.01  # of leaky ReLU, for negative numbers
Triple = tuple[int, int, int]
"""A number for each axis."""
EVERY_VOXEL: Triple = (1, 1, 1)


class InstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d with weights, by `instance_norm_leaky_relu`, which takes on what follows a norm in a block.

    The result has the memory format channels_last_3d.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(
        self,
        volume: torch.Tensor,
        residual: torch.Tensor | None = None,
        multiplier: torch.Tensor | None = None,
        slope: float = 1.0,
    ) -> torch.Tensor:
        return instance_norm_leaky_relu(volume, self.weight, self.bias, residual, multiplier, slope)


@torch.compiler.assume_constant_result
def bfloat16_is_fast(device: str) -> bool:
    """Whether convolutions on a device ('cpu', 'cuda' or another) are faster in bfloat16 than in float32.

    They are on GPUs from Ampere on and on CPUs with AVX-512 BF16 or AMX.
    """
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


class ResidualBlock(nn.Module):
    """Two convolutions with instance norm and leaky ReLU, and a 1x1x1 skip connection around them.

    Dropout of whole channels follows the first activation. (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z),
    half as large along each axis whose `stride` is 2. `kernel` is the convolutions' size, 1 or 3 along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple, kernel: Triple, dropout: float):
        super().__init__()
        # Named as in a sequence that has the activation and the dropout at 2 and 3; snapshots have these names.
        self.body = nn.ModuleDict(
            {
                "0": _convolution(in_channels, out_channels, stride, kernel),
                "1": InstanceNorm3d(out_channels),
                "4": _convolution(out_channels, out_channels, EVERY_VOXEL, kernel),
                "5": InstanceNorm3d(out_channels),
            }
        )
        self.skip = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
        self.dropout = dropout

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        first, first_norm, second, second_norm = self.body.values()
        hidden = first(volume)
        hidden = first_norm(hidden, multiplier=self._multiplier(len(hidden)), slope=SLOPE)
        return second_norm(second(hidden), residual=self.skip(volume), slope=SLOPE)

    def _multiplier(self, batch: int) -> torch.Tensor | None:
        """What dropout multiplies each channel by, (B, C): 0 or 1 / (1 - dropout); None if it drops nothing."""
        if not self.training or self.dropout == 0:
            return None
        ones = self.skip.weight.new_ones(batch, self.skip.out_channels)
        return F.dropout(ones, self.dropout)


def _convolution(in_channels: int, out_channels: int, stride: Triple, kernel: Triple) -> nn.Conv3d:
    x, y, z = (size // 2 for size in kernel)
    return nn.Conv3d(in_channels, out_channels, kernel, stride, (x, y, z), bias=False)


def _per_axis(usual: int, level: int, flat_levels: Sequence[int]) -> Triple:
    """`usual` along each axis, but 1 along those in which a level is flat."""
    x, y, z = (1 if level < flat else usual for flat in flat_levels)
    return x, y, z


class UNet(nn.Module):
    """Image (B, C, X, Y, Z) -> pyramid {"e0": ..., "d0": ...} and segmentation logits (B, classes, X, Y, Z).

    Level i of the pyramid is 2^i times coarser than the image and has encoder_channels[i] or decoder_channels[i]
    channels; the deepest encoder level is the bottleneck. X, Y, Z must be multiples of 2^(levels - 1). Along an axis
    with n `flat_levels` it is 2^max(i - n, 0), and levels before n have convolutions of size 1 (as nnU-Net's plans for
    thick slices, Isensee et al., Nature Methods 2021). Where bfloat16 is fast, the network runs in it and the pyramid
    has that type; the logits are always float32.

    With `deep_supervision` every coarser level of the decoder has a head too, see `coarser_logits`.

    With `recompute` set, training keeps the pyramid alone for the backward pass and computes each level again there:
    the same gradients for less memory and more time.
    """

    recompute: bool = False

    def __init__(
        self,
        encoder_channels: Sequence[int],
        decoder_channels: Sequence[int],
        classes: int,
        dropout: float,
        image_channels: int = 1,
        deep_supervision: bool = False,
        flat_levels: Sequence[int] = (0, 0, 0),
    ):
        super().__init__()
        levels = range(len(encoder_channels))
        kernels = [_per_axis(3, level, flat_levels) for level in levels]
        strides = [_per_axis(2, level, flat_levels) for level in levels[:-1]]  # from each level to the next
        self.encoder = nn.ModuleList()
        widths = pairwise([image_channels, *encoder_channels])
        for (before, after), stride, kernel in zip(widths, [EVERY_VOXEL, *strides], kernels, strict=True):
            self.encoder.append(ResidualBlock(before, after, stride, kernel, dropout))

        # Each decoder level upsamples the one below it, the deepest one the bottleneck.
        below = [*decoder_channels[1:], encoder_channels[-1]]
        self.up = nn.ModuleList()
        for before, after, stride in zip(below, decoder_channels, strides, strict=True):
            self.up.append(nn.ConvTranspose3d(before, after, stride, stride))
        self.decoder = nn.ModuleList()
        for skip, width, kernel in zip(encoder_channels[:-1], decoder_channels, kernels[:-1], strict=True):
            self.decoder.append(ResidualBlock(skip + width, width, EVERY_VOXEL, kernel, dropout))
        self.head = nn.Conv3d(decoder_channels[0], classes, 1)
        supervised = decoder_channels[1:] if deep_supervision else []
        self.coarser_heads = nn.ModuleList([nn.Conv3d(width, classes, 1) for width in supervised])
        convert_conv3d_weight_memory_format(self, torch.channels_last_3d)

    def forward(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        device = image.device.type
        image = image.to(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            pyramid, logits = self._run(image)
        return pyramid, logits.float()

    def coarser_logits(self, pyramid: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The segmentation logits of d1, d2, ... with `deep_supervision`, else none: (B, classes, X / 2, ...), float32.

        A loss on them reaches the coarse levels directly (Lee et al., Deeply-Supervised Nets, AISTATS 2015).
        """
        return [head(pyramid[f"d{level}"].float()) for level, head in enumerate(self.coarser_heads, 1)]

    def _run(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pyramid = {}
        volume = image
        for level, block in enumerate(self.encoder):
            volume = self._recomputed(block, volume)
            pyramid[f"e{level}"] = volume
        for level in reversed(range(len(self.decoder))):
            volume = self._recomputed(partial(self._decode, level), volume, pyramid[f"e{level}"])
            pyramid[f"d{level}"] = volume
        return pyramid, self.head(volume)

    def _decode(self, level: int, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        upsampled = self.up[level](below)
        return self.decoder[level](torch.cat([skip, upsampled], 1))

    def _recomputed(self, function: Callable[..., torch.Tensor], *volumes: torch.Tensor) -> torch.Tensor:
        """function(*volumes); with `recompute`, what it makes on the way is made again in the backward pass."""
        if self.recompute and self.training:
            return checkpoint(function, *volumes, use_reentrant=False)
        return function(*volumes)
