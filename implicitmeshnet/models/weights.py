"""Save, load and resume: checkpoints hold tensors and plain values only, so they load with weights_only=True."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from implicitmeshnet.config import Config, DrnConfig, load_config
from implicitmeshnet.models.drn import DeepRepresentationNetwork
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, build_network
from implicitmeshnet.script import InputError, reason, shorten
from implicitmeshnet.tensor_files import save_checkpoint

SEGMENTING = ("unet.head.", "unet.coarser_heads.")  # weights that have a row for each class
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PER_STRUCTURE = ("decoder.", *SEGMENTING)  # weights that have a row for each structure
TEMPLATE = ("template_centres", "template_radii")  # keys of a NetworkConfig that come with its snapshot
Network = TypeVar("Network", bound=torch.nn.Module)


def load_checkpoint(path: Path | str) -> Any:
    """Read into main memory what `save_checkpoint` wrote, or whatever else the file holds.

    Raises InputError for a missing or unreadable file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of tensors that `misfit` refuses later
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: wanted trained weights, found no such file") from error
    except OSError as error:
        raise InputError(f"{shorten(path)}: cannot be read as a checkpoint ({reason(error)})") from error
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise InputError(f"{path}: wanted a checkpoint of tensors, found an unreadable file") from error


def save_snapshot(path: Path | str, network: torch.nn.Module, config: Config | None = None) -> None:
    """Write a network's weights, floating-point tensors in half precision; InputError as `save_checkpoint`.

    With the `config` of an ImplicitMeshNet its structures' names come along, and where the data gave its template that
    template's centres and radii.
    """
    halved = {}
    for name, value in network.state_dict().items():
        halved[name] = value.half() if value.is_floating_point() else value
    snapshot: dict[str, Any] = {"network": halved}
    if config:
        snapshot["structures"] = list(config.data.structures)
    if config and config.network.has_mean_template:
        snapshot["template"] = {key: getattr(config.network, key) for key in TEMPLATE}
    save_checkpoint(path, snapshot)


def snapshot_path(config: Config | DrnConfig, config_path: Path | str) -> Path:
    """The file of a config's weights: the one that its `snapshot` names, or else best.pt beside the config file."""
    return Path(config.snapshot) if config.snapshot else Path(config_path).with_name("best.pt")


def load_network(config: Config, path: Path | str, device: torch.device | str = "cpu") -> ImplicitMeshNet:
    """The config's network with a snapshot's weights, in evaluation mode; InputError where the two do not fit.

    The template of a config that has none is the snapshot's.
    """
    snapshot = _read_snapshot(path)
    if config.network.has_mean_template:
        template = _template_of(config, snapshot.get("template"), path)
        config = replace(config, network=replace(config.network, **template))
    network = build_network(config)
    needless = None if network.localiser else "localiser."  # under data.region 'centre' nothing is localised
    return _with_weights(network, snapshot, path, needless).to(device)


def _template_of(config: Config, saved: Any, path: Path | str) -> dict[str, Any]:
    """The template's centres and radii, by TEMPLATE, that a config has or else a snapshot has `saved`.

    Raises InputError unless they are three numbers for each structure, and where config and snapshot contradict.
    """
    structures = len(config.data.structures)
    template = {}
    for key in TEMPLATE:
        own = getattr(config.network, key)
        other = saved.get(key) if isinstance(saved, dict) else None
        rows = other if own is None else own
        if not _is_rows_of_three(rows, structures):
            raise InputError(
                f"network.{key}: wanted three numbers for each of {structures} structures, found {shorten(rows)}; take"
                " the config that training writes beside its snapshot"
            )
        if other is not None and other != rows:
            raise InputError(
                f"{path}: does not fit the config: wanted its network.{key} {shorten(rows)}, found {shorten(other)}"
            )
        template[key] = rows
    return template


