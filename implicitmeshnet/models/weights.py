"""Save, load and resume: checkpoints hold tensors and plain values only, so they load with weights_only=True."""

import io
import warnings
from pathlib import Path

import torch

from implicitmeshnet.config import Config, DrnConfig, load_config
from implicitmeshnet.models.drn import DeepRepresentationNetwork
from implicitmeshnet.models.mesh_net import ImplicitMeshNet, build_network
from implicitmeshnet.script import InputError, atomic_path, reason, shorten

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_checkpoint(path, state: dict):
    """Write a dictionary of tensors and plain values; through a temporary file. The same state gives the same bytes."""
    buffer = io.BytesIO()  # torch itself would write the file's name into it, and not say why it cannot be written
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """Read what `save_checkpoint` wrote into main memory; InputError for a missing or unreadable file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on what is refused later
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: wanted trained weights, found no such file") from error
    except OSError as error:
        raise InputError(f"{shorten(path)}: cannot be read as a checkpoint ({reason(error)})") from error
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise InputError(f"{path}: wanted a checkpoint of tensors, found an unreadable file") from error


def save_snapshot(path, network):
    """Write the weights alone, floating-point tensors in half precision."""
    state = network.state_dict()
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_checkpoint(path, {"network": halved})


def snapshot_path(config, config_path) -> Path:
    """The weights that a config names: its `snapshot`, or best.pt beside the config file."""
    return Path(config.snapshot) if config.snapshot else Path(config_path).with_name("best.pt")


def load_network(config: Config, path, device="cpu") -> ImplicitMeshNet:
    """The config's network with a snapshot's weights, in evaluation mode; InputError where the two do not fit."""
    structures = len(config.data.structures)
    for key in ("template_centres", "template_radii"):
        rows = getattr(config.network, key)
        if config.network.template == "mean" and [len(row) for row in rows or ()] != [3] * structures:
            raise InputError(
                f"network.{key}: wanted three numbers for each of {structures} structures, found {shorten(rows)}; take"
                " the config that training writes beside its snapshot"
            )
    network = build_network(config)
    needless = None if network.localiser else "localiser."  # under data.region 'centre' nothing is localised
    return _with_weights(network, path, needless).to(device)


def load_drn(config_path, template_subdivisions: int, device="cpu") -> DeepRepresentationNetwork:
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
    return _with_weights(network, snapshot_path(config, config_path)).to(device)


def _with_weights(network, path, needless: str | None = None):
    """The network with a snapshot's weights, in evaluation mode; InputError where the two do not fit.

    Weights whose names begin with `needless` may be there and are left out.
    """
    state = load_checkpoint(path)
    found = state.get("network") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        raise InputError(f"{path}: wanted a snapshot with the entry 'network', found none")
    if needless:
        found = {name: value for name, value in found.items() if not str(name).startswith(needless)}
    found = dict(found)  # without the attributes that an OrderedDict may bring
    problem = misfit(found, network.state_dict())
    if problem:
        raise InputError(f"{path}: does not fit the config: {problem}")
    network.load_state_dict(found)
    return network.eval()


def misfit(found: dict, wanted: dict[str, torch.Tensor]) -> str:
    """Why the tensors of a file cannot take the place of others of the same names, in words; empty where they can."""
    for name in wanted | found:
        shapes = [_shape(side[name]) if name in side else None for side in (wanted, found)]
        if shapes[0] != shapes[1]:
            return f"wanted {shorten(name)} of shape {shapes[0]}, found {shorten(shapes[1])}"
        kind = found[name].dtype
        if kind not in REAL if wanted[name].is_floating_point() else kind != wanted[name].dtype:
            return f"wanted numbers like {wanted[name].dtype} in {name}, found {kind}"
        if not torch.isfinite(found[name]).all():
            return f"wanted finite numbers in {name}, found NaN or infinity"
    return ""


def _shape(value) -> tuple[int, ...] | str:
    """The shape of a tensor that holds its values one by one in memory, else a word on what it is instead."""
    if not isinstance(value, torch.Tensor):
        return f"no tensor but {type(value).__name__}"
    if value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided:
        return "a tensor that is nested, quantised, sparse or meta"
    return tuple(value.shape)


def restore(part: torch.nn.Module | torch.optim.AdamW, state):
    """Load the state of a network or its optimiser from a file; ValueError, in words, where it does not fit.

    The optimiser's settings stay as they are: the config says what they are, and the file need not be believed.
    """
    if not isinstance(state, dict):
        raise ValueError(f"wanted a state by name, found {type(state).__name__}")
    if isinstance(part, torch.nn.Module):
        state = dict(state)  # without the attributes that an OrderedDict may bring
        problem = misfit(state, part.state_dict())
    else:
        state = {"state": state.get("state"), "param_groups": part.state_dict()["param_groups"]}
        problem = _moments_misfit(state["state"], [value for group in part.param_groups for value in group["params"]])
    if problem:
        raise ValueError(problem)
    part.load_state_dict(state)


def _moments_misfit(found, parameters: list[torch.Tensor]) -> str:
    """`misfit` of AdamW's running means by the parameter's number; a parameter without gradient has none."""
    if not isinstance(found, dict):
        return f"wanted the optimiser's means by parameter, found {type(found).__name__}"
    for number, means in found.items():
        if not (type(number) is int and 0 <= number < len(parameters) and isinstance(means, dict)):
            return f"wanted the means of {len(parameters)} parameters by number, found others"
        parameter = parameters[number]
        problem = misfit(means, {"step": torch.ones(()), "exp_avg": parameter, "exp_avg_sq": parameter})
        if problem:
            return problem
        if means["step"] < 1 or (means["exp_avg_sq"] < 0).any():
            return "wanted a step of at least 1 and squares of at least 0, found less"
    return ""


def pick_device(name: str) -> torch.device:
    """'cpu', 'cuda', 'mps', or 'auto' for the fastest of them here, as a torch device; InputError where it is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [key for key, has in available.items() if has]
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise InputError(f"--device: wanted auto or one of {', '.join(present)} on this machine, found {shorten(name)}")
    return torch.device(name)
