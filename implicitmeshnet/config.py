"""Dataclasses <-> JSON + command-line overrides: the only home of a default, and of the limits of a value.

A config is one JSON object of sections and a `snapshot`: a `Config` for ImplicitMeshNet, a `DrnConfig` for the
DeepRepresentationNetwork. A key left out takes the default below; an unknown key is an error. Relative paths in a
JSON file are relative to the repository's root, relative paths in command-line overrides to the current folder.

A field's annotation says what it may hold (see config_fields), the text below it what it means and in which unit;
what spans several fields stands in `RULES`. docs/configs.md is made from all three: after a change here run
`python -m implicitmeshnet.config_docs > docs/configs.md`.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from implicitmeshnet.config_fields import Length, Name, Range, Rising, check_limits, refuse
from implicitmeshnet.config_json import apply_override, from_json, to_text
from implicitmeshnet.script import atomic_path, check_path, read_json

_BESIDE = Path(__file__).resolve().parents[1]
REPOSITORY = _BESIDE if (_BESIDE / "configs_implicitmeshnet").is_dir() else Path.cwd()
"""What relative paths in JSON files start from; an installed package lies in no repository and takes the folder that it
is used in."""
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Of the intensities that data.intensity_statistics is of."""

# What several fields may hold. Counts end where numpy's and torch's 32-bit numbers do.
Count = Annotated[int, Range(1, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(low=0, below=1)]
BelowTen = Annotated[float, Range(low=0, below=10)]
LearningRate = Annotated[float, Range(above=0, high=1)]
Minutes = Annotated[float, Range(above=0, high=1e6)]
SpacingMm = Annotated[float, Range(1e-3, 1e3)]
Spacings = Annotated[tuple[SpacingMm, SpacingMm, SpacingMm], Length(3, 3, "numbers")]

# Of data.
LabelValue = Annotated[int, Range(1, 2**15 - 1)]
LabelValues = Annotated[list[LabelValue], Length(1, items="label values")]
StructureName = Annotated[str, Name(longest=50)]
GridSide = Annotated[int, Range(6, 4095)]
Grid = Annotated[tuple[GridSide, GridSide, GridSide], Length(3, 3, "numbers")]
Intensity = Literal["window", "percentile"]
Intensities = Annotated[list[Intensity], Length(1, 99, "rules")]
Percentile = Annotated[float, Range(0, 100)]
Fold = Annotated[int, Range(0, 2**31 - 1)]
Folds = Annotated[int, Range(2, 2**31 - 1)]
PerQuantile = Annotated[tuple[float, ...], Length(len(QUANTILES), len(QUANTILES), "numbers")]

# Of training.
Variation = Literal[
    "contrast",
    "mixing",
    "texture",
    "scars",
    "trabeculae",
    "bias",
    "orientation",
    "view",
    "resolution",
    "motion",
    "missing",
    "noise",
    "levels",
    "gamma",
]

# Of the networks; a width is a layer's channels.
Width = Annotated[int, Range(1, 4096)]
FlatLevels = Annotated[tuple[Annotated[int, Range(0, 10)], ...], Length(3, 3, "numbers")]
Widths = Annotated[tuple[Width, ...], Length(1, items="widths")]
LevelNames = Annotated[tuple[str, ...], Length(1, items="names of levels")]
Subdivisions = Annotated[int, Range(0, 7)]
VolumeSide = Annotated[int, Range(3, 1024)]
Volume = Annotated[tuple[VolumeSide, VolumeSide, VolumeSide], Length(3, 3, "numbers")]
Offset = Annotated[float, Range(-50, 50)]
Blocks = Annotated[int, Range(1, 100)]

# Of the shapes; lengths are in normalised units, a pair is a range to draw from.
ShapeLength = Annotated[float, Range(above=0, high=1)]
ShapeLengths = Annotated[tuple[ShapeLength, ShapeLength], Rising()]
TubeLength = Annotated[float, Range(above=0, high=10)]
WallThickness = Annotated[float, Range(above=0, below=1)]
Latitude = Annotated[float, Range(-1.5, 1.5)]


@dataclass
class IntensityStatistics:
    """What the network saw in training: QUANTILES of each case's normalised intensities, over the cases."""

    cases: Count = 0
    """Training cases that were measured."""
    mean: PerQuantile = ()
    """Mean over the cases of the 1, 5, 10, 25, 50, 75, 90, 95 and 99 % quantiles, intensities mapped to [-1, 1]."""
    covariance: Annotated[tuple[PerQuantile, ...], Length(len(QUANTILES), len(QUANTILES), "rows")] = ()
    """Covariance of these quantiles over the cases."""


@dataclass
class DataConfig:
    """What the network sees: the cases, their structures and the grid that each volume is resampled to."""

    dir: str = "data/phantom/train"
    """Folder of training cases: images and voxel labels."""
    structures: Annotated[dict[StructureName, LabelValues], Length(1, 254, "structures")] = field(
        default_factory=lambda: {"LV": [500], "LA": [420, 421]}
    )
    """Structure name -> the label values that mean it."""
    encloses: dict[str, list[str]] = field(default_factory=dict)
    """Structure -> others that its mesh holds too, as the epicardium holds the left ventricle: {"Myo": ["LV"]}."""
    ignore: list[LabelValue] = field(default_factory=list)
    """Label values of voxels of which nothing is known: they are out of all losses and metrics, no background."""
    outside_view: Literal["background", "ignored"] = "background"
    """What the network's grid holds beyond the volume's border: 'background', or 'ignored' voxels, which are out of all
    losses, so that meshes there follow from what is in view."""
    region: Literal["centre", "found"] = "centre"
    """Where the network's grid lies. 'centre': of the volume, the paper's. 'found': around the structures, in training
    by the label, in evaluation by a coarse pass over the whole volume; one connected part of it counts."""
    overview_spacing_mm: SpacingMm = 8.0
    """Voxel spacing of the coarse pass of region 'found', in mm."""
    shape: Grid = (128, 128, 128)
    """Voxels of the network's grid, each a multiple of 2^(encoder levels - 1 - flat levels along its axis)."""
    spacing_mm: SpacingMm | Spacings = 1.3
    """Voxel spacing of the network's grid, in mm: the same along each axis, or three numbers where slices are thick."""
    intensity: Intensity | Intensities = "window"
    """How voxel values become [-1, 1]. 'window': CT, clipped to level +- width / 2. 'percentile': each volume by its
    own percentiles (MR). A list has a rule for each channel of an image, in the order of their files."""
    window_hu: Positive = 1000.0
    """Width of the intensity window, in Hounsfield units."""
    level_hu: float = 200.0
    """Centre of the intensity window, in Hounsfield units."""
    percentiles: Annotated[tuple[Percentile, Percentile], Rising(strict=True)] = (0.5, 99.5)
    """The percentiles of a volume's values, in %, that become -1 and 1 with intensity 'percentile'."""
    cache_dir: str | None = None
    """Folder of the resampled cases, so that a later start need not read them; null means the folder cache in
    training.run_dir. It may be deleted: what is missing is made anew."""
    validation_cases: Count = 4
    """Cases held out of `dir` for validation, drawn with training.seed."""
    fold: Fold | None = None
    """Which of `folds` parts of the cases is held out instead of validation_cases, from 0 on; null for none."""
    folds: Folds = 5
    """Parts of equal size, to one case, that a cross-validation cuts the cases into, in an order drawn with
    training.seed: a training with each fold holds every case out once."""
    training_cases: Count | None = None
    """Only so many of the cases that are left are trained on, drawn with training.seed, fewer ones among more; null for
    all."""
    intensity_statistics: IntensityStatistics | list[IntensityStatistics] | None = None
    """Training fills it in the config that it writes beside the snapshot, a list where there are several channels;
    evaluation warns of images unlike it."""

    @property
    def intensity_rules(self) -> list[Intensity]:
        """The rule of each channel of an image."""
        return self.intensity if isinstance(self.intensity, list) else [self.intensity]

    @property
    def channels(self) -> int:
        """Of an image: the network's input."""
        return len(self.intensity_rules)

    @property
    def spacings_mm(self) -> tuple[float, ...]:
        """The voxel spacing of the grid along each axis."""
        return self.spacing_mm if isinstance(self.spacing_mm, tuple) else (self.spacing_mm,) * 3

    @property
    def half_sides_mm(self) -> tuple[float, ...]:
        """A normalised unit along each axis of the grid, in mm."""
        return tuple((voxels - 1) * spacing / 2 for voxels, spacing in zip(self.shape, self.spacings_mm, strict=True))

    @property
    def channel_statistics(self) -> list[IntensityStatistics]:
        """The intensity_statistics of each channel; none before a training has filled them in."""
        statistics = self.intensity_statistics
        if statistics is None:
            return []
        return statistics if isinstance(statistics, list) else [statistics]


@dataclass
class NetworkConfig:
    """The layers of ImplicitMeshNet and the meshes that it starts from."""

    encoder_channels: Annotated[tuple[Width, ...], Length(2, 11, "widths")] = (16, 32, 64, 128, 256)
    """UNet encoder widths e0, e1, ..., in channels; the last is the bottleneck."""
    decoder_channels: Widths = (4, 16, 32, 64)
    """UNet decoder widths d0, d1, ..., in channels; one fewer than encoder_channels."""
    dropout: BelowOne = 0.1
    """Share of activations that are dropped in the UNet in training."""
    flat_levels: FlatLevels = (0, 0, 0)
    """UNet levels along each axis, from the finest on, whose convolutions have size 1 along it and that are not halved
    along it by the next: [0, 0, 1] for slices along z about twice to four times as thick as wide."""
    deep_supervision: bool = False
    """Whether the UNet segments at every level of its decoder in training; each level's loss counts half of the finer
    one's."""
    localiser_channels: Annotated[tuple[Width, ...], Length(2, 6, "widths")] = (16, 32, 64)
    """UNet widths of the coarse pass of data.region 'found', in channels."""
    template: Literal["mean", "centred", "segmented", "oblique"] = "mean"
    """'mean': spheres at each structure's mean position and size in training. 'centred': the paper's, radius 0.5.
    'segmented': at the position and size of what the UNet segments of it, for images that lie anyhow. 'oblique': at its
    slant as well, for tilted structures."""
    template_subdivisions: Subdivisions = 4
    """How often the icosahedron's faces are cut into four: n gives 10 * 4^n + 2 vertices for each structure."""
    template_centres: tuple[tuple[float, ...], ...] | None = None
    """Centres of the mean template, three normalised coordinates for each structure; training fills it in, and its
    snapshots hold it too."""
    template_radii: tuple[tuple[float, ...], ...] | None = None
    """Semi-axes of the mean template, three normalised lengths for each structure; filled in likewise."""
    stage_levels: Annotated[tuple[LevelNames, ...], Length(1, items="stages")] = (
        ("e3", "e4"),
        ("e1", "e2", "d1", "d2"),
        ("e0", "e1", "d1"),
    )
    """Feature volumes that each stage of the graph decoder reads at the vertices."""
    stage_channels: Widths = (288, 96, 32)
    """Hidden widths of the graph decoder's stages, in channels; one for each entry of stage_levels."""
    profile_voxels: Annotated[tuple[Offset, ...], Length(0, 20, "numbers")] = ()
    """Steps along a vertex's normal, in voxels of the grid, at which the last stage also reads the finest level."""
    displacement_factor: Positive = 0.01
    """What a stage's output is multiplied by to become a vertex's displacement, in normalised units."""

    @property
    def has_mean_template(self) -> bool:
        """Whether training fills in template_centres and template_radii."""
        return self.template != "centred"


@dataclass
class LossConfig:
    """How predicted meshes are compared with voxel labels, and the weight of each term of the loss."""

    route: Literal["exact", "deep"] = "exact"
    """How a mesh becomes a signed distance: 'exact' by Mesh2SDF, 'deep' by the DeepRepresentationNetwork."""
    drn_config: str | None = None
    """The pretrained DeepRepresentationNetwork of the deep route: its JSON config, which names its snapshot."""
    occupancy: NotNegative = 1.0
    """Weight of the cross-entropy between the meshes' occupancy and the label."""
    occupancy_dice: NotNegative = 0.0
    """Weight of the soft Dice loss between the same two."""
    temperature: Positive = 100.0
    """T of occupancy = sigmoid(-T * SDF), per unit of normalised length."""
    segmentation: NotNegative = 0.1
    """Weight of the cross-entropy between the UNet's segmentation and the label."""
    segmentation_dice: NotNegative = 0.0
    """Weight of the soft Dice loss between the same two."""
    surface: NotNegative = 0.1
    """Weight of the surface loss: 1 - overlap of the meshes' surface with the label's border."""
    overlap: NotNegative = 0.0
    """Weight of the overlap loss, of what two meshes both claim, after laplacian_epochs; it rises from 0 as the
    Laplacian's falls."""
    triangles: NotNegative = 0.0
    """Weight of the triangle loss: 1 - how close to equilateral the meshes' triangles are, by their mean ratio."""
    laplacian_start: NotNegative = 1e3
    """Weight of the Laplacian loss, which smooths the meshes, in the first epoch."""
    laplacian_end: NotNegative = 1e-2
    """Weight of the Laplacian loss after laplacian_epochs."""
    laplacian_epochs: Count = 800
    """Epochs of the cosine annealing from laplacian_start to laplacian_end."""

    @property
    def has_meshes(self) -> bool:
        """Whether any term of the meshes has a weight; else only the UNet and the coarse pass are trained."""
        laplacian = self.laplacian_start + self.laplacian_end
        return self.occupancy + self.occupancy_dice + self.surface + self.overlap + self.triangles + laplacian > 0


@dataclass
class TrainingConfig:
    """How long, how fast and on what ImplicitMeshNet is trained."""

    run_dir: str = "runs/implicitmeshnet"
    """Folder that training writes: snapshots, config, curves."""
    init_from: str | None = None
    """Weights to start from, as far as they fit: a snapshot, or the JSON config of a trained network."""
    epochs: Count = 2000
    """Epochs in all; a longer run goes on from a shorter one."""
    repeats: Count = 6
    """Passes over the training cases that make one epoch."""
    batch_size: Count = 2
    """Cases in one step of the optimiser, over all processes together."""
    accumulate: Count = 1
    """Parts into which a process cuts its share of a batch, one in memory at a time."""
    recompute: bool = False
    """Whether the UNet's activations are computed again for the gradient instead of kept: less memory, more time."""
    compile: bool = False
    """Whether torch.compile translates the UNet, a minute or two at each start; on CPUs it gained nothing."""
    learning_rate: LearningRate = 1e-4
    """Learning rate of AdamW in the first epoch."""
    learning_rate_end: Share = 1e-5
    """Cosine decay to this at the last epoch."""
    drn_learning_rate: Share = 3e-5
    """Learning rate of the DeepRepresentationNetwork, which the deep route trains on in turns; constant."""
    weight_decay: Share = 1e-6
    """Weight decay of AdamW."""
    augmentation: bool = True
    """Whether training cases are warped and their intensities changed, at random and anew each time."""
    orientation: Literal["header", "any"] = "header"
    """Whether images lie in the world as their headers say. 'any': where headers have lost it; augmentation then flips
    the axes at random, and swaps those of one spacing and about one length, so that the network heeds none."""
    appearance: Literal["image", "random"] = "image"
    """What a training sees of its cases. 'image': their images. 'random': pictures that are made of their tissue maps,
    NAME_tissues, each time with another contrast, resolution, view and orientation, so that any scanner's will do."""
    appearance_without: list[Variation] = field(default_factory=list)
    """Kinds of randomness that random appearance leaves out."""
    validate_every: Count = 10
    """Epochs between validations."""
    checkpoint_minutes: Minutes = 10.0
    """The longest time between two checkpoints, which are written at each epoch's end too."""
    deterministic: bool = False
    """Whether a GPU gives the same numbers in every run, more slowly; a CPU always does on one number of threads."""
    seed: Seed = 0
    """Of all random draws: validation cases, initial weights, order, dropout and augmentation."""

    def steps_of_epoch(self, cases: int) -> int:
        """Steps of the optimiser in an epoch over so many training cases."""
        return -(-cases * self.repeats // self.batch_size)


@dataclass
class Config:
    """All that trains and evaluates an ImplicitMeshNet."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    snapshot: str | None = None
    """Trained weights for evaluation; null means best.pt beside the config file."""

    @property
    def cache_dir(self) -> Path:
        """Folder of the resampled cases."""
        return Path(self.data.cache_dir or Path(self.training.run_dir) / "cache")


@dataclass
class DrnNetworkConfig:
    """The layers of the DeepRepresentationNetwork."""

    shape: Volume = (128, 128, 128)
    """Voxels of the distance volume, each a multiple of the coarsest stage's cells that leaves at least 3 of them."""
    channels: Annotated[tuple[Width, ...], Length(1, 9, "widths")] = (128, 128, 128, 128)
    """Widths of the voxel decoder's stages, in channels, coarse to fine, each a multiple of groups."""
    blocks: Annotated[tuple[Blocks, ...], Length(1, 9, "numbers")] = (1, 1, 1, 1)
    """Residual blocks of each stage."""
    groups: Annotated[int, Range(1, 2**16 - 1)] = 16
    """Groups of channels that the group norms normalise together."""
    subvoxels: Annotated[int, Range(1, 8)] = 1
    """Voxels along a side of the finest stage's cells: 2 spares seven eighths of its convolutions."""
    graph_channels: Width = 128
    """Width of the graph encoder, in channels."""
    graph_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the graph encoder."""
    dropout: BelowOne = 0.1
    """Share of activations that are dropped in the graph encoder in training."""
    template_subdivisions: Subdivisions = 4
    """How often the icosahedron's faces are cut into four; that of the network.template_subdivisions that it serves."""


@dataclass
class ShapesConfig:
    """Random deformations of a sphere, lengths in normalised units (half sides of the cube); uniform in +- a value
    or in a range, normal where a standard deviation is named."""

    radius: ShapeLengths = (0.2, 0.8)
    """Radius of the shapes that start from a sphere, in normalised units."""
    ellipsoids: Share = 0.35
    """Share of shapes that start from a bent ellipsoid anywhere in the cube, as a structure's template may."""
    semi_axis: ShapeLengths = (0.1, 0.7)
    """Semi-axes of the ellipsoids, in normalised units."""
    bend: BelowTen = 0.8
    """The most that an ellipsoid's poles are shifted across its axis, relative to its shortest semi-axis."""
    tubes: Share = 0.25
    """Share of shapes that start from a tube bent to an arc, as vessels are."""
    tube_radius: ShapeLengths = (0.08, 0.25)
    """Radius of the tubes, in normalised units."""
    tube_length: Annotated[tuple[TubeLength, TubeLength], Rising()] = (0.6, 2.0)
    """Length of the tubes' centrelines, in normalised units."""
    tube_angle_rad: Annotated[float, Range(low=0, below=2 * math.pi)] = 3.5
    """The most that the centreline turns from end to end, in radians."""
    cups: Share = 0.15
    """Share of shapes that start from a cup, a thick bowl, as the left ventricle's myocardium is."""
    cup_radius: ShapeLengths = (0.35, 0.8)
    """Outer radius of the cups, in normalised units."""
    cup_wall: Annotated[tuple[WallThickness, WallThickness], Rising()] = (0.2, 0.5)
    """Thickness of the cups' walls, relative to the radius."""
    cup_rim_rad: Annotated[tuple[Latitude, Latitude], Rising()] = (-0.3, 0.7)
    """Latitude of the cups' rims, in radians, 0 at the bowl's equator."""
    translation: BelowOne = 0.2
    """The most that a sphere's centre is shifted along each axis, in normalised units; other shapes lie anywhere."""
    rotation_rad: BelowTen = 0.2
    """The most that a sphere turns about each axis, in radians; other shapes turn by up to pi."""
    scale: BelowOne = 0.2
    """The most that a shape is stretched or shrunk along each axis, relative to its size."""
    shear: BelowOne = 0.1
    """The most that a shape is sheared, in shift per unit length across it."""
    control_points: Annotated[int, Range(1, 2**16 - 1)] = 16
    """Random directions about which the sinusoidal radial displacement waves."""
    radial: BelowOne = 0.1
    """Standard deviation of the control points' sinusoidal radial displacement, relative to the radius."""
    grid: BelowOne = 0.08
    """Standard deviation of the displacements on a 4 x 4 x 4 grid, in normalised units."""
    noise: BelowOne = 0.005
    """Standard deviation of each vertex's own displacement, in normalised units."""


@dataclass
class DrnTrainingConfig:
    """How long and how fast the DeepRepresentationNetwork is pretrained."""

    run_dir: str = "runs/drn"
    """Folder that pretraining writes: snapshots, config, curves."""
    epochs: Count = 1000
    """Epochs in all; a longer run goes on from a shorter one."""
    shapes: Count = 70
    """Fresh shapes in each epoch."""
    batch_size: Count = 2
    """Shapes in one step of the optimiser, over all processes together."""
    learning_rate: LearningRate = 1e-3
    """Learning rate of AdamW in the first epoch."""
    learning_rate_end: Share = 1e-5
    """Cosine decay to this at the last epoch."""
    weight_decay: Share = 1e-6
    """Weight decay of AdamW."""
    validation_shapes: Annotated[int, Range(1, 10**5)] = 32
    """Shapes of the validation, the same in every run."""
    validate_every: Count = 10
    """Epochs between validations."""
    checkpoint_minutes: Minutes = 10.0
    """The longest time between two checkpoints, which are written at each epoch's end too."""
    deterministic: bool = False
    """Whether a GPU gives the same numbers in every run, more slowly; a CPU always does on one number of threads."""
    seed: Seed = 0
    """Of the random draws: initial weights, dropout and shapes; not of the validation's shapes."""


@dataclass
class DrnConfig:
    """All that pretrains a DeepRepresentationNetwork and loads it for the deep route."""

    network: DrnNetworkConfig = field(default_factory=DrnNetworkConfig)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    training: DrnTrainingConfig = field(default_factory=DrnTrainingConfig)
    snapshot: str | None = None
    """Pretrained weights; null means best.pt beside the config file."""


def distinct_label_values(config: Config) -> None:
    """data.structures: no label value stands for two structures, or twice for one."""
    values = list(chain.from_iterable(config.data.structures.values()))
    if len(set(values)) != len(values):
        refuse("data.structures", "distinct label values", config.data.structures)


def ignored_values_are_no_structures(config: Config) -> None:
    """data.ignore: no label value that means a structure."""
    values = set(chain.from_iterable(config.data.structures.values()))
    if not values.isdisjoint(config.data.ignore):
        refuse("data.ignore", "label values that mean no structure", config.data.ignore)


def statistics_of_each_channel(config: Config) -> None:
    """data.intensity_statistics: null, or an object for each rule of data.intensity."""
    found = len(config.data.channel_statistics)
    if found not in (0, config.data.channels):
        wanted = f"null, or an object for each rule of data.intensity, {config.data.channels}"
        refuse("data.intensity_statistics", wanted, found)


def enclosed_structures(config: Config) -> None:
    """data.encloses: names structures of data.structures, each enclosing distinct others that enclose none."""
    encloses = config.data.encloses
    for outer, inner in encloses.items():
        known = {outer, *inner} <= set(config.data.structures)
        distinct = len({outer, *inner}) == 1 + len(inner)
        nested = any(encloses.get(name) for name in inner)
        if not known or not distinct or nested:
            wanted = "structures of data.structures, each enclosing distinct others that enclose none"
            refuse("data.encloses", wanted, encloses)


def known_fold(config: Config) -> None:
    """data.fold: null or below data.folds."""
    fold = config.data.fold
    if fold is not None and fold >= config.data.folds:
        refuse("data.fold", f"null or a fold from 0 to {config.data.folds - 1}, as data.folds says", fold)


def fewer_flat_levels_than_levels(config: Config) -> None:
    """network.flat_levels: each fewer than the widths of network.encoder_channels."""
    found = config.network.flat_levels
    most = len(config.network.encoder_channels) - 1
    if max(found) > most:
        refuse("network.flat_levels", f"numbers from 0 to {most}, fewer than encoder_channels has", found)


def grid_fits_the_encoder(config: Config) -> None:
    """data.shape: multiples of d = 2^(levels - 1 - n), for as many levels as network.encoder_channels has and n of
    network.flat_levels along the axis, and not all d, as one voxel at the bottleneck cannot be normalised."""
    shape = config.data.shape
    divisors = _coarsest_voxel(config)
    multiples = all(side % divisor == 0 for side, divisor in zip(shape, divisors, strict=True))
    if not multiples or shape == divisors:
        text = " x ".join(map(str, divisors)) if len(set(divisors)) > 1 else divisors[0]
        refuse("data.shape", f"multiples of {text} from 6 to 4095, not all {text}", shape)


def grid_has_no_two_voxels_along_x(config: Config) -> None:
    """data.shape: the first number is not 2 d, as over two voxels at the bottleneck torch's bfloat16 convolutions have
    wrong gradients on CPUs."""
    two = 2 * _coarsest_voxel(config)[0]
    if config.data.shape[0] == two:
        reason = "over two voxels at the bottleneck torch's bfloat16 convolutions have wrong gradients on CPUs"
        refuse("data.shape", f"another first number than {two}: {reason}", config.data.shape)


def _coarsest_voxel(config: Config) -> tuple[int, ...]:
    """Voxels of the grid along each side of a voxel at the UNet's bottleneck."""
    steps = len(config.network.encoder_channels) - 1
    return tuple(2 ** (steps - flat) for flat in config.network.flat_levels)


def one_decoder_width_a_level(config: Config) -> None:
    """network.decoder_channels: one width fewer than network.encoder_channels."""
    wanted = len(config.network.encoder_channels) - 1
    found = config.network.decoder_channels
    if len(found) != wanted:
        refuse("network.decoder_channels", f"{wanted} widths, one fewer than encoder_channels", found)


def known_stage_levels(config: Config) -> None:
    """network.stage_levels: names among e0, e1, ... of the encoder's levels and d0, d1, ... of the decoder's."""
    levels = len(config.network.encoder_channels)
    names = [f"e{level}" for level in range(levels)]
    names += [f"d{level}" for level in range(levels - 1)]
    found = config.network.stage_levels
    if not set(chain.from_iterable(found)) <= set(names):
        refuse("network.stage_levels", f"names among {names}", found)


def one_width_a_stage(config: Config) -> None:
    """network.stage_channels: one width for each entry of network.stage_levels."""
    found = config.network.stage_channels
    if len(found) != len(config.network.stage_levels):
        refuse("network.stage_channels", "one width for each entry of stage_levels", found)


def deep_route_has_a_network(config: Config) -> None:
    """loss.drn_config: not null where loss.route is 'deep'."""
    if config.loss.route == "deep" and config.loss.drn_config is None:
        wanted = "the config of a pretrained DeepRepresentationNetwork for the deep route"
        refuse("loss.drn_config", wanted, config.loss.drn_config)


def any_orientation_is_drawn(config: Config) -> None:
    """training.orientation: 'any' with training.augmentation alone, which draws it, and not with random appearance,
    which draws its own."""
    training = config.training
    if training.orientation == "any" and (not training.augmentation or training.appearance == "random"):
        wanted = "header, as without training.augmentation and with training.appearance random nothing turns"
        refuse("training.orientation", wanted, training.orientation)


def random_appearance_has_percentiles(config: Config) -> None:
    """training.appearance: 'random' takes one channel, data.intensity 'percentile', and training.augmentation."""
    data = config.data
    fits = data.intensity_rules == ["percentile"] and config.training.augmentation
    if config.training.appearance == "random" and not fits:
        wanted = "'image', or beside 'random' data.intensity 'percentile' and training.augmentation true"
        refuse("training.appearance", wanted, config.training.appearance)


def learning_rate_does_not_rise(config: Config | DrnConfig) -> None:
    """training.learning_rate_end: not above training.learning_rate."""
    end = config.training.learning_rate_end
    if end > config.training.learning_rate:
        refuse("training.learning_rate_end", "a number from 0 to learning_rate", end)


def channels_in_groups(config: DrnConfig) -> None:
    """network.channels: multiples of network.groups."""
    groups = config.network.groups
    found = config.network.channels
    if any(width % groups for width in found):
        refuse("network.channels", f"widths that are each a multiple of network.groups, {groups}", found)


def blocks_of_each_stage(config: DrnConfig) -> None:
    """network.blocks: one number for each entry of network.channels."""
    stages = len(config.network.channels)
    found = config.network.blocks
    if len(found) != stages:
        refuse("network.blocks", f"1 to 100 for each of {stages} stages", found)


def volume_fits_the_stages(config: DrnConfig) -> None:
    """network.shape: multiples of c = network.subvoxels * 2^(stages - 1), for as many stages as network.channels has,
    and at least 3 c."""
    stages = len(config.network.channels)
    cell = config.network.subvoxels * 2 ** (stages - 1)
    found = config.network.shape
    # As in data.shape: two voxels in the coarsest stage have wrong gradients in bfloat16 on CPUs.
    if not all(side >= 3 * cell and side % cell == 0 for side in found):
        refuse("network.shape", f"multiples of {cell} from {3 * cell} to 1024 for {stages} stages", found)


def shares_of_shapes(config: DrnConfig) -> None:
    """shapes.ellipsoids: the shares of ellipsoids, tubes and cups sum to at most 1; the rest are spheres."""
    shapes = config.shapes
    total = shapes.ellipsoids + shapes.tubes + shapes.cups
    if total > 1 + 1e-9:
        wanted = "shares of ellipsoids, tubes and cups that sum to at most 1"
        refuse("shapes.ellipsoids", wanted, shapes.ellipsoids)


RULES: dict[type, tuple[Callable[[Any], None], ...]] = {
    Config: (
        distinct_label_values,
        ignored_values_are_no_structures,
        statistics_of_each_channel,
        enclosed_structures,
        known_fold,
        fewer_flat_levels_than_levels,
        grid_fits_the_encoder,
        grid_has_no_two_voxels_along_x,
        one_decoder_width_a_level,
        known_stage_levels,
        one_width_a_stage,
        deep_route_has_a_network,
        any_orientation_is_drawn,
        random_appearance_has_percentiles,
        learning_rate_does_not_rise,
    ),
    DrnConfig: (
        channels_in_groups,
        blocks_of_each_stage,
        volume_fits_the_stages,
        shares_of_shapes,
        learning_rate_does_not_rise,
    ),
}
"""What spans several fields: functions that raise InputError where theirs do not fit together. They are called in this
order, once every field is within its own limits."""

PATH_KEYS = ("data.dir", "data.cache_dir", "training.run_dir", "training.init_from", "loss.drn_config", "snapshot")
AnyConfig = TypeVar("AnyConfig", Config, DrnConfig)


@overload
def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config: ...
@overload
def load_config(path: Path | str, overrides: Iterable[str] = (), *, kind: type[AnyConfig]) -> AnyConfig: ...
@overload
def load_config(path: Path | str, overrides: Iterable[str], kind: type[AnyConfig]) -> AnyConfig: ...
def load_config(path: Path | str, overrides: Iterable[str] = (), kind: type[Any] = Config) -> Any:
    """Read a JSON config of a kind (Config or DrnConfig) and apply `--section.key=value` overrides.

    The values of overrides are JSON, or text where they are none.
    Raises InputError for a missing or malformed file, an unknown key, or a value of the wrong type or range.
    """
    tree = read_json(path, "a config")
    for override in overrides:
        apply_override(tree, override, PATH_KEYS)
    config = from_json(tree, kind, "", str(path))
    validate(config)
    _map_paths(config, _absolute)
    return config


def save_config(config: Config | DrnConfig, path: Path | str) -> None:
    """Write the config as JSON, paths inside the repository relative to its root; through a temporary file."""
    config = copy.deepcopy(config)
    _map_paths(config, _relative)
    text = to_text(dataclasses.asdict(config))
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def validate(config: Config | DrnConfig) -> None:
    """Raise InputError where a value is outside its limits or two values do not fit together."""
    check_limits(config)
    for rule in RULES[type(config)]:
        rule(config)


def _absolute(name: str, key: str) -> str:
    check_path(name, key)
    return str(REPOSITORY / name)


def _relative(name: str, key: str) -> str:
    """To the repository's root, where the path lies inside it."""
    return "." if name == str(REPOSITORY) else name.removeprefix(f"{REPOSITORY}/")


def _map_paths(config: Config | DrnConfig, function: Callable[[str, str], str]) -> None:
    """Replace every path by function(path, its key)."""
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        holder = getattr(config, section, None) if section else config
        path = getattr(holder, name, None)
        if path is not None:
            setattr(holder, name, function(path, key))
