"""One step of ImplicitMeshNet's training: what it needs, how it begins, and what a batch is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from implicitmeshnet.config import Config
from implicitmeshnet.data.augment import augment
from implicitmeshnet.data.dataset import Sample
from implicitmeshnet.data.ellipsoids import template_statistics
from implicitmeshnet.data.overview import IGNORED, Overview
from implicitmeshnet.data.training_set import TrainingSet
from implicitmeshnet.models.localiser import Localiser
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, build_network
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.deep_route import DeepRoute
from implicitmeshnet.training.losses import MeshLoss, class_loss
from implicitmeshnet.training.run import Parts, take_step


@dataclass(frozen=True)
class Run:
    """What a step of a training needs."""

    config: Config
    device: torch.device
    network: ImplicitMeshNet
    criterion: MeshLoss
    optimizer: torch.optim.AdamW
    deep: DeepRoute | None
    """The other network of loss.route 'deep'."""

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds the state of."""
        parts: Parts = {"network": self.network, "optimizer": self.optimizer}
        if self.deep:
            parts |= {"drn": self.deep.drn, "drn_optimizer": self.deep.optimizer}
        return parts


def augmentation_margin(config: Config) -> int:
    """Voxels around the network's grid that augmentation may move into it."""
    return max(config.data.shape) // 8 if config.training.augmentation else 0


def learn_from_data(config: Config, samples: TrainingSet) -> None:
    """Fill in what the config takes from the training cases: intensities, and the template's centres and radii."""
    config.data.intensity_statistics = samples.intensity_statistics
    if config.network.template == "mean":
        centres, radii = template_statistics(samples.ellipsoids, config.data)
        config.network.template_centres = tuple(map(tuple, centres.tolist()))
        config.network.template_radii = tuple(map(tuple, radii.tolist()))


def start_run(config: Config, device: torch.device, deep: DeepRoute | None) -> Run:
    """Network, losses and optimiser, the weights drawn with training.seed."""
    settings = config.training
    torch.manual_seed(settings.seed)
    network = build_network(config).to(device)
    faces = network.decoder.faces
    vertex_count = network.decoder.template.shape[1]
    distance = deep.distance if deep else None
    criterion = MeshLoss(faces, vertex_count, config.loss, Structures.of(config.data), distance).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return Run(config, device, network, criterion, optimizer, deep)


def train_step(
    run: Run, samples: list[Sample], now: float, number: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """One step of each network on a batch, `now` epochs after the start; its losses by name, each a scalar."""
    image, label = draw_batch(run, samples, generator)
    prediction = run.network(image)
    total, terms = run.criterion(prediction, label, now)
    losses = {"total": total, **vars(terms)}
    if run.network.localiser:
        losses["localiser"] = localiser_loss(run, run.network.localiser, samples[0].overview, generator)
        total = total + losses["localiser"]
    take_step(total, run.network, run.optimizer, number)
    if run.deep:
        losses["drn"] = run.deep.step(prediction.vertices.detach().flatten(0, 1), number)
    return losses


def draw_batch(run: Run, samples: list[Sample], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, X, Y, Z) and labels (B, X, Y, Z) on the device, augmented where the config asks for it."""
    drawn = [draw(run, sample, run.config.data.shape, generator) for sample in samples]
    images, labels = zip(*drawn, strict=True)
    return torch.stack(images), torch.stack(labels)


def draw(
    run: Run, volume: Sample | Overview, shape: Sequence[int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, X, Y, Z) and label (X, Y, Z), augmented onto `shape` where the config asks for it."""
    assert volume.label is not None, "training cases are labelled"
    image = volume.image.to(run.device).float()  # there: half the bytes are moved
    label = volume.label.to(run.device)
    if not run.config.training.augmentation:
        return image, label
    return augment(image, label, shape, volume.grid.spacing_mm, generator)


def localiser_loss(
    run: Run, localiser: Localiser, overview: Overview | None, generator: torch.Generator
) -> torch.Tensor:
    """Cross-entropy of the coarse pass on one case; one of a batch will do, as it learns sooner than the rest."""
    assert overview is not None, "samples of data.region 'found' have one"
    image, label = draw(run, overview, overview.image.shape[1:], generator)
    return class_loss(localiser(image[None].float()), label[None], IGNORED)
