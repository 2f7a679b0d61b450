"""One step of ImplicitMeshNet's training: what it needs, how it begins, and what a batch is drawn from."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from implicitmeshnet.config import Config
from implicitmeshnet.data.appearance import Drawn, random_appearance, random_overview
from implicitmeshnet.data.augment import augment, orientations
from implicitmeshnet.data.dataset import Sample
from implicitmeshnet.data.ellipsoids import template_statistics, turned_ellipsoids
from implicitmeshnet.data.overview import IGNORED, Overview
from implicitmeshnet.data.training_set import TrainingSet
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, Prediction, build_network
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.training import processes
from implicitmeshnet.training.deep_route import DeepRoute
from implicitmeshnet.training.losses import MeshLoss, class_loss
from implicitmeshnet.training.run import AUGMENTATION, OVERVIEW, Moment, Parts, adamw, clipped_step


@dataclass(frozen=True)
class Run:
    """What a step of a training needs."""

    config: Config
    device: torch.device
    network: ImplicitMeshNet
    model: Callable[[torch.Tensor], Prediction]
    """The network as a step calls it, its gradients the mean over all processes."""
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
    """Voxels around the network's grid that augmentation may move into it.

    There are more of them for random appearance, whose views may end in the heart and lie around what they show of it.
    """
    if config.training.appearance == "random":
        return max(config.data.shape) // 4
    return max(config.data.shape) // 8 if config.training.augmentation else 0


def learn_from_data(config: Config, samples: TrainingSet) -> None:
    """Fill in what the config takes from the training cases: intensities, and the template's centres and radii."""
    # Of random appearance no intensities are the training's, and so none are unlike them.
    is_random = config.training.appearance == "random"
    config.data.intensity_statistics = None if is_random else samples.intensity_statistics
    if config.network.has_mean_template:
        ellipsoids = samples.ellipsoids
        if config.training.orientation == "any":
            turns = orientations(config.data.shape, config.data.spacings_mm)
            ellipsoids = [turned_ellipsoids(of_case, turn) for of_case in ellipsoids for turn in turns]
        centres, radii = template_statistics(ellipsoids, config.data)
        config.network.template_centres = tuple(map(tuple, centres.tolist()))
        config.network.template_radii = tuple(map(tuple, radii.tolist()))


def start_run(config: Config, device: torch.device, deep: DeepRoute | None) -> Run:
    """Network, losses and optimiser, the weights drawn with training.seed.

    Raises InputError where the processes and their parts of a batch do not divide training.batch_size.
    """
    settings = config.training
    shares = processes.count() * settings.accumulate
    if settings.batch_size % shares:
        raise InputError(
            f"training.batch_size: wanted a multiple of {shares}, for {processes.count()} processes and"
            f" training.accumulate {settings.accumulate}, found {settings.batch_size}"
        )
    torch.manual_seed(settings.seed)
    network = build_network(config).to(device)
    network.unet.recompute = settings.recompute
    network.trains_meshes = config.loss.has_meshes
    network.decoder.requires_grad_(config.loss.has_meshes)
    if settings.compile:
        network.unet.compile()
    faces = network.decoder.faces
    vertex_count = network.decoder.template.shape[1]
    distance = deep.distance if deep else None
    structures = Structures.of(config.data)
    half_sides_mm = config.data.half_sides_mm
    criterion = MeshLoss(faces, vertex_count, config.loss, structures, distance, half_sides_mm).to(device)
    optimizer = adamw(network, settings.learning_rate, settings.weight_decay)
    return Run(config, device, network, processes.parallel(network, device), criterion, optimizer, deep)


