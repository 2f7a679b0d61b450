"""Trainings of several processes, and trainings that signals stop, beside ones that were left alone.

    python tests/parallel_runs.py FOLDER

A part of test_processes.py, in one process for all trainings: with one thread it can be forked, which spares the
imports. FOLDER holds data, config.json and drn.json. Prints, in JSON, what each scenario found.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which an optimiser imports, for two seconds

import implicitmeshnet_train
import pretrain_drn
from implicitmeshnet.script import run_script
from implicitmeshnet.surfaces import figures
from implicitmeshnet.training import loop

figures.RENDER_PIXELS = 40
torch.cpu._is_avx512_bf16_supported = lambda: False  # in float32 the order of sums makes less of a difference
SCRIPTS = {"config.json": implicitmeshnet_train, "drn.json": pretrain_drn}
EVERY_STEP = "--training.checkpoint_minutes=1e-9"


class Job:
    """A training in processes of their own, its output in files of the run's name."""

    def __init__(self, folder: Path, config: str, name: str, count: int = 1, options: tuple[str, ...] = ()):
        self.run = folder / name
        self.said = [folder / f"{name}.{rank}.txt" for rank in range(count)]
        arguments = [f"--config={folder / config}", f"--training.run_dir={self.run}", "--device=cpu", *options]
        port = free_port()
        self.pids = []
        for rank, said in enumerate(self.said):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            self.pids.append(fork(SCRIPTS[config], arguments, said, variables))

    def statuses(self) -> list[int]:
        """How the processes ended: exit statuses, or a signal's number, negative."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]

    def last_lines(self) -> list[str]:
        """What each process said last; nothing for one that was killed."""
        return [said.read_text().rstrip("\n").rpartition("\n")[2] for said in self.said]

    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.run / "last.pt", weights_only=True)["network"]


def fork(script, arguments: list[str], said: Path, variables: dict[str, object]) -> int:
    """A process that runs a script under these variables, its output into a file; its number."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in variables.items()}
    sys.argv = [script.__name__, *arguments]
    file = said.open("w", buffering=1)
    sys.stdout = sys.stderr = file
    status = 0
    try:
        run_script(script.main)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        print(repr(error))
        status = 1
    file.flush()
    os._exit(status)


def free_port() -> int:
    """A port that nobody has, below those that the system hands out: another run's connections could take such a one
    before the process that is to listen there does."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as server:
            if server.connect_ex(("127.0.0.1", port)):
                return port


def difference(one: Job, other: Job) -> float:
    """The largest between the weights of two finished runs."""
    ours, theirs = one.weights(), other.weights()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def wait_for(path: Path):
    while not path.exists():
        time.sleep(0.01)


def two_equal_one(folder: Path, config: str) -> dict:
    jobs = [Job(folder, config, f"{config}_of_{count}", count) for count in (1, 2)]
    statuses = [job.statuses() for job in jobs]
    return {"statuses": statuses, "difference": difference(*jobs)}


def accumulated(folder: Path, config: str) -> dict:
    """Batches in parts; the Dice losses of a batch are no means over its cases, so they are left out."""
    jobs = []
    for parts in (1, 4):
        options = (f"--training.accumulate={parts}", "--loss.segmentation_dice=0", "--loss.occupancy_dice=0")
        jobs.append(Job(folder, config, f"{parts}_parts", options=options))
    statuses = [job.statuses() for job in jobs]
    return {"statuses": statuses, "difference": difference(*jobs)}


def stopped(folder: Path, config: str, count: int, number: int) -> dict:
    """Stopped by a signal to the last of its processes once there is a checkpoint, then resumed by one."""
    name = f"{config}_stopped_{count}"
    job = Job(folder, config, name, count, (EVERY_STEP,))
    wait_for(job.run / "last.pt")
    os.kill(job.pids[-1], number)
    statuses = job.statuses()
    said = job.last_lines()
    unfinished = torch.load(job.run / "last.pt", weights_only=True)["unfinished"]
    resumed = Job(folder, config, name)
    left_alone = Job(folder, config, f"{name}_not")
    return {
        "statuses": statuses,
        "said": said,
        "step": unfinished and unfinished["steps"],
        "resumed": resumed.statuses() + left_alone.statuses(),
        "difference": difference(resumed, left_alone),
    }


def stopped_while_saving_takes_long(folder: Path, config: str) -> dict:
    """What is saved when the other process has ended, which may be the end of the first one, too."""
    save = loop.save_checkpoint

    def save_slowly(*arguments):
        time.sleep(0.5)
        save(*arguments)

    loop.save_checkpoint = save_slowly
    job = Job(folder, config, f"{config}_slow", 2)
    loop.save_checkpoint = save
    wait_for(job.run / "log.jsonl")
    os.kill(job.pids[1], signal.SIGTERM)
    os.waitpid(job.pids[1], 0)
    unfinished = torch.load(job.run / "last.pt", weights_only=True)["unfinished"]
    os.waitpid(job.pids[0], 0)
    return {"epoch": unfinished and unfinished["number"]}


def died(folder: Path, config: str) -> dict:
    job = Job(folder, config, f"{config}_died", 2, (EVERY_STEP, "--training.epochs=1000"))
    wait_for(job.run / "last.pt")
    os.kill(job.pids[1], signal.SIGKILL)
    return {"statuses": job.statuses(), "said": job.last_lines()[0], "kept": (job.run / "last.pt").exists()}


def refused(folder: Path, config: str, *options: str) -> dict:
    job = Job(folder, config, f"{config}_refused", 2, options)
    return {"statuses": job.statuses(), "said": job.last_lines()}


def port_in_use(folder: Path, config: str) -> dict:
    global free_port
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        original, port = free_port, server.getsockname()[1]
        free_port = lambda: port  # noqa: E731
        job = Job(folder, config, f"{config}_port", 2)
        free_port = original
        os.waitpid(job.pids[0], 0)
        os.kill(job.pids[1], signal.SIGKILL)
        os.waitpid(job.pids[1], 0)
    return {"said": job.last_lines()[0]}


def main():
    folder = Path(sys.argv[1])
    found = {
        "two trainings": two_equal_one(folder, "config.json"),
        "two pretrainings": two_equal_one(folder, "drn.json"),
        "parts": accumulated(folder, "config.json"),
        "training stopped": stopped(folder, "config.json", 1, signal.SIGUSR1),
        "trainings stopped": stopped(folder, "config.json", 2, signal.SIGTERM),
        "pretrainings stopped": stopped(folder, "drn.json", 2, signal.SIGTERM),
        "slow": stopped_while_saving_takes_long(folder, "config.json"),
        "died": died(folder, "config.json"),
        "odd batch": refused(folder, "config.json", "--training.batch_size=3"),
        "port": port_in_use(folder, "config.json"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
