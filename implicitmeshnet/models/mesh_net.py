"""ImplicitMeshNet: a UNet encoder whose features pull template spheres onto the anatomy in stages."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import Config, NetworkConfig
from implicitmeshnet.mesh import icosphere, mirror_images, neighbours, signed_volumes, vertex_normals
from implicitmeshnet.models.graph import GraphDecoderStage
from implicitmeshnet.models.localiser import Localiser
from implicitmeshnet.models.unet import UNet
from implicitmeshnet.ops import sample_trilinear
from implicitmeshnet.structures import Structures

FINEST = "d0"  # the level that profiles are read in: the UNet's last, at the image's own resolution
LEAST_VOXELS = 20  # of what is segmented of a structure, for a template to start there
CENTRED_RADIUS = 0.5  # of the paper's template, normalised units


@dataclass(frozen=True)
class Prediction:
    """What the network says of a batch of images."""

    stages: list[torch.Tensor]  # vertices after each stage, (B, S, V, 3) normalised; see ImplicitMeshNet
    segmentation: torch.Tensor  # logits (B, S + 1, X, Y, Z), background first
    coarser: list[torch.Tensor] = field(default_factory=list)  # such of coarser levels, for training alone

    @property
    def vertices(self) -> torch.Tensor:  # (B, S, V, 3) normalised, of the last stage
        return self.stages[-1]


class GraphDecoder(nn.Module):
    """Deforms template spheres by image features: pyramid -> vertices per stage, list of (B, S, V, 3) normalised.

    `template` (S, V, 3) holds the starting vertices; `faces` (F, 3) is shared by all structures. The input of each
    stage is its levels of the pyramid, sampled at the vertices, with the vertices themselves and the previous stage's
    hidden features. The last stage also reads the finest level along the vertices' normals, `profile_voxels` before and
    behind them, as active shape models search for a border (Cootes et al., Computer Vision and Image Understanding
    1995): at a vertex alone, nothing says on which side of it the border lies.
    """

    template: torch.Tensor  # (S, V, 3)
    faces: torch.Tensor  # (F, 3)
    mirrored: torch.Tensor  # (V,) see `mirror_images`

    def __init__(
        self, template: torch.Tensor, faces: torch.Tensor, level_channels: dict[str, int], config: NetworkConfig
    ):
        super().__init__()
        self.register_buffer("template", template, persistent=False)
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("mirrored", mirror_images(template[0]), persistent=False)
        self.stage_levels = config.stage_levels
        self.profile_voxels = config.profile_voxels
        around = neighbours(faces, template.shape[1])
        carried = 0  # channels of the hidden features of the stage before
        stages = []
        last = len(config.stage_levels) - 1
        for number, (levels, width) in enumerate(zip(config.stage_levels, config.stage_channels, strict=True)):
            sampled = sum(level_channels[level] for level in levels)
            in_channels = sampled + 3 + carried
            if number == last:
                in_channels += len(config.profile_voxels) * level_channels[FINEST]
            stages.append(GraphDecoderStage(len(template), in_channels, width, config.displacement_factor, around))
            carried = width
        self.stages = nn.ModuleList(stages)

    def forward(self, pyramid: dict[str, torch.Tensor], start: torch.Tensor | None = None) -> list[torch.Tensor]:
        """`start` (S, B, V, 3) takes the template's place."""
        batch = len(next(iter(pyramid.values())))
        vertices = self.template[:, None].expand(-1, batch, -1, -1) if start is None else start
        hidden: list[torch.Tensor] = []  # of the stage before; none before the first
        predictions: list[torch.Tensor] = []
        for levels, stage in zip(self.stage_levels, self.stages, strict=True):
            inputs = [_sampled([pyramid[level] for level in levels], vertices), vertices, *hidden]
            is_last = len(predictions) == len(self.stages) - 1
            if is_last and self.profile_voxels:
                inputs.append(self._profile(pyramid[FINEST], vertices))
            features, displacement = stage(torch.cat(inputs, -1))
            vertices = vertices + displacement
            hidden = [features]
            predictions.append(vertices.transpose(0, 1))
        return predictions

    def turned_outward(self, vertices: torch.Tensor) -> torch.Tensor:
        """Meshes (B, S, V, 3) that are inside out in the order of their mirror images: the same surfaces, (B, S, V, 3).

        The losses measure a mesh that is inside out as any other, so a training whose first steps turned one keeps it.
        """
        inside_out = signed_volumes(vertices, self.faces) < 0
        return torch.where(inside_out[..., None, None], vertices[..., self.mirrored, :], vertices)

    def _profile(self, volume: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
        """A volume (B, C, X, Y, Z) at the profile_voxels along the normals of vertices (S, B, V, 3).

        The result is (S, B, V, steps * C), one step's channels after the other's. The normals are those of the meshes
        in voxels; no gradient goes through them. All steps are read at once, so that the gradient of the volume is one.
        """
        sides = torch.tensor(volume.shape[2:], dtype=vertices.dtype, device=vertices.device)
        half = (sides - 1) / 2  # voxels per normalised unit
        normals = F.normalize(vertex_normals(vertices.detach() * half, self.faces), dim=-1) / half
        steps = torch.tensor(self.profile_voxels, dtype=vertices.dtype, device=vertices.device)
        points = vertices[..., None, :] + steps[:, None] * normals[..., None, :]  # (S, B, V, steps, 3)
        return _sampled([volume], points.flatten(2, 3)).unflatten(2, points.shape[2:4]).flatten(3)


def _sampled(volumes: list[torch.Tensor], vertices: torch.Tensor) -> torch.Tensor:
    """Volumes (B, C, ...) at vertices (S, B, V, 3) in normalised coordinates: (S, B, V, sum of C)."""
    structures, batch, count, _ = vertices.shape
    points = vertices.transpose(0, 1).reshape(batch, structures * count, 3)
    sampled = sample_trilinear(volumes, points)
    return sampled.view(batch, structures, count, -1).transpose(0, 1)


class SegmentedTemplate(nn.Module):
    """Where each case's vertices start: its segmentation's logits (B, S + 1, X, Y, Z) and its image -> (S, B, V, 3).

    They are the ellipsoids with the mean and covariance of the voxels segmented as what each structure's mesh holds,
    or with the variances alone, along the axes, where they are not to lie obliquely.
    Where these are fewer than LEAST_VOXELS the given `template` (S, V, 3) stays. No gradient goes through them.
    """

    template: torch.Tensor  # (S, V, 3)
    sphere: torch.Tensor  # (V, 3), of radius 1
    held: torch.Tensor  # (S, S + 1), 1 for the classes that each structure's mesh holds

    def __init__(self, template: torch.Tensor, sphere: torch.Tensor, structures: Structures, is_oblique: bool):
        super().__init__()
        classes = torch.arange(structures.class_count)
        held = [structures.held(classes, structure).float() for structure in range(len(structures))]
        self.register_buffer("template", template, persistent=False)
        self.register_buffer("sphere", sphere, persistent=False)
        self.register_buffer("held", torch.stack(held), persistent=False)
        self.is_oblique = is_oblique

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(logits.shape[1], device=logits.device)
        segmented = logits.argmax(1, keepdim=True) == classes.view(-1, 1, 1, 1)  # (B, S + 1, X, Y, Z)
        # Nobody may have taught the network what to say beyond the image, where its channels are -1.
        segmented &= (image > -1).any(1, keepdim=True)
        voxels = segmented.sum((2, 3, 4)).float() @ self.held.T  # (B, S)
        centre, covariance = self._moments(segmented, voxels.clamp(min=1))
        if not self.is_oblique:
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        # Symmetric roots turn no vertex around the centre. On the host, for not every device has eigenvectors.
        lengths, axes = torch.linalg.eigh(5 * covariance.double().cpu())  # see `ellipsoids.ellipsoid_of`
        shape = (axes * lengths.clamp(min=0).sqrt()[..., None, :] @ axes.mT).to(centre)
        start = (centre[:, :, None] + self.sphere @ shape).transpose(0, 1)
        is_found = (voxels.T >= LEAST_VOXELS)[:, :, None, None]
        return torch.where(is_found, start, self.template[:, None])

    def _moments(self, segmented: torch.Tensor, voxels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, S, 3) and covariance (B, S, 3, 3), normalised units, of the voxels that each mesh holds.

        `segmented` (B, S + 1, X, Y, Z) are those of each class, `voxels` (B, S) how many each mesh holds.
        """
        places = [torch.linspace(-1, 1, side, device=segmented.device) for side in segmented.shape[2:]]
        centre = torch.zeros(*voxels.shape, 3, device=segmented.device)
        products = torch.zeros(*voxels.shape, 3, 3, device=segmented.device)
        for axis, place in enumerate(places):
            others = tuple({2, 3, 4} - {2 + axis})
            along = self.held @ segmented.sum(others).float() / voxels[..., None]  # (B, S, voxels along the axis)
            of_a_voxel = (2 / (len(place) - 1)) ** 2 / 12
            centre[..., axis] = along @ place
            products[..., axis, axis] = along @ place.square() + of_a_voxel
        for one, another in ((0, 1), (0, 2), (1, 2)):
            (left,) = {0, 1, 2} - {one, another}
            plane = segmented.sum(2 + left).float()  # (B, S + 1, voxels along one, along another)
            product = (plane @ places[another] @ places[one]) @ self.held.T / voxels
            products[..., one, another] = product
            products[..., another, one] = product
        return centre, products - centre[..., :, None] * centre[..., None, :]


class ImplicitMeshNet(nn.Module):
    """Image (B, C, X, Y, Z) in [-1, 1] -> Prediction. Where the UNet runs in bfloat16, the mesh part stays float32.

    `localiser` is the network of the coarse pass, which finds where such images are to be cut from a volume; None where
    they are cut from the centre. Without `trains_meshes` the graph decoder rests in training, and there are no stages.
    """

    trains_meshes: bool = True

    def __init__(
        self,
        unet: UNet,
        decoder: GraphDecoder,
        localiser: Localiser | None = None,
        start: SegmentedTemplate | None = None,
    ):
        """`start` says where each case's vertices begin, by default at the decoder's template."""
        super().__init__()
        self.unet = unet
        self.decoder = decoder
        self.localiser = localiser
        self.start = start

    def forward(self, image: torch.Tensor) -> Prediction:
        pyramid, segmentation = self.unet(image)
        with torch.autocast(image.device.type, enabled=False):
            stages = []
            if self.trains_meshes or not self.training:
                stages = self.decoder(pyramid, self.start(segmentation, image) if self.start else None)
            if not self.training:
                stages[-1] = self.decoder.turned_outward(stages[-1])
            coarser = self.unet.coarser_logits(pyramid) if self.training else []
            return Prediction(stages, segmentation, coarser)


def build_network(config: Config) -> ImplicitMeshNet:
    """The untrained network that a config describes; its template's centres and radii must be set, if not 'centred'."""
    network = config.network
    structures = Structures.of(config.data)
    channels = config.data.channels
    unet = UNet(
        network.encoder_channels,
        network.decoder_channels,
        structures.class_count,
        network.dropout,
        channels,
        network.deep_supervision,
        network.flat_levels,
    )
    sphere, faces = icosphere(network.template_subdivisions)
    template = _template(network, sphere, len(structures))
    level_channels = {f"e{level}": width for level, width in enumerate(network.encoder_channels)}
    level_channels |= {f"d{level}": width for level, width in enumerate(network.decoder_channels)}
    localiser = Localiser(network.localiser_channels, channels) if config.data.region == "found" else None
    decoder = GraphDecoder(template, faces, level_channels, network)
    start = None
    if network.template in ("segmented", "oblique"):
        start = SegmentedTemplate(template, sphere, structures, is_oblique=network.template == "oblique")
    return ImplicitMeshNet(unet, decoder, localiser, start)


def _template(network: NetworkConfig, sphere: torch.Tensor, structures: int) -> torch.Tensor:
    """The starting vertices (S, V, 3) of each structure, made from the unit sphere's (V, 3)."""
    if network.template == "centred":
        return (CENTRED_RADIUS * sphere).repeat(structures, 1, 1)
    centres = torch.tensor(network.template_centres)
    radii = torch.tensor(network.template_radii)
    return centres[:, None] + radii[:, None] * sphere
