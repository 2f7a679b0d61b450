"""Dataclasses <-> JSON + command-line overrides: the only home of a default.

A config is one JSON object of sections and a `snapshot`: a `Config` for ImplicitMeshNet, a `DrnConfig` for the
DeepRepresentationNetwork. A key left out takes the default below; an unknown key is an error. Relative paths in a
JSON file are relative to the repository's root, relative paths in command-line overrides to the current folder.
"""

import copy
import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from implicitmeshnet.script import InputError, atomic_path, check_path, parse_json, read_json, shorten

REPOSITORY = Path(__file__).resolve().parents[1]
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Of the intensities that data.intensity_statistics is of."""


@dataclass
class IntensityStatistics:
    """What the network saw in training: QUANTILES of each case's normalised intensities, over the cases."""

    cases: int = 0
    mean: tuple[float, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()


@dataclass
class DataConfig:
    dir: str = "data/phantom/train"
    structures: dict[str, list[int]] = field(default_factory=lambda: {"LV": [500], "LA": [420, 421]})
    """Structure name -> the label values that mean it."""
    encloses: dict[str, list[str]] = field(default_factory=dict)
    """Structure -> others that its mesh holds too, as the epicardium holds the left ventricle: {"Myo": ["LV"]}."""
    region: str = "centre"
    """Where the network's grid lies. 'centre': of the volume, the paper's. 'found': around the structures, in training
    by the label, in evaluation by a coarse pass over the whole volume; one connected part of it counts."""
    overview_spacing_mm: float = 8.0
    """Of the coarse pass."""
    shape: tuple[int, int, int] = (128, 128, 128)
    """Voxels of the network's grid, each a multiple of 2^(encoder levels - 1)."""
    spacing_mm: float = 1.3
    intensity: str = "window"
    """'window': CT, clipped to level +- width / 2. 'percentile': each volume by its own percentiles (MR)."""
    window_hu: float = 1000.0
    level_hu: float = 200.0
    percentiles: tuple[float, float] = (0.5, 99.5)
    validation_cases: int = 4
    """Cases held out of `dir` for validation, drawn with training.seed."""
    intensity_statistics: IntensityStatistics | None = None
    """Training fills it in the config that it writes beside the snapshot; evaluation warns of images unlike it."""

    @property
    def label_values(self) -> list[int]:
        """The values of all structures."""
        return [value for group in self.structures.values() for value in group]

    @property
    def members(self) -> list[list[int]]:
        """For each structure the indices of those that its mesh holds: its own, then what it encloses."""
        index = {name: number for number, name in enumerate(self.structures)}
        return [[index[member] for member in (name, *self.encloses.get(name, ()))] for name in self.structures]


@dataclass
class NetworkConfig:
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """UNet encoder widths e0, e1, ...; the last is the bottleneck."""
    decoder_channels: tuple[int, ...] = (4, 16, 32, 64)
    """UNet decoder widths d0, d1, ..."""
    dropout: float = 0.1
    localiser_channels: tuple[int, ...] = (16, 32, 64)
    """UNet widths of the coarse pass of data.region 'found'."""
    template: str = "mean"
    """'mean': spheres at each structure's mean position and size in training. 'centred': the paper's, radius 0.5."""
    template_subdivisions: int = 4
    template_centres: tuple[tuple[float, ...], ...] | None = None
    """(S, 3) normalised coordinates; training fills it in the config that it writes beside the snapshot."""
    template_radii: tuple[tuple[float, ...], ...] | None = None
    """(S, 3) normalised semi-axes; filled in likewise."""
    stage_levels: tuple[tuple[str, ...], ...] = (("e3", "e4"), ("e1", "e2", "d1", "d2"), ("e0", "e1", "d1"))
    """Feature volumes that each stage of the graph decoder reads at the vertices."""
    stage_channels: tuple[int, ...] = (288, 96, 32)
    displacement_factor: float = 0.01


@dataclass
class LossConfig:
    route: str = "exact"
    """How a mesh becomes a signed distance: 'exact' by Mesh2SDF, 'deep' by the DeepRepresentationNetwork."""
    drn_config: str | None = None
    """The pretrained DeepRepresentationNetwork of the deep route: its JSON config, which names its snapshot."""
    occupancy: float = 1.0
    temperature: float = 100.0
    """T of occupancy = sigmoid(-T * SDF), per unit of normalised length."""
    segmentation: float = 0.1
    surface: float = 0.1
    laplacian_start: float = 1e3
    laplacian_end: float = 1e-2
    laplacian_epochs: int = 800
    """Cosine annealing from start to end."""


@dataclass
class TrainingConfig:
    run_dir: str = "runs/implicitmeshnet"
    epochs: int = 2000
    repeats: int = 6
    """Passes over the training cases that make one epoch."""
    batch_size: int = 2
    learning_rate: float = 1e-4
    learning_rate_end: float = 1e-5
    """Cosine decay to this at the last epoch."""
    drn_learning_rate: float = 3e-5
    """Of the DeepRepresentationNetwork, which the deep route trains on in turns; constant."""
    weight_decay: float = 1e-6
    augmentation: bool = True
    validate_every: int = 10
    """Epochs between validations."""
    seed: int = 0


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    snapshot: str | None = None
    """Trained weights for evaluation; null means best.pt beside the config file."""


@dataclass
class DrnNetworkConfig:
    shape: tuple[int, int, int] = (128, 128, 128)
    """Voxels of the distance volume, each a multiple of the coarsest stage's cells that leaves at least 3 of them."""
    channels: tuple[int, ...] = (128, 128, 128, 128)
    """Widths of the voxel decoder's stages, coarse to fine, each a multiple of groups."""
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Residual blocks of each stage."""
    groups: int = 16
    """Of the group norms."""
    subvoxels: int = 1
    """Voxels along a side of the finest stage's cells: 2 spares seven eighths of its convolutions."""
    graph_channels: int = 128
    graph_blocks: int = 2
    dropout: float = 0.1
    template_subdivisions: int = 4


@dataclass
class ShapesConfig:
    """Random deformations of a sphere, lengths in normalised units (half sides of the cube); uniform in +- a value
    or in a range, normal where a standard deviation is named."""

    radius: tuple[float, float] = (0.2, 0.8)
    ellipsoids: float = 0.35
    """Share of shapes that start from a bent ellipsoid anywhere in the cube, as a structure's template may."""
    semi_axis: tuple[float, float] = (0.1, 0.7)
    bend: float = 0.8
    """Shift of an ellipsoid's pole across its axis, in squared semi-axes per unit length."""
    tubes: float = 0.25
    """Share of shapes that start from a tube bent to an arc, as vessels are."""
    tube_radius: tuple[float, float] = (0.08, 0.25)
    tube_length: tuple[float, float] = (0.6, 2.0)
    """Of the centreline."""
    tube_angle_rad: float = 3.5
    """The most that the centreline turns from end to end."""
    cups: float = 0.15
    """Share of shapes that start from a cup, a thick bowl, as the left ventricle's myocardium is."""
    cup_radius: tuple[float, float] = (0.35, 0.8)
    cup_wall: tuple[float, float] = (0.2, 0.5)
    """Thickness relative to the radius."""
    cup_rim_rad: tuple[float, float] = (-0.3, 0.7)
    """Latitude of the rim, 0 at the bowl's equator."""
    translation: float = 0.2
    rotation_rad: float = 0.2
    scale: float = 0.2
    shear: float = 0.1
    control_points: int = 16
    radial: float = 0.1
    """Standard deviation of the control points' sinusoidal radial displacement, relative to the radius."""
    grid: float = 0.08
    """Standard deviation of the displacements on a 4 x 4 x 4 grid."""
    noise: float = 0.005
    """Standard deviation of each vertex's own displacement."""


@dataclass
class DrnTrainingConfig:
    run_dir: str = "runs/drn"
    epochs: int = 1000
    shapes: int = 70
    """Fresh shapes in each epoch."""
    batch_size: int = 2
    learning_rate: float = 1e-3
    learning_rate_end: float = 1e-5
    weight_decay: float = 1e-6
    validation_shapes: int = 32
    validate_every: int = 10
    seed: int = 0


@dataclass
class DrnConfig:
    network: DrnNetworkConfig = field(default_factory=DrnNetworkConfig)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    training: DrnTrainingConfig = field(default_factory=DrnTrainingConfig)
    snapshot: str | None = None
    """Pretrained weights; null means best.pt beside the config file."""


PATH_KEYS = ("data.dir", "training.run_dir", "loss.drn_config", "snapshot")
MOST_CHANNELS = 4096
MOST_LEVELS = 12  # beyond these no shape is a multiple of what they divide it by


def load_config(path, overrides=(), kind=Config):
    """Read a JSON config of a kind (Config or DrnConfig) and apply `--section.key=value` overrides.

    Their values are JSON, bare words strings.
    Raises InputError for a missing or malformed file, an unknown key, or a value of the wrong type or range.
    """
    tree = read_json(path, "a config")
    for override in overrides:
        _apply_override(tree, override)
    config = _convert(tree, kind, "", str(path))
    validate(config)
    _map_paths(config, _absolute)
    return config


def save_config(config, path):
    """Write the config as JSON, paths inside the repository relative to its root; through a temporary file."""
    config = copy.deepcopy(config)
    _map_paths(config, _relative)
    text = _layout(dataclasses.asdict(config))
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _absolute(name: str, key: str) -> str:
    check_path(name, key)
    return str(REPOSITORY / name)


def _relative(name: str, key: str) -> str:
    """To the repository's root, where the path lies inside it."""
    return "." if name == str(REPOSITORY) else name.removeprefix(f"{REPOSITORY}/")


def _layout(value, indent: str = "") -> str:
    """A value as JSON, an item a line; lists of plain values, such as a shape, on one line."""
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(name)}: {_layout(item, inner)}" for name, item in value.items()]
        return "\n".join(["{", ",\n".join(lines), f"{indent}}}"])
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        lines = [f"{inner}{_layout(item, inner)}" for item in value]
        return "\n".join(["[", ",\n".join(lines), f"{indent}]"])
    return json.dumps(value)


