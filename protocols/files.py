"""Digests and atomic writes: what every room does to a file that others will trust."""

from __future__ import annotations

import hashlib
import os
import re
import time
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# All that numpy raises on arrays that are cut, altered or made up: it reads their headers as Python's.
DAMAGED_ARRAY = (
    ValueError, EOFError, OSError, OverflowError, MemoryError, RecursionError, SyntaxError, TypeError,
    tokenize.TokenError,
)  # fmt: skip
# What write_atomically leaves where its process is killed: .NAME.HOST-PID
_LEFTOVER = re.compile(r"\..+\.[^/]+-\d+")
LEFT_SECONDS = 3600.0  # far longer than any one file takes to be written


def shown_path(path: Path | str) -> str:
    """`path` as a user would write it: from the current folder, if it lies there."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def sha256_of_file(path: Path) -> str:
    """SHA-256 (hex) of the bytes of `path`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write so that a reader sees the old file or the whole new one; durable when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a file system give out the same process ids.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}")
    with naming(path, instead_of=temporary):
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line at the end of a file that one process at a time writes.

    A line that a full disk or a kill cut short stays as it is, and does not run into this one.
    """
    with naming(path), path.open("a+b", buffering=0) as stream:
        end = stream.seek(0, os.SEEK_END)
        is_torn = end > 0 and os.pread(stream.fileno(), 1, end - 1) != b"\n"
        start = "\n" if is_torn else ""
        rest = memoryview(f"{start}{line}\n".encode())
        while rest:  # a disk takes what it has room for, and says that it is full at the next write
            rest = rest[os.write(stream.fileno(), rest) :]


@contextmanager
def naming(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """An error of the file system within that names no file, or `instead_of`, names `path`.

    A failed write names none, and the name of an unfinished file helps nobody.
    """
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(instead_of)):
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise


def remove_leftovers(folder: Path, *, older_than: float = LEFT_SECONDS) -> None:
    """Remove unfinished files that killed processes left under `folder`, last written that long ago (s).

    They are never read, but they fill the disk. With 0 no other process may be writing there.
    """
    for path in folder.rglob(".*-*") if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(FileNotFoundError):  # its own process may still have finished it
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