def train_step(
    run: Run, samples: TrainingSet, cases: Sequence[int], moment: Moment, now: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of each network on this process's share of a batch of `cases`, `now` epochs after the start.

    Its losses by name, and 1 where a step was left out as its gradients were not finite: scalars on the device.
    """
    own = processes.share(range(len(cases)))
    parts = run.config.training.accumulate
    overview = samples[cases[0]].overview if run.network.localiser else None
    run.optimizer.zero_grad(set_to_none=True)
    losses = []
    vertices = []
    for part in range(parts):
        drawn = [draw_case(run, samples, cases, place, moment) for place in own[part::parts]]
        images, labels = zip(*drawn, strict=True)
        is_last = part == parts - 1
        with nullcontext() if is_last else unsynchronised(run.model):
            prediction = run.model(torch.stack(images))
            total, terms = run.criterion(prediction, torch.stack(labels), now)
            losses.append({"total": total, **vars(terms)})
            if is_last and overview:
                losses.append({"localiser": localiser_loss(run, overview, moment)})
                total = total + parts * losses[-1]["localiser"]
            (total / parts).backward()
        if prediction.stages:
            vertices.append(prediction.vertices.detach().flatten(0, 1))
    skipped = clipped_step(run.network, run.optimizer)
    if run.deep and vertices:
        loss, also_skipped = run.deep.step(torch.cat(vertices))
        losses.append({"drn": loss})
        skipped = torch.maximum(skipped, also_skipped)
    return means_by_name(losses), skipped


def unsynchronised(model: Callable) -> AbstractContextManager[None]:
    """In this context backward passes add to the gradients of this process alone."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def means_by_name(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each name's scalars over the rows that have it."""
    found: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value.detach())
    return {name: torch.stack(values).mean() for name, values in found.items()}


def draw_case(
    run: Run, samples: TrainingSet, cases: Sequence[int], place: int, moment: Moment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, X, Y, Z) and label (X, Y, Z) of one place in a batch, which draws the same in whichever process."""
    generator = moment.generator(AUGMENTATION, place)
    return draw(run, samples[cases[place]], run.config.data.shape, generator)


def draw(
    run: Run, volume: Sample | Overview, shape: Sequence[int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, X, Y, Z) and label (X, Y, Z) on the device, augmented onto `shape` where the config asks for it."""
    assert volume.label is not None, "training cases are labelled"
    image = to_device(volume.image, run.device)
    label = to_device(volume.label, run.device)
    if run.config.training.appearance == "random":
        return drawn_sample(run.config, volume, image, label, generator)[:2]
    image = image.float()  # there: half the bytes are moved
    if not run.config.training.augmentation:
        return image, label
    any_orientation = run.config.training.orientation == "any"
    return augment(image, label, shape, volume.grid.spacing_mm, generator, any_orientation)


def drawn_sample(
    config: Config,
    volume: Sample | Overview,
    parts: torch.Tensor,
    label: torch.Tensor | None,
    generator: torch.Generator,
) -> Drawn:
    """A random image of a volume's tissue parts and label, which lie on the device."""
    assert label is not None, "training cases are labelled"
    assert volume.anatomy is not None, "tissue_sample fills it in"
    spacing_mm = volume.grid.spacing_mm
    without = config.training.appearance_without
    if isinstance(volume, Overview):
        return random_overview(parts, label, volume.anatomy, spacing_mm, generator, IGNORED, without)
    structures = Structures.of(config.data)
    ignored = structures.ignored_class if structures.ignores_outside else None
    shape = config.data.shape
    return random_appearance(parts, label, volume.anatomy, shape, spacing_mm, generator, ignored, without)


def to_device(volume: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on a device; a GPU fetches it by itself while this process goes on and the step before still runs."""
    if device.type != "cuda":
        return volume.to(device)
    return volume.pin_memory().to(device, non_blocking=True)


def localiser_loss(run: Run, overview: Overview, moment: Moment) -> torch.Tensor:
    """Cross-entropy of the coarse pass on the first case of a batch, in all processes the same.

    One of a batch will do, as it learns sooner than the rest.
    """
    localiser = run.network.localiser
    assert localiser is not None, "data.region 'found' has one"
    image, label = draw(run, overview, overview.image.shape[1:], moment.generator(OVERVIEW))
    return class_loss(localiser(image[None]), label[None], IGNORED)