def _is_rows_of_three(rows: Any, count: int) -> bool:
    """Whether these are so many tuples of three finite numbers."""
    if not isinstance(rows, tuple) or len(rows) != count:
        return False
    return all(isinstance(row, tuple) and len(row) == 3 and all(map(_is_finite, row)) for row in rows)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Start:
    """Weights that another network starts from."""

    path: Path
    weights: dict[str, Any]
    structures: list[str] | None  # in the order of the weights; None where the file does not say


def read_start(path: Path | str) -> Start:
    """The weights of a snapshot or a checkpoint, or those that a JSON config names, with its structures.

    Raises InputError where there are none.
    """
    path = Path(path)
    names: Any = None
    if path.suffix == ".json":
        config = load_config(path)
        names = list(config.data.structures)
        path = snapshot_path(config, path)
    snapshot = _read_snapshot(path)
    if names is None:
        names = snapshot.get("structures")
    return Start(path, snapshot["network"], names if isinstance(names, list) else None)


def start_from(network: ImplicitMeshNet, start: Start, structures: Sequence[str]) -> list[str]:
    """Copy into a network, of these structures, the weights that fit; the names of those that do not.

    What each structure has of its own goes by the structure's name, or by its place where the start has no names.
    """
    places = _places(start, structures)
    left = []
    taken = network.state_dict()
    for name, wanted in taken.items():
        found = start.weights.get(name)
        if places is not None and isinstance(found, torch.Tensor) and name.startswith(PER_STRUCTURE):
            found = _rows_by_structure(wanted, found, places, name)
        problem = misfit({name: found}, {name: wanted})
        if problem:
            left.append(name)
        else:
            taken[name] = found
    network.load_state_dict(taken)
    return left


def _places(start: Start, structures: Sequence[str]) -> list[int | None] | None:
    """The place of each structure among the start's, None where it is not there; None without names."""
    if start.structures is None:
        return None
    return [start.structures.index(name) if name in start.structures else None for name in structures]


def _rows_by_structure(
    wanted: torch.Tensor, found: torch.Tensor, places: Sequence[int | None], name: str
) -> torch.Tensor:
    """`wanted` with the rows of `found` that belong to its structures; `found` itself where rows are of other sizes.

    The segmentation has a row for the background before those of the structures.
    """
    classes = name.startswith(SEGMENTING)
    rows = {0: 0} if classes else {}
    for structure, place in enumerate(places):
        if place is not None:
            rows[structure + classes] = place + classes
    fits = found.ndim == wanted.ndim and found.shape[1:] == wanted.shape[1:]
    if not fits or max(rows.values(), default=0) >= len(found):
        return found
    merged = wanted.clone()
    for row, source in rows.items():
        merged[row] = found[source]
    return merged


def load_drn(
    config_path: Path | str, template_subdivisions: int, device: torch.device | str = "cpu"
) -> DeepRepresentationNetwork:
    """A pretrained DeepRepresentationNetwork for a template of so many subdivisions, in evaluation mode.

    Raises InputError for a config or weights that are missing or do not fit.
    """
    config = load_config(config_path, kind=DrnConfig)
    found = config.network.template_subdivisions
    if found != template_subdivisions:
        raise InputError(
            f"{config_path}: wanted network.template_subdivisions {template_subdivisions}, as the meshes"
            f" have, found {found}"
        )
    network = DeepRepresentationNetwork(config.network)
    path = snapshot_path(config, config_path)
    return _with_weights(network, _read_snapshot(path), path).to(device)


def _read_snapshot(path: Path | str) -> dict[str, Any]:
    """What `save_snapshot` wrote, weights under 'network'; InputError for anything else."""
    state = load_checkpoint(path)
    if not (isinstance(state, dict) and isinstance(state.get("network"), dict)):
        raise InputError(f"{path}: wanted a snapshot with the entry 'network', found none")
    return state


