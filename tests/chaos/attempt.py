"""One start of a command and one kill: when, whom, what it ended with, who was left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import moments
from tests.chaos.processes import MARK, is_listening, send, those, wait_until_gone

STARTUP = Path(__file__).parent / "startup"
# Generous: a machine may be five times slower than the one that this was written on.
ENDS_WITHIN = 60.0  # of a harness that is told to stop; it gives its cells as long to save their step
RUNS_AT_MOST = 900.0
GONE_WITHIN = 30.0  # the kernel ends orphans at once; the last of them may be writing a core of memory back
GOES_ON = "The same command goes on from here"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """`seconds` after its start, or once there is a `target` then; or before change number `change`."""

    target: str
    number: int
    seconds: float = 0.0
    change: int = 0

    def __str__(self) -> str:
        return f"{self.target} {signal.Signals(self.number).name}"


@dataclass(kw_only=True)
class Attempt:
    """How it went. `landed`: the signal was sent to a process that was running."""

    code: int
    landed: bool
    seconds: float | None = None  # from a polite signal to the harness, to its end
    was_listening: bool = True
    faults: list[str] = field(default_factory=list)
    errors: str = ""


def start(
    words: Sequence[str], moment: Moment | None, *, work_dir: Path, changes: Path | None = None
) -> Attempt:
    """Run the command to its end, disturbed at `moment`; `changes` gets a line for each change of a file."""
    mark = uuid.uuid4().hex
    fired = work_dir.parent / f"{mark}.fired"
    environment = _environment(mark, moment, work_dir, fired, changes)
    with (work_dir.parent / f"{mark}.err").open("w+") as errors:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            attempt = _disturb(process, moment, mark, fired)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        left = wait_until_gone(mark, seconds=GONE_WITHIN)
        attempt.faults += [f"left running: {one}" for one in left]
        for one in left:
            send(signal.SIGKILL, one.pid, to_group=False)
        errors.seek(0)
        attempt.errors = errors.read()
    if moment is not None:
        check_ending(attempt, moment)
    (work_dir.parent / f"{mark}.err").unlink()
    fired.unlink(missing_ok=True)
    return attempt


def _environment(
    mark: str, moment: Moment | None, work_dir: Path, fired: Path, changes: Path | None
) -> dict[str, str]:
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}
    if changes is not None or (moment is not None and moment.change):
        environment |= {"PYTHONPATH": str(STARTUP), moments.FOLDER: str(work_dir), moments.FIRED: str(fired)}
        if changes is not None:
            environment[moments.LISTING] = str(changes)
        if moment is not None:
            environment[moments.BEFORE] = str(moment.change)
    return environment


def _disturb(process: subprocess.Popen[bytes], moment: Moment | None, mark: str, fired: Path) -> Attempt:
    if moment is None or moment.change:
        process.wait(RUNS_AT_MOST)
        return Attempt(code=process.returncode, landed=fired.exists())
    deadline = time.monotonic() + moment.seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    found: list[int] = []
    while process.poll() is None and not found:
        found = those(moment.target, process.pid, mark)
        time.sleep(0.01)
    if process.poll() is not None:
        return Attempt(code=process.returncode, landed=False)
    was_listening, sent = is_listening(process.pid), time.monotonic()
    landed = send(moment.number, found[-1], to_group=moment.target == "group")
    process.wait(RUNS_AT_MOST)
    attempt = Attempt(code=process.returncode, landed=landed)
    if moment.target in ("harness", "group") and attempt.code == 0:
        attempt.landed = False  # it was at its end already
    elif landed and moment.target in ("harness", "group") and moment.number != signal.SIGKILL:
        attempt.seconds = time.monotonic() - sent
        attempt.was_listening = was_listening
    return attempt


def check_ending(attempt: Attempt, moment: Moment) -> None:
    """A command that is told to stop ends soon, with the signal's exit code, and says how to go on."""
    if attempt.seconds is None:
        return
    told = 128 + moment.number
    if attempt.seconds > ENDS_WITHIN:
        attempt.faults.append(f"it ended {attempt.seconds:.0f} s after the signal")
    if attempt.code == told and GOES_ON not in attempt.errors:
        attempt.faults.append(f"it does not say how to go on: {attempt.errors[-300:]!r}")
    # Before it listens the interpreter itself answers.
    allowed = (told,) if attempt.was_listening else (told, -moment.number)
    if attempt.code not in allowed or (attempt.was_listening and "Traceback" in attempt.errors):
        attempt.faults.append(f"exit code {attempt.code}, not {told}: {attempt.errors[-600:]!r}")
