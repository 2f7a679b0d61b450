"""Save, load and resume: checkpoints hold tensors and plain values only, so they load with weights_only=True."""

import pickle
from pathlib import Path

import torch

from implicitmeshnet.config import Config, DrnConfig, load_config
from implicitmeshnet.drn import DeepRepresentationNetwork
from implicitmeshnet.io import InputError, atomic_path
from implicitmeshnet.network import ImplicitMeshNet, build_network


def save_checkpoint(path, state: dict):
    """Write a dictionary of tensors and plain values; through a temporary file."""
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise InputError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def load_checkpoint(path, device="cpu") -> dict:
    """Read what `save_checkpoint` wrote; InputError for a missing or unreadable file."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: wanted trained weights, found no such file") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
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
                f"network.{key}: wanted three numbers for each of {structures} structures, found {rows}; take the"
                " config that training writes beside its snapshot"
            )
    return _with_weights(build_network(config), path).to(device)


def load_drn(config_path, template_subdivisions: int, device="cpu") -> DeepRepresentationNetwork:
    """A pretrained DeepRepresentationNetwork for a template of so many subdivisions, in evaluation mode.

    Raises InputError for a config or weights that are missing or do not fit.
    """
    config = load_config(config_path, kind=DrnConfig)
    found = config.network.template_subdivisions
    if found != template_subdivisions:
        raise InputError(f"{config_path}: wanted network.template_subdivisions {template_subdivisions}, as the meshes"
                         f" have, found {found}")
    network = DeepRepresentationNetwork(config.network)
    return _with_weights(network, snapshot_path(config, config_path)).to(device)


def _with_weights(network, path):
    """The network with a snapshot's weights, in evaluation mode; InputError where the two do not fit."""
    state = load_checkpoint(path)
    wanted, found = network.state_dict(), state.get("network") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        raise InputError(f"{path}: wanted a snapshot with the entry 'network', found none")
    for name in wanted | found:
        shapes = [tuple(getattr(side[name], "shape", ())) if name in side else None for side in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{path}: does not fit the config: wanted {name} of shape {shapes[0]}, found {shapes[1]}")
    if not all(torch.isfinite(value).all() for value in found.values()):
        raise InputError(f"{path}: wanted finite weights, found NaN or infinity")
    network.load_state_dict(found)
    return network.eval()


def pick_device(name: str) -> torch.device:
    """'cpu', 'cuda' or 'mps' as a torch device; InputError where this machine has none."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name):
        present = ", ".join(key for key, has in available.items() if has)
        raise InputError(f"--device: wanted one of {present} on this machine, found {name}")
    return torch.device(name)