def _with_weights(network: Network, snapshot: dict[str, Any], path: Path | str, needless: str | None = None) -> Network:
    """The network with the weights of a snapshot from `path`, in evaluation mode; InputError where they do not fit.

    The snapshot may hold weights whose names begin with `needless`; these are left out.
    """
    found = snapshot["network"]
    if needless:
        found = {name: value for name, value in found.items() if not str(name).startswith(needless)}
    found = dict(found)  # without the attributes that an OrderedDict may bring
    problem = misfit(found, network.state_dict())
    if problem:
        raise InputError(f"{path}: does not fit the config: {problem}")
    network.load_state_dict(found)
    return network.eval()


def misfit(found: dict[str, Any], wanted: dict[str, torch.Tensor]) -> str:
    """Why the values of a file cannot take the place of tensors of the same names, in words; empty where they can."""
    for name in wanted | found:
        wanted_shape = _shape(wanted[name]) if name in wanted else None
        found_shape = _shape(found[name]) if name in found else None
        if wanted_shape != found_shape:
            return f"wanted {shorten(name)} of shape {wanted_shape}, found {shorten(found_shape)}"
        kind = found[name].dtype
        wanted_kind = wanted[name].dtype
        # Any real type will do for weights, which are converted; integers must be of the very type.
        allowed = REAL if wanted_kind.is_floating_point else (wanted_kind,)
        if kind not in allowed:
            return f"wanted numbers like {wanted_kind} in {name}, found {kind}"
        if not torch.isfinite(found[name]).all():
            return f"wanted finite numbers in {name}, found NaN or infinity"
    return ""


def _shape(value: Any) -> tuple[int, ...] | str:
    """The shape of an ordinary dense tensor; of anything else, what it is in words, which equals no shape."""
    if not isinstance(value, torch.Tensor):
        return f"no tensor but {type(value).__name__}"
    if value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided:
        return "a tensor that is nested, quantised, sparse or meta"
    return tuple(value.shape)


def restore(part: torch.nn.Module | torch.optim.AdamW, state: Any) -> None:
    """Load the state of a network or its optimiser that was read from a file.

    Raises ValueError, with the reason in words, where it does not fit. The optimiser's settings, such as its learning
    rate, stay as the config has set them; those in the file are ignored.
    """
    if not isinstance(state, dict):
        raise ValueError(f"wanted a state by name, found {type(state).__name__}")
    if isinstance(part, torch.nn.Module):
        state = dict(state)  # without the attributes that an OrderedDict may bring
        problem = misfit(state, part.state_dict())
    else:
        state = {"state": state.get("state"), "param_groups": part.state_dict()["param_groups"]}
        parameters = [value for group in part.param_groups for value in group["params"]]
        problem = _moments_misfit(state["state"], parameters)
    if problem:
        raise ValueError(problem)
    part.load_state_dict(state)


def _moments_misfit(found: Any, parameters: list[torch.Tensor]) -> str:
    """`misfit` of AdamW's running means, a dictionary by the parameter's number.

    A parameter that never had a gradient has no means.
    """
    if not isinstance(found, dict):
        return f"wanted the optimiser's means by parameter, found {type(found).__name__}"
    for number, means in found.items():
        known = type(number) is int and 0 <= number < len(parameters)
        if not (known and isinstance(means, dict)):
            return f"wanted the means of {len(parameters)} parameters by number, found others"
        parameter = parameters[number]
        problem = misfit(means, {"step": torch.ones(()), "exp_avg": parameter, "exp_avg_sq": parameter})
        if problem:
            return problem
        if means["step"] < 1 or (means["exp_avg_sq"] < 0).any():
            return "wanted a step of at least 1 and squares of at least 0, found less"
    return ""


def pick_device(name: str) -> torch.device:
    """The torch device of a name: 'cpu', 'cuda', 'mps', or 'auto' for the fastest of them on this machine.

    Raises InputError for any other name and for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [key for key, has in available.items() if has]
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise InputError(f"--device: wanted auto or one of {', '.join(present)} on this machine, found {shorten(name)}")
    return torch.device(name)
