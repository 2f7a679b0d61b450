"""What every script shares: one-sentence errors with exit status 2, and files that appear whole or not at all."""

import csv
import ctypes
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input: one sentence that names the file or argument, what was wanted and what was found."""


def run_script(main):
    """Call main(); bad input becomes one line on stderr and exit status 2, an interrupt exit status 130."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"{Path(sys.argv[0]).name}: {error.filename or 'a file'}: cannot be read or written ({error.strerror})",
              file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)


def keep_freed_memory():
    """Let the process keep the memory it frees, for the next step of a training, instead of handing it back.

    Big tensors are else mapped and touched afresh in every step, page by page, which costs as much as the arithmetic
    on them. glibc alone knows the settings; elsewhere nothing changes.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(trim_threshold, -1)  # never
        libc.mallopt(mmap_max, 0)


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path` (same suffix); rename it onto `path` on success, remove it on failure.

    Raises InputError when the folder cannot be written.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path, rows: list[dict]):
    """Write rows of one set of keys as CSV with a header, floats with six digits; through a temporary file."""
    with atomic_path(path) as temporary, temporary.open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                         for row in rows)
