"""The processes of one training, on one machine or several, and what they tell each other.

torch.distributed carries it: NCCL between GPUs, gloo between CPUs. torchrun starts the processes, or srun, with the
variables MASTER_ADDR and MASTER_PORT set as train.slurm sets them. A training that neither of them started is one
process, to which every function here gives back what it was given.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from implicitmeshnet.script import HOST, InputError, shorten

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others outside of steps: while one of them reads a large data set, say."""
SILENCE = timedelta(minutes=10)
"""How long it waits for their part of a step: no other sign tells it of a machine that is cut off."""
Items = TypeVar("Items", Sequence, torch.Tensor)


_patient: dist.ProcessGroup | None = None  # of all processes, which wait as long as PATIENCE in it


@dataclass(frozen=True)
class Place:
    """Which of a job's processes this one is."""

    rank: int = 0
    local: int = 0
    """Its number among those of its machine."""
    count: int = 1


def place() -> Place:
    """The place that torchrun or srun has given this process; InputError where their variables are no such place."""
    for names in (TORCHRUN, SRUN):
        found = [os.environ.get(name) for name in names]
        if None in found:
            continue
        numbers = [_number(name) for name in names]
        own = Place(*numbers)
        if not own.rank < own.count:
            raise InputError(f"{names[0]}: wanted a number below {names[2]} = {own.count}, found {own.rank}")
        if own.count > 1:
            _check_meeting_place(own.count)
        return own
    return Place()


def _number(name: str) -> int:
    found = os.environ[name]
    if not (found.isdecimal() and int(found) < 2**31):
        raise InputError(f"{name}: wanted the number that torchrun or srun sets, found {shorten(repr(found))}")
    return int(found)


def _check_meeting_place(count: int) -> None:
    """Raise InputError where nothing says at which address the processes find each other."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(f"{name}: wanted where the {count} processes of this job meet, found it not set")
    _number("MASTER_PORT")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of the job for a block, and yield the device of this one, of the kind of `device`.

    All but the first print nothing in it; what is wrong they say too. Raises InputError where there is no device for
    each process of a machine, where the processes do not find each other, and where another process has gone.
    """
    own = place()
    if own.count == 1:
        yield device
        return
    device = _device_of(own, device)
    _join(own, device)
    try:
        with nullcontext() if own.rank == 0 else _no_output():
            yield device
    except RuntimeError as error:
        if not _is_of_the_others(error):
            raise
        raise InputError(
            f"process {own.rank} of {own.count} on {HOST}: wanted to go on with the others, found one gone"
        ) from error
    finally:
        dist.destroy_process_group()


def _device_of(own: Place, device: torch.device) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"--device: wanted cpu or cuda for {own.count} processes, found {device.type}")
    found = torch.cuda.device_count()
    if own.local >= found:
        raise InputError(
            f"--device: wanted a GPU for each process on {HOST}, found {found} for process {own.local + 1} of them"
        )
    device = torch.device("cuda", own.local)
    torch.cuda.set_device(device)
    return device


def _join(own: Place, device: torch.device) -> None:
    # What is said about numbers on the host goes through gloo, so that nobody waits for a GPU to say it.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    global _patient
    try:
        dist.init_process_group(backend, rank=own.rank, world_size=own.count, timeout=SILENCE)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise InputError(f"MASTER_PORT: wanted a free port, found {address} in use") from error
        first_line = shorten(str(error).partition("\n")[0])
        raise InputError(
            f"process {own.rank} of {own.count} on {HOST}: cannot join the others at {address} ({first_line})"
        ) from error


def _is_of_the_others(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached; gloo's own have no type of their own."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "Connection", "peer"))


@contextmanager
def _no_output() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def share(items: Items) -> Items:
    """The items that are this process's part, every n-th of n processes."""
    return items[rank() :: count()]


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes, differentiable.

    The gradient of a loss made of such sums, averaged over the processes as `parallel` does, is that of the whole
    batch.
    """
    return values if count() == 1 else _Total.apply(values)


class _Total(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
        sums = values.clone()
        dist.all_reduce(sums)
        return sums

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _Total.forward(None, gradient)


def largest(number: int) -> int:
    """The largest of the processes' numbers; all wait here for each other, but for no device."""
    if count() == 1:
        return number
    agreed = torch.tensor(number)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed)


def gathered(value: Any) -> list[Any]:
    """The plain values of all processes, by rank, however long they take."""
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value, _patient)
    return values


def wait() -> None:
    """Go on when all processes are here."""
    gathered(None)


def parallel(network: torch.nn.Module, device: torch.device) -> Callable[..., Any]:
    """A network's call, whose gradients are the mean over the processes; they begin with the first one's weights."""
    if count() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of one kernel's gradient, which is a few numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for what older ones call so
        return DistributedDataParallel(network, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
