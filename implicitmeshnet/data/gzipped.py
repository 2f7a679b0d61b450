"""Gzip streams, by ISA-L where it is installed (extra `fast`), which reads and writes several times as fast as zlib."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    from isal import igzip
    from isal.isal_zlib import error as isal_error
except ImportError:
    igzip = None
    isal_error = zlib.error

DamagedByIsal: type[Exception] = isal_error
"""What ISA-L raises for a damaged stream, where zlib raises zlib.error."""
LEVEL = 1
"""Of zlib, 1 to 9: label maps gain little by higher ones."""
ISAL_LEVEL = 2
"""Of ISA-L, 0 to 3."""


def reader(file: BinaryIO) -> gzip.GzipFile:
    """What an open gzip file holds, as a stream."""
    return gzip.GzipFile(fileobj=file) if igzip is None else igzip.IGzipFile(fileobj=file)


@contextmanager
def writer(path: Path) -> Iterator[gzip.GzipFile]:
    """Yield a stream into a new gzip file, which names neither itself nor the time: the same bytes, the same file."""
    kind = gzip.GzipFile if igzip is None else igzip.IGzipFile
    level = LEVEL if igzip is None else ISAL_LEVEL
    with path.open("wb") as file, kind("", "wb", level, file, 0) as stream:
        yield stream


def compress(data: bytes) -> bytes:
    """Data as a gzip file holds it."""
    if igzip is None:
        return gzip.compress(data, LEVEL, mtime=0)
    return igzip.compress(data, ISAL_LEVEL, mtime=0)
