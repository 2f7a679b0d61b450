"""What every script shares: one-sentence errors with exit status 2, and files that appear whole or not at all."""

import argparse
import csv
import ctypes
import json
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

QUOTED = 300  # letters that a message quotes of what it found
COME_AGAIN = 75  # the exit status of a training that was stopped, EX_TEMPFAIL of sysexits.h
LONGEST_PATH = 4095  # bytes, on Linux
HOST = platform.node()[:64]  # a file name has room for no more
PARTIAL = re.compile(r"\..*\.partial-(?P<host>.*)-(?P<process>\d{1,9})-\w{8}(\..*)?", re.DOTALL)
"""Names of the temporary files that `atomic_path` makes: whose they are, a random part and the target's suffix."""


class InputError(ValueError):
    """Bad input: one sentence that names the file or argument, what was wanted and what was found."""


class Stopped(Exception):
    """Stopped by a signal, in one sentence; nothing is lost, and the same command goes on."""


def shorten(found: object, longest: int = QUOTED) -> str:
    """The text of something found, as a message quotes it: if too long, only its beginning and its whole length."""
    text = str(found)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text)} characters)"


def reason(error: Exception) -> str:
    """Why something failed, in the system's words where it has some; never empty."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def exit_at_interrupt() -> None:
    """Let Ctrl-C end the process at once, with the same line as in `run_script`, until `run_script` is called.

    This is for the seconds that a script's imports take. A KeyboardInterrupt there would end in a traceback, or in an
    ImportError where it meets a library's C code.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind nohup
        signal.signal(signal.SIGINT, _exit_interrupted)


def _exit_interrupted(*_: object) -> None:
    _say("interrupted")
    os._exit(130)


def training_arguments(description: str) -> tuple[argparse.Namespace, list[str]]:
    """What a training is called with: --config and --device, and beside them what overrides the config."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="--section.key=value overrides the config; docs/configs.md has the keys with their defaults and units",
    )
    parser.add_argument("--config", required=True, help="JSON config, see configs_implicitmeshnet/")
    parser.add_argument(
        "--device", default="auto", help="auto (the fastest there is), cpu, cuda or mps; default %(default)s"
    )
    return parser.parse_known_args()


def run_script(main: Callable[[], object]) -> None:
    """Call main() and end the process the way users and shells expect when it fails.

    Bad input, or a file that cannot be used, ends as one line on stderr with exit status 2, an interrupt as one line
    with status 130, a training that a signal stopped as one with status 75. A fault of our own keeps its traceback and
    Python's exit status, 1. Letters that the terminal's encoding lacks are printed as backslash escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is _exit_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except InputError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        _say(f"{shorten(error.filename or 'a file')}: cannot be read or written ({reason(error)})")
        sys.exit(2)
    except Stopped as stop:
        _say(str(stop))
        sys.exit(COME_AGAIN)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)


def _say(sentence: str) -> None:
    """One line on stderr after the script's name, control characters escaped, as a file's name may hold some."""
    line = re.sub(r"[\x00-\x1f\x7f]", lambda character: repr(character[0])[1:-1], sentence)
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)


def core_count() -> int:
    """The cores that this process may use: those that it may run on, in a Slurm job at most those of its task."""
    # macOS and Windows do not say on which cores a process may run.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if not allotted.isdecimal():
        return cores
    return min(cores, max(int(allotted), 1))


def keep_freed_memory() -> None:
    """Let the process keep the memory it frees, for the next step of a training, instead of handing it back.

    Otherwise big tensors are mapped and touched afresh in every step, page by page, which costs as much as the
    arithmetic on them. Only glibc has these settings; with another C library nothing changes.
    """
    trim_threshold = -1  # M_TRIM_THRESHOLD of glibc's malloc.h
    mmap_max = -4  # M_MMAP_MAX
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(trim_threshold, -1)  # never hand free memory back ...
        libc.mallopt(mmap_max, 0)  # ... and take none that is handed back when freed


def check_path(name: str, argument: str) -> None:
    """Raise InputError where no file can have this name; `argument` is what the message calls its origin."""
    try:
        possible = "\0" not in name and len(os.fsencode(name)) <= LONGEST_PATH
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise InputError(f"{argument}: wanted a path that a file can have, found {shorten(repr(name))}")