def _map_paths(config, function):
    """Replace every path by function(path, its key)."""
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        holder = getattr(config, section, None) if section else config
        path = getattr(holder, name, None)
        if path is not None:
            setattr(holder, name, function(path, key))


def validate(config):
    """Raise InputError where a value is outside its range or two values do not fit together."""
    checks = _drn_checks(config) if isinstance(config, DrnConfig) else _checks(config)
    for key, holds, wanted in [*checks, *_training_checks(config.training)]:
        if not holds:
            section, name = key.split(".")
            found = shorten(getattr(getattr(config, section), name))
            raise InputError(f"{key}: wanted {shorten(wanted)}, found {found}")


def _checks(config: Config):
    """(key, whether it holds, what is wanted) of everything but the optimiser's settings."""
    data, network, loss, training = config.data, config.network, config.loss, config.training
    levels = len(network.encoder_channels)
    divisor = 2 ** min(max(levels - 1, 0), MOST_LEVELS)
    names = [f"e{i}" for i in range(levels)] + [f"d{i}" for i in range(levels - 1)]
    read = [name for stage in network.stage_levels for name in stage]
    values = data.label_values
    return [
        ("data.structures", bool(values) and all(data.structures.values()), "at least one label value a structure"),
        ("data.structures", len(set(values)) == len(values), "distinct label values"),
        ("data.structures", all(0 < value < 2**15 for value in values), "label values from 1 to 32767"),
        (
            "data.structures",
            all(name.replace("_", "").isalnum() for name in data.structures),
            "names of letters, digits and underscores",
        ),
        ("data.structures", all(len(name) <= 50 for name in data.structures), "names of at most 50 letters"),
        ("data.structures", len(data.structures) <= 254, "at most 254 structures"),
        (
            "data.encloses",
            all(
                {outer, *inner} <= set(data.structures)
                and outer not in inner
                and len(set(inner)) == len(inner)
                and not any(map(data.encloses.get, inner))
                for outer, inner in data.encloses.items()
            ),
            "structures of data.structures, each enclosing distinct others that enclose none",
        ),
        ("data.region", data.region in ("centre", "found"), "'centre' or 'found'"),
        ("data.overview_spacing_mm", 1e-3 <= data.overview_spacing_mm <= 1e3, "0.001 to 1000"),
        (
            "data.shape",
            all(6 <= n < 4096 and n % divisor == 0 for n in data.shape) and max(data.shape) > divisor,
            f"multiples of {divisor} from 6 to 4095, not all {divisor}",
        ),
        (
            "data.shape",
            data.shape[0] != 2 * divisor,
            f"another first number than {2 * divisor}: over two voxels at the"
            " bottleneck torch's bfloat16 convolutions have wrong gradients on CPUs",
        ),
        ("data.spacing_mm", 1e-3 <= data.spacing_mm <= 1e3, "0.001 to 1000"),
        ("data.intensity", data.intensity in ("window", "percentile"), "'window' or 'percentile'"),
        ("data.window_hu", data.window_hu > 0, "a positive number"),
        ("data.percentiles", 0 <= data.percentiles[0] < data.percentiles[1] <= 100, "two rising numbers in 0 to 100"),
        (
            "data.intensity_statistics",
            data.intensity_statistics is None or _is_sound(data.intensity_statistics),
            f"at least 1 case, {len(QUANTILES)} means and a covariance of as many rows and columns",
        ),
        ("data.validation_cases", 1 <= data.validation_cases < 2**31, "at least 1 and less than 2^31"),
        (
            "network.encoder_channels",
            levels >= 2 and all(0 < n <= MOST_CHANNELS for n in network.encoder_channels),
            f"at least two positive widths of at most {MOST_CHANNELS}",
        ),
        (
            "network.decoder_channels",
            len(network.decoder_channels) == levels - 1
            and all(0 < n <= MOST_CHANNELS for n in network.decoder_channels),
            f"{levels - 1} positive widths of at most {MOST_CHANNELS}, one fewer than encoder_channels",
        ),
        ("network.dropout", 0 <= network.dropout < 1, "a number in [0, 1)"),
        (
            "network.localiser_channels",
            2 <= len(network.localiser_channels) <= 6
            and all(0 < n <= MOST_CHANNELS for n in network.localiser_channels),
            f"two to six positive widths of at most {MOST_CHANNELS}",
        ),
        ("network.template", network.template in ("mean", "centred"), "'mean' or 'centred'"),
        ("network.template_subdivisions", 0 <= network.template_subdivisions <= 7, "0 to 7"),
        ("network.stage_levels", set(read) <= set(names) and all(network.stage_levels), f"names among {names}"),
        (
            "network.stage_channels",
            len(network.stage_channels) == len(network.stage_levels) > 0
            and all(0 < n <= MOST_CHANNELS for n in network.stage_channels),
            f"one positive width for each entry of stage_levels, at most {MOST_CHANNELS}",
        ),
        ("network.displacement_factor", network.displacement_factor > 0, "a positive number"),
        ("loss.route", loss.route in ("exact", "deep"), "'exact' or 'deep'"),
        (
            "loss.drn_config",
            loss.route == "exact" or loss.drn_config is not None,
            "the config of a pretrained DeepRepresentationNetwork for the deep route",
        ),
        ("loss.temperature", loss.temperature > 0, "a positive number"),
        ("loss.laplacian_epochs", 1 <= loss.laplacian_epochs < 2**31, "at least 1 and less than 2^31"),
        *(
            (f"loss.{name}", getattr(loss, name) >= 0, "a number of at least 0")
            for name in ("occupancy", "segmentation", "surface", "laplacian_start", "laplacian_end")
        ),
        ("training.repeats", 1 <= training.repeats < 2**31, "at least 1 and less than 2^31"),
        ("training.drn_learning_rate", 0 <= training.drn_learning_rate <= 1, "0 to 1"),
    ]


