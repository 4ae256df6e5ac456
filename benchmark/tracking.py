"""Metric back-ends beside a run: a process of its own follows the files, so that no cell waits for it."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmark.cell_command import PROGRAM
from benchmark.layout import TRACKING_NAME
from benchmark.metric_backends import check_backends
from protocols.errors import HarnessError
from protocols.schema import Protocol

LOG_NAME = "log"  # in the folder of what was handed over
LAST_SECONDS = 60.0  # after the last cell, for what is still to be handed over


def check_tracking(options: Namespace) -> list[str]:
    """The back-ends that --track names. HarnessError for one that cannot work, before anything starts."""
    if options.track is None:
        return []
    if options.cluster is not None:
        raise HarnessError(
            "--track follows the cells of this machine, and --cluster leaves this process before they run; "
            "leave --track out, and give `track --follow` on a machine that sees the work dir"
        )
    return check_backends(options.track)


@contextmanager
def tracked(backends: Sequence[str], options: Namespace, protocol: Protocol) -> Iterator[None]:
    """While a run goes on, what its cells write is handed to `backends`. Says once if that failed."""
    if not backends:
        yield
        return
    words = track_words(backends, options)
    log = options.work_dir / protocol.name / TRACKING_NAME / LOG_NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *words, "--follow", "--until-input-ends"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is the run's: this one ends when its input does
        )
    try:
        yield
    finally:
        _finish(process, log, words)


def track_words(backends: Sequence[str], options: Namespace) -> list[str]:
    """What follows `run_benchmark.py` to hand over the same cells, now or later."""
    protocol = options.protocol
    words = [
        "track",
        "--protocol",
        str(Path(protocol).absolute()) if protocol.endswith((".yaml", ".yml")) else protocol,
    ]
    words += ["--work-dir", str(options.work_dir.absolute()), "--to", *backends]
    for plugin in getattr(options, "plugin", None) or ():
        words += ["--plugin", str(Path(plugin).absolute())]
    return words


def _finish(process: subprocess.Popen[bytes], log: Path, words: Sequence[str]) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it may have ended long ago
        process.stdin.close()
    try:
        code = process.wait(LAST_SECONDS)
        how = f"ended with code {code}"
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
        how = f"was not done {LAST_SECONDS:.0f} s after the last cell, and was ended"
    if code:
        print(
            f"tracking {how}; the results are not touched by that. {log} says more, and this hands over what "
            f"is missing: python run_benchmark.py {' '.join(words)}",
            file=sys.stderr,
        )
