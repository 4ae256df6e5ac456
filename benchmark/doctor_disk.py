"""The work dir: is it writable, are locks and renames true, is there room, is it fast? No torch."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.commands.text import size
from benchmark.doctor import Asked, Finding, failed, ok, warning
from benchmark.file_lock import try_lock
from benchmark.layout import check_work_dir
from protocols.errors import HarnessError
from protocols.files import write_atomically

LEAST_FREE, LITTLE_FREE = 1e9, 20e9  # below the second a campaign of many cells deserves a look at `plan`
LEAST_FREE_FILES = 10_000
WRITTEN_BYTES = 64 * 1024**2
SMALL_FILES, SMALL_BYTES = 40, 4096
SLOW_BYTES_PER_SECOND = 50e6  # a ViT-B's state of 1 GB would take 20 s, as long as between two checkpoints
SLOW_SMALL_FILE_SECONDS = 0.1  # a cell writes some dozens that must be on the disk before it goes on
WAIT_SECONDS, FREE_SECONDS = 20.0, 20.0
_EXCLUDED, _GOT_IT, _NO_LOCKS = 0, 1, 2


def work_dir(asked: Asked) -> Iterator[Finding]:
    """Whether results can be written there, and how much room there is."""
    check_work_dir(asked.work_dir)
    if asked.scratch is None:
        yield failed(
            "work dir",
            f"no folder can be made in {asked.work_dir}",
            "give another with --work-dir, or make room and permissions there",
        )
        return
    status = os.statvfs(asked.scratch)
    free, files = shutil.disk_usage(asked.scratch).free, status.f_favail
    text = f"{size(free)} free for {asked.work_dir}"
    if free < LEAST_FREE:
        yield failed("work dir", text, "make room, or give another with --work-dir")
    elif free < LITTLE_FREE:
        yield warning("work dir", text, "plan --protocol P says what your cells need")
    elif status.f_files and files < LEAST_FREE_FILES:
        yield warning("work dir", f"{text}, but only {files:,} more files", "delete files that nobody needs")
    else:
        yield ok("work dir", text)


def locks(asked: Asked) -> Iterator[Finding]:
    """Whether a lock keeps a second process out, and is free again when its owner was killed."""
    assert asked.scratch is not None
    path = asked.scratch / "lock"
    remedy = (
        "have it mounted with locks (Lustre: -o flock; NFS: without nolock), or give a --work-dir on another "
        "file system"
    )
    with path.open("w") as mine:
        if not try_lock(mine):
            yield failed("locks", "a lock that nobody holds cannot be had", remedy)
            return
        second = _in_process(_try, path)
    if second != _EXCLUDED:
        how = "a second process got the same lock" if second == _GOT_IT else "a second process cannot lock"
        yield failed("locks", f"{how}: two runs could write the same cell", remedy)
        return
    _in_process(_lock_and_die, path)
    with path.open("w") as mine:
        deadline = time.monotonic() + FREE_SECONDS
        while not (is_free := try_lock(mine)) and time.monotonic() < deadline:
            time.sleep(0.05)  # a server may take a moment to hear of it
    if is_free:
        yield ok("locks", "a second process is kept out; a killed one's lock is free again")
    else:
        yield failed("locks", "the lock of a process that was killed stays: nothing could go on", remedy)


def _in_process(target: Callable[[Path], None], path: Path) -> int | None:
    """Exit code of a process of its own that does it; negative where a signal ended it."""
    process = multiprocessing.get_context("fork").Process(target=target, args=(path,))
    process.start()
    process.join(WAIT_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _try(path: Path) -> None:
    with path.open("w") as file:
        try:
            is_mine = try_lock(file)
        except HarnessError:
            os._exit(_NO_LOCKS)
        os._exit(_GOT_IT if is_mine else _EXCLUDED)


def _lock_and_die(path: Path) -> None:
    with path.open("w") as file:
        try_lock(file)
        os.kill(os.getpid(), signal.SIGKILL)


def renames(asked: Asked) -> Iterator[Finding]:
    """Whether a file can be replaced whole under a reader, and pushed to the disk with its folder."""
    assert asked.scratch is not None
    folder = asked.scratch
    path, old, new = folder / "renamed", b"old" * 1000, b"new" * 2000
    write_atomically(path, old)
    with path.open("rb", buffering=0) as reader:
        begun = reader.read(10)
        write_atomically(path, new)
        seen = begun + reader.read()
    left = [one.name for one in folder.iterdir() if one.name.startswith(".renamed")]
    if seen != old or path.read_bytes() != new or left:
        what = (
            "a reader saw parts of two files"
            if seen != old
            else "a file that was replaced is not the new one"
        )
        yield failed(
            "renames",
            what,
            "give a --work-dir on another file system: a kill at the wrong moment would lose results here",
        )
    else:
        yield ok("renames", "a reader sees the old file or the new one; fsync of file and folder work")


def speed(asked: Asked) -> Iterator[Finding]:
    """One large file, and many small ones, until they are on the disk."""
    assert asked.scratch is not None
    if shutil.disk_usage(asked.scratch).free < LEAST_FREE:
        return  # what runs there must not meet a full disk for this
    folder, block = asked.scratch, os.urandom(1024**2)  # a file system that compresses gains nothing
    large = folder / "large"
    began = time.perf_counter()
    with large.open("wb") as stream:
        for _ in range(WRITTEN_BYTES // len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    rate = WRITTEN_BYTES / (time.perf_counter() - began)
    large.unlink()
    began = time.perf_counter()
    for number in range(SMALL_FILES):
        write_atomically(folder / f"small-{number}", block[:SMALL_BYTES])
    each = (time.perf_counter() - began) / SMALL_FILES
    text = f"{rate / 1e6:,.0f} MB/s in a file of 64 MB; {1e3 * each:.1f} ms for a small one, both with fsync"
    if rate < SLOW_BYTES_PER_SECOND or each > SLOW_SMALL_FILE_SECONDS:
        yield warning(
            "disk speed",
            f"{text}: checkpoints and records are waited for",
            "give a --work-dir on a local disk, or a larger --checkpoint-seconds",
        )
    else:
        yield ok("disk speed", text)