def _is_sound(statistics: IntensityStatistics) -> bool:
    sizes = {len(statistics.mean), len(statistics.covariance), *map(len, statistics.covariance)}
    return 1 <= statistics.cases < 2**31 and sizes == {len(QUANTILES)}


def _drn_checks(config: DrnConfig):
    """The same for the DeepRepresentationNetwork."""
    network, shapes, training = config.network, config.shapes, config.training
    groups = max(network.groups, 1)
    divisor = max(network.subvoxels, 1) * 2 ** min(max(len(network.channels) - 1, 0), MOST_LEVELS)
    return [
        ("network.groups", 1 <= network.groups < 2**16, "at least 1"),
        ("network.subvoxels", 1 <= network.subvoxels <= 8, "1 to 8"),
        (
            "network.channels",
            bool(network.channels) and all(0 < n <= MOST_CHANNELS and n % groups == 0 for n in network.channels),
            f"at least one width of at most {MOST_CHANNELS}, each a multiple of network.groups, {groups}",
        ),
        (
            "network.blocks",
            len(network.blocks) == len(network.channels) and all(1 <= n <= 100 for n in network.blocks),
            f"1 to 100 for each of {len(network.channels)} stages",
        ),
        (
            "network.shape",
            all(3 * divisor <= n <= 1024 and n % divisor == 0 for n in network.shape),
            f"multiples of {divisor} from {3 * divisor} to 1024 for {len(network.channels)} stages",
        ),  # see data.shape
        ("network.graph_channels", 1 <= network.graph_channels <= MOST_CHANNELS, f"1 to {MOST_CHANNELS}"),
        ("network.graph_blocks", 0 <= network.graph_blocks <= 100, "0 to 100"),
        ("network.dropout", 0 <= network.dropout < 1, "a number in [0, 1)"),
        ("network.template_subdivisions", 0 <= network.template_subdivisions <= 7, "0 to 7"),
        *(
            (
                f"shapes.{name}",
                0 < getattr(shapes, name)[0] <= getattr(shapes, name)[1] <= 1,
                "two rising numbers from above 0 to 1",
            )
            for name in ("radius", "semi_axis", "tube_radius", "cup_radius")
        ),
        *(
            (f"shapes.{name}", 0 <= getattr(shapes, name) <= 1, "a share from 0 to 1")
            for name in ("ellipsoids", "tubes", "cups")
        ),
        (
            "shapes.ellipsoids",
            shapes.ellipsoids + shapes.tubes + shapes.cups <= 1 + 1e-9,
            "shares of ellipsoids, tubes and cups that sum to at most 1",
        ),
        ("shapes.tube_length", 0 < shapes.tube_length[0] <= shapes.tube_length[1] <= 10, "two rising numbers to 10"),
        ("shapes.tube_angle_rad", 0 <= shapes.tube_angle_rad < 2 * math.pi, "a number from 0 to below 2 pi"),
        ("shapes.cup_wall", 0 < shapes.cup_wall[0] <= shapes.cup_wall[1] < 1, "two rising numbers in (0, 1)"),
        (
            "shapes.cup_rim_rad",
            -1.5 <= shapes.cup_rim_rad[0] <= shapes.cup_rim_rad[1] <= 1.5,
            "two rising numbers from -1.5 to 1.5",
        ),
        ("shapes.control_points", 1 <= shapes.control_points < 2**16, "at least 1"),
        *(
            (f"shapes.{name}", 0 <= getattr(shapes, name) < limit, f"a number from 0 to below {limit}")
            for name, limit in (
                ("bend", 10),
                ("translation", 1),
                ("rotation_rad", 10),
                ("scale", 1),
                ("shear", 1),
                ("radial", 1),
                ("grid", 1),
                ("noise", 1),
            )
        ),
        ("training.shapes", 1 <= training.shapes < 2**31, "at least 1 and less than 2^31"),
        ("training.validation_shapes", 1 <= training.validation_shapes <= 10**5, "1 to 100000"),
    ]


