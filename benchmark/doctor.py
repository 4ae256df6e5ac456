"""Checks of a machine, each in a process that a crash or a hang may take down: the command goes on. No torch.

A check is a generator of findings. Several run one after another in one process, for torch loads once; where
it ends or hangs, that check has failed and the others go on in a new one.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from benchmark.die_with_parent import die_with_parent
from benchmark.layout import SCRATCH_PREFIX
from protocols.errors import HarnessError

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
REINSTALL = "pip install --force-reinstall -r requirements.txt"
Status = Literal["ok", "warning", "FAILED"]
DISK_REMEDY = "make room and permissions there, or give another folder with --work-dir"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM)
OTHER_REMEDY = "this machine, or its container, does not give what the check needs: have that mended"
END = None  # what a process sends after the last finding of a check


@dataclass(frozen=True)
class Finding:
    """What was found, and unless it is ok what to do about it."""

    status: Status
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run would be given.

    `scratch` is a folder on the work dir's file system, None if none can be made.
    """

    work_dir: Path
    data_root: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = 0
    scratch: Path | None = None
    requirements: Path = REQUIREMENTS


@dataclass(frozen=True)
class Check:
    """`seconds` are its limit; what `is_slow` is left out of a quick examination.

    What `needs_scratch` is left out where no folder can be made in the work dir.
    """

    name: str
    find: Callable[[Asked], Iterator[Finding]]
    seconds: float = 30.0
    is_slow: bool = False
    needs_scratch: bool = False


def ok(what: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding("ok", what, found)


def warning(what: str, found: str, remedy: str) -> Finding:
    """Runs go on, slower or with other numbers."""
    return Finding("warning", what, found, remedy)


def failed(what: str, found: str, remedy: str) -> Finding:
    """Some run would fail, or its results could not be trusted."""
    return Finding("FAILED", what, found, remedy)


def examine(checks: Sequence[Check], asked: Asked) -> Iterator[Finding]:
    """The findings of all checks, in order, as they come. Raises nothing that a check raises."""
    waiting = list(checks)
    while waiting:
        with _process(tuple(waiting), asked) as (process, receiver):
            while waiting:
                check = waiting.pop(0)
                yield from (findings := _Findings(check, process, receiver))
                if not findings.are_whole:
                    break


class _Findings:
    """Those of one check, as its process sends them."""

    def __init__(
        self, check: Check, process: multiprocessing.process.BaseProcess, receiver: Connection
    ) -> None:
        self._check, self._process, self._receiver = check, process, receiver
        self.are_whole = False

    def __iter__(self) -> Iterator[Finding]:
        deadline = time.monotonic() + self._check.seconds
        while True:
            if not self._receiver.poll(max(0.0, deadline - time.monotonic())):
                yield failed(
                    self._check.name,
                    f"no answer within {self._check.seconds:g} s",
                    "find out what it waits for (a disk, a network, a driver), and try again",
                )
                return
            try:
                sent = self._receiver.recv()
            except EOFError:
                self._process.join()
                yield failed(
                    self._check.name,
                    f"the process that tried it {_ending(self._process.exitcode)}",
                    "a library or a driver is broken: install those of requirements.txt again",
                )
                return
            if sent is END:
                self.are_whole = True
                return
            yield sent


@contextmanager
def _process(
    checks: Sequence[Check], asked: Asked
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """A forked process at work on `checks`; it is gone afterwards, and what it started with it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(checks, asked, sender, os.getpid()))
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        receiver.close()


def _work(checks: Sequence[Check], asked: Asked, sender: Connection, parent: int) -> None:
    os.setsid()  # a group of its own, to be ended as one
    die_with_parent()
    if os.getppid() != parent:
        return  # it was gone before the line above
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # Libraries talk; what matters comes through the pipe.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for check in checks:
        try:
            for finding in check.find(asked):
                sender.send(finding)
        except HarnessError as error:
            what, _, remedy = str(error).partition("; ")  # as they are written
            sender.send(failed(check.name, what, remedy or "do what it says"))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            remedy = DISK_REMEDY if error.errno in OF_THE_DISK else OTHER_REMEDY
            sender.send(failed(check.name, f"{where}{error.strerror or error}", remedy))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            sender.send(
                failed(
                    check.name,
                    f"{type(error).__name__}: {first}",
                    f"what it tried does not work here: {REINSTALL}",
                )
            )
        sender.send(END)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def scratch_folder(work_dir: Path) -> Iterator[Path | None]:
    """A folder that is gone afterwards, in `work_dir` or, before that exists, in the nearest folder above it.

    None if none can be made there.
    """
    holder = work_dir
    while not holder.is_dir() and holder != holder.parent:
        holder = holder.parent
    try:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=holder))
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
