"""Digests and atomic writes: what every room does to a file that others will trust."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """SHA-256 (hex) of the bytes of `path`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write so that a reader sees the old file or the whole new one; durable when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a file system give out the same process ids.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