def _training_checks(training):
    return [
        *(
            (f"training.{name}", 1 <= getattr(training, name) < 2**31, "at least 1 and less than 2^31")
            for name in ("epochs", "batch_size", "validate_every")
        ),
        ("training.seed", 0 <= training.seed < 2**32, "0 to 2^32 - 1"),
        ("training.learning_rate", 0 < training.learning_rate <= 1, "a positive number of at most 1"),
        (
            "training.learning_rate_end",
            0 <= training.learning_rate_end <= training.learning_rate,
            "a number from 0 to learning_rate",
        ),
        ("training.weight_decay", 0 <= training.weight_decay <= 1, "0 to 1"),
    ]


def _apply_override(tree: dict, override: str):
    key, equals, text = override.removeprefix("--").partition("=")
    if not (override.startswith("--") and equals):
        raise InputError(f"{shorten(override)}: wanted an override of the form --section.key=value")
    try:
        value = parse_json(text)
    except json.JSONDecodeError:
        value = text
    except ValueError as error:
        raise InputError(f"{shorten(override)}: wanted a value that can be used, found an error: {error}") from error
    if key in PATH_KEYS and value is not None and not isinstance(value, str):
        value = text  # a folder may be called 2024
    if key in PATH_KEYS and isinstance(value, str):
        value = str(Path(value).absolute())
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise InputError(f"--{shorten(key)}: {shorten(section)} is not a section of the config")
    tree[name] = value