def read_json(path: Path | str, meaning: str) -> dict:
    """The object in a JSON file, in UTF-8, 16 or 32 with or without a byte-order mark.

    `meaning` is what messages call the file's content, such as "a config". Raises InputError for a file that cannot be
    read or is no JSON object, in which a key stands twice, or whose brackets are nested too deep.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        raise InputError(f"{shorten(path)}: cannot be read as {meaning} ({reason(error)})") from error
    try:
        tree = parse_json(data)
    except ValueError as error:
        raise InputError(f"{path}: wanted {meaning} in JSON, found an error: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: wanted {meaning}, one JSON object, found {type(tree).__name__}")
    return tree


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises json.JSONDecodeError for what is no JSON, and another ValueError where a key stands twice or brackets are
    nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if name in tree:
            raise ValueError(f"the key {shorten(name)} stands twice")
        tree[name] = value
    return tree


def make_folder(path: Path | str, argument: str) -> Path:
    """Make a folder where it is missing, and return its path.

    Tries whether a file can be written there, and removes files that killed processes left half-written. Raises
    InputError, naming `argument`, where the folder cannot be made or written to.
    """
    path = Path(path)
    check_path(str(path), argument)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{argument}: wanted a folder, found the file {path}")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"\n")
        remove_partials(path)
    except OSError as error:
        raise InputError(f"{argument}: {shorten(path)} cannot be written to ({reason(error)})") from error
    return path


def remove_partials(folder: Path, names: Collection[str] = ()) -> None:
    """Remove the temporary files of `atomic_path` that killed processes left in a folder.

    These are the files of this machine's processes that no longer run, and all temporary files of the targets `names`,
    whichever machine made them: no other process may be writing those targets.
    """
    prefixes = tuple(f".{name}.partial-" for name in names)
    for path in folder.glob(".*.partial-*"):
        found = PARTIAL.fullmatch(path.name)
        left = found is not None and found["host"] == HOST and not _runs(int(found["process"]))
        if left or path.name.startswith(prefixes):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether this machine has a process of that number; True where that cannot be asked for."""
    if os.name == "posix":  # Windows has no harmless signal 0
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # somebody else's
            return True
    return True


@contextmanager
def locked(folder: Path | str, argument: str) -> Iterator[None]:
    """Keep other processes that call this out of a folder until the block or, in whatever way, the process ends.

    The folder is made where it is missing; at the end the folders made are removed again if they are empty. Raises
    InputError, naming `argument`, where another process holds the folder or it cannot be written to. On a file system
    without locks a warning is printed, and nobody is kept out.
    """
    folder = Path(folder)
    check_path(str(folder), argument)
    chain = (folder, *folder.parents)
    missing = [each for each in chain if not os.path.lexists(each)]
    try:
        make_folder(folder, argument)
        with _lock(folder / ".lock", argument):
            yield
    finally:
        for each in missing:
            with suppress(OSError):  # it holds something now
                each.rmdir()


@contextmanager
def _lock(path: Path, argument: str) -> Iterator[None]:
    """Hold a lock on a file, made for it and removed afterwards: NFS locks no folder, only a file open for writing."""
    taken = f"{argument}: wanted a folder that no other process uses, found {path.parent} used by"
    with path.open("a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(f"{taken} {shorten(file.read()) or 'another'}") from error
        except OSError as error:
            print(f"{path.parent}: cannot be locked ({reason(error)}); let no second process use it", file=sys.stderr)
        # A process that was just ending may have removed the very file that is locked here.
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
            raise InputError(f"{taken} another")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {HOST}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); rename it onto `path` on success, remove it on failure.

    So the file at `path` is whole at any time. The temporary name holds machine and process, so that `remove_partials`
    finds what a killed process left. Raises InputError where the folder cannot be written to.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    prefix = f".{path.name[:30]}.partial-{HOST}-{os.getpid()}-"  # a name may have 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    except OSError as error:
        raise InputError(f"{shorten(path)}: cannot be written ({reason(error)})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp lets the user alone read the file; it gets the rights that any new file has. Only setting the mask
        # tells it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path | str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of one set of keys as CSV with a header, floats with six digits; whole or not at all.

    Raises InputError where the file cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def write_json(path: Path | str, tree: dict[str, Any]) -> None:
    """Write an object as JSON, whole or not at all. Raises InputError where the file cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
