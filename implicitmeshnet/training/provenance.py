"""Where a run comes from: what each of its starts was called with, on which code, libraries, machine and data."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from implicitmeshnet.config import REPOSITORY
from implicitmeshnet.script import HOST, atomic_path, read_json
from implicitmeshnet.training import processes

LIBRARIES = ("implicitmeshnet", "torch", "numpy", "scipy", "nibabel", "scikit-image", "trimesh")
FILE = "provenance.json"
ENDS = 4096  # bytes at each end of a file that count; the last ones of a .nii.gz hold a checksum of all of it


def record_start(run_dir: Path, epochs: int, device: torch.device, files: Sequence[Path] = ()) -> None:
    """Add this start, after so many finished epochs, to the run's provenance.json, with the data set's fingerprint.

    Prints a warning where the run began with other `files`. Raises InputError where the file cannot be read or written.
    """
    path = run_dir / FILE
    starts = read_json(path, "a run's provenance").get("starts", []) if path.exists() else []
    own = this_start(epochs, device, files)
    before = starts[0].get("data") if starts and isinstance(starts[0], dict) else None
    if before and before != own["data"]:
        print(f"warning: {path}: wanted the data that the run began with, found other files", file=sys.stderr)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"starts": [*starts, own]}, indent=2) + "\n", encoding="utf-8")


def this_start(epochs: int, device: torch.device, files: Sequence[Path]) -> dict[str, Any]:
    """What this process knows of itself, as plain values."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "versions": {"python": platform.python_version()} | dict(versions(LIBRARIES)),
        "machine": f"{HOST}, {platform.system()}, {platform.machine()}",
        "device": f"{device.type} {accelerator}".strip(),
        "processes": processes.count(),
        "threads": torch.get_num_threads(),
        "finished_epochs": epochs,
        "data": {"files": len(files), "sha256": fingerprint(files)} if files else None,
    }


def versions(names: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    """Each library with its version, None where it is not installed."""
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, None


def commit() -> str | None:
    """The commit that the repository is at, followed by -changed where files differ from it; None outside of one."""
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        return None
    head = _output([git, "-C", str(REPOSITORY), "rev-parse", "HEAD"])
    changes = _output([git, "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no"])
    return f"{head}-changed" if head and changes else head


def _output(command: list[str]) -> str | None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the names, sizes and ends of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(size - ENDS, 0))
            digest.update(file.read(ENDS))
    return digest.hexdigest()
