"""Trouble of a disk that no code can mend: it ends the run with a sentence, and is no failure of a cell.

Whatever was finished is whole, since nothing is written under its own name. So nothing is recorded, and the
same command goes on when there is room again. A cell's process ends with DISK; what it has to say goes
through a pipe, for the disk that is full may well be that of its log. Loads no torch.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmark.layout import CHECKPOINTS_NAME, ENCODING_NAME
from protocols.errors import HarnessError

DISK = 74  # EX_IOERR of sysexits.h
LAST_WORDS_VARIABLE = "BENCHMARK_LAST_WORDS"
REMEDIES = {
    errno.ENOSPC: "make room, and give the same command again",
    errno.EDQUOT: "make room within the quota, and give the same command again",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), and give the same command again",
    errno.EROFS: "have it mounted so that it can be written to, or give another folder",
    errno.EIO: "look at the disk or the network behind it (dmesg), and give the same command again",
}
_PIPE_BYTES = 4096  # what a pipe takes in one piece (PIPE_BUF)


class DiskTrouble(HarnessError):
    """What the disk did, to which file, what is safe and what to do.

    From a data loader's process torch makes it anew with a traceback in front, which is cut away here.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


def is_of_the_disk(error: BaseException | None) -> bool:
    """True for what a disk says that is full, over its quota, read-only or broken."""
    return isinstance(error, OSError) and error.errno in REMEDIES


def disk_trouble(error: BaseException, folder: Path) -> DiskTrouble | None:
    """`error`, or what it came from, in words, if a disk is the cause; `folder` is that of the cell."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiskTrouble):
            return seen
        if isinstance(seen, OSError) and is_of_the_disk(seen):
            file = os.fsdecode(seen.filename) if seen.filename else f"a file of {folder.name}"
            return DiskTrouble(
                f"{file}: {seen.strerror}; {what_is_safe(folder)}; {REMEDIES[seen.errno or 0]}"
            )
        seen = seen.__cause__ or seen.__context__
    return None


def what_is_safe(folder: Path) -> str:
    """What is kept of the cell in `folder`."""
    checkpoints = folder / CHECKPOINTS_NAME
    saved = sorted(path.stem.partition("-")[2] for path in checkpoints.glob("step-*.sha256"))
    if saved:
        return f"{folder.name} is saved up to step {int(saved[-1])}"
    shards = sum(1 for _ in (checkpoints / ENCODING_NAME).glob("*/done/*.json"))
    if shards:
        return f"{shards} finished shards of {folder.name} are kept"
    return "what was finished before is kept"


@contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """A disk that cannot give what stands in `file` is DiskTrouble, also out of a data loader's process."""
    try:
        yield
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise DiskTrouble(
            f"{file}: {error.strerror} while it was read; {REMEDIES[error.errno or 0]}"
        ) from error


class LastWords:
    """A pipe for a sentence of processes that were started by this one, whoever started them in between."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)

    @property
    def path(self) -> str:
        """Where a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._write}"

    def heard(self) -> str | None:
        """The first sentence that came, None without one."""
        try:
            said = os.read(self._read, _PIPE_BYTES)
        except BlockingIOError:
            return None
        return said.decode(errors="replace").partition("\n")[0]

    def close(self) -> None:
        """Nobody can say anything any more."""
        os.close(self._read)
        os.close(self._write)


def say_last(path: str, text: str) -> None:
    """Say `text` to whoever listens at `path`; nothing happens if nobody does."""
    line = " ".join(text.split()).encode()[: _PIPE_BYTES - 1] + b"\n"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):  # and not what has its number now
                os.write(descriptor, line)
        finally:
            os.close(descriptor)
