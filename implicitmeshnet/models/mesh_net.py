"""ImplicitMeshNet: a UNet encoder whose features pull template spheres onto the anatomy in stages."""

from dataclasses import dataclass

import torch
from torch import nn

from implicitmeshnet.config import Config, NetworkConfig
from implicitmeshnet.mesh import icosphere, neighbours
from implicitmeshnet.models.graph import GraphDecoderStage
from implicitmeshnet.models.localiser import Localiser
from implicitmeshnet.models.unet import UNet
from implicitmeshnet.ops import sample_trilinear
from implicitmeshnet.structures import Structures

CENTRED_RADIUS = 0.5  # of the paper's template, normalised units


@dataclass(frozen=True)
class Prediction:
    stages: list[torch.Tensor]  # vertices after each stage, (B, S, V, 3) normalised
    segmentation: torch.Tensor  # logits (B, S + 1, X, Y, Z), background first

    @property
    def vertices(self):
        return self.stages[-1]


class GraphDecoder(nn.Module):
    """Deforms template spheres by image features: pyramid -> vertices per stage, list of (B, S, V, 3) normalised.

    `template` (S, V, 3) are the starting vertices, `faces` (F, 3) is shared by all structures. Each stage reads
    its levels of the pyramid at the vertices, beside the vertices themselves and the previous stage's hidden features.
    """

    def __init__(self, template, faces, level_channels: dict[str, int], config: NetworkConfig):
        super().__init__()
        self.register_buffer("template", template, persistent=False)
        self.register_buffer("faces", faces, persistent=False)
        self.stage_levels = config.stage_levels
        around, carried, stages = neighbours(faces, template.shape[1]), 0, []
        for levels, width in zip(config.stage_levels, config.stage_channels, strict=True):
            in_channels = sum(level_channels[level] for level in levels) + 3 + carried
            stages.append(GraphDecoderStage(len(template), in_channels, width, config.displacement_factor, around))
            carried = width
        self.stages = nn.ModuleList(stages)

    def forward(self, pyramid):
        batch = next(iter(pyramid.values())).shape[0]
        structures, count, _ = self.template.shape
        vertices = self.template[:, None].expand(-1, batch, -1, -1)  # (S, B, V, 3)
        hidden, predictions = [], []
        for levels, stage in zip(self.stage_levels, self.stages, strict=True):
            points = vertices.transpose(0, 1).reshape(batch, structures * count, 3)
            read = sample_trilinear([pyramid[level] for level in levels], points)
            read = read.view(batch, structures, count, -1).transpose(0, 1)  # (S, B, V, C)
            features, displacement = stage(torch.cat([read, vertices, *hidden], -1))
            vertices, hidden = vertices + displacement, [features]
            predictions.append(vertices.transpose(0, 1))
        return predictions


class ImplicitMeshNet(nn.Module):
    """Image (B, 1, X, Y, Z) in [-1, 1] -> Prediction. Where the UNet runs in bfloat16, the mesh part stays float32.

    `localiser` is the coarse pass that says where such images are to be cut from a volume, or None.
    """

    def __init__(self, unet: UNet, decoder: GraphDecoder, localiser: Localiser | None = None):
        super().__init__()
        self.unet = unet
        self.decoder = decoder
        self.localiser = localiser

    def forward(self, image) -> Prediction:
        pyramid, segmentation = self.unet(image)
        with torch.autocast(image.device.type, enabled=False):
            return Prediction(self.decoder(pyramid), segmentation)


def build_network(config: Config) -> ImplicitMeshNet:
    """The network that a config describes; template centres and radii must be set where template is 'mean'."""
    network = config.network
    structures = Structures.of(config.data)
    unet = UNet(network.encoder_channels, network.decoder_channels, structures.class_count, network.dropout)
    sphere, faces = icosphere(network.template_subdivisions)
    if network.template == "mean":
        centres, radii = torch.tensor(network.template_centres), torch.tensor(network.template_radii)
        template = centres[:, None] + radii[:, None] * sphere  # (S, V, 3)
    else:
        template = (CENTRED_RADIUS * sphere).repeat(len(structures), 1, 1)
    level_channels = {f"e{level}": width for level, width in enumerate(network.encoder_channels)}
    level_channels |= {f"d{level}": width for level, width in enumerate(network.decoder_channels)}
    localiser = Localiser(network.localiser_channels) if config.data.region == "found" else None
    return ImplicitMeshNet(unet, GraphDecoder(template, faces, level_channels, network), localiser)