def _convert(value, wanted, key: str, source: str):
    """`value` from JSON as the annotated type `wanted`; `key` and `source` name it in errors."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        hints = typing.get_type_hints(wanted)
        for name in value:
            if name not in hints:
                raise InputError(f"{source}: unknown key {shorten(key + name)}, known here: {', '.join(hints)}")
        return wanted(**{name: _convert(item, hints[name], f"{key}{name}.", source) for name, item in value.items()})
    if origin is types.UnionType:
        return None if value is None else _convert(value, arguments[0], key, source)
    if origin in (tuple, list) and isinstance(value, list):
        repeated = origin is list or arguments[-1] is Ellipsis
        kinds = [arguments[0]] * len(value) if repeated else arguments
        if len(kinds) == len(value):
            return origin(_convert(item, kind, key, source) for item, kind in zip(value, kinds, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _convert(item, arguments[1], f"{key}{name}.", source) for name, item in value.items()}
    if wanted is float and type(value) in (int, float) and abs(value) <= 1e30:  # neither NaN nor infinite
        return float(value)
    if wanted is int and type(value) is int and abs(value) < 2**63:
        return value
    if wanted in (bool, str) and type(value) is wanted:
        return value
    name = getattr(wanted, "__name__", wanted) if origin is None else wanted
    raise InputError(f"{source}: {shorten(key[:-1]) or 'config'}: wanted {name}, found {_quote(value)}")


def _quote(value) -> str:
    """A value as JSON for a message."""
    try:
        return shorten(json.dumps(value))
    except RecursionError:
        return "lists or objects nested too deep to quote"
