"""Disks that are full: a limit on files' sizes, which works everywhere, and a real small file system."""

from __future__ import annotations

import os
import resource
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest

from benchmark.forked_cell import fork_server
from benchmark.runtime import Runtime

UNLIMITED = resource.RLIM_INFINITY


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Within, no file of this process grows beyond `size` bytes: EFBIG, as Python ignores SIGXFSZ."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def cells_full_after(size: int) -> Iterator[None]:
    """The same in every cell's process that is forked meanwhile, and not in the harness's own."""
    fork_server(Runtime(device="cpu", jobs=1, threads=1))
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    _, hard = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(server, resource.RLIMIT_FSIZE, (hard, hard))


def mount(folder: Path, *options: str) -> None:
    """A file system in memory at `folder`, seen by this process and its children alone."""
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)


def on_a_disk_of_its_own(work: Callable[[], None]) -> None:
    """Run `work` in a forked process that may mount what it likes. Skips where that is refused."""
    refused = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if refused.returncode:
        pytest.skip(f"no mounts of one's own here: {refused.stderr.strip()}")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            _unshare()
            work()
            code = 0
        except BaseException:
            os.write(write, traceback.format_exc()[-4000:].encode())
            code = 1
        os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    assert os.waitstatus_to_exitcode(status) == 0, said


def _unshare() -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    assert library.unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
