"""Removes each protection in turn, in a copy of the tree, and sees that its test fails.

Each test runs in a fork of a process that has loaded the libraries already, but nothing of the harness.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from tests.protections import ROOT, Protection, groups

SECONDS = 600.0  # after which a test counts as failed: some promise that something ends
OURS = ("tests", "benchmark", "leaderboard", "methods", "protocols", "tokenizers")
LIBRARIES = (
    "hypothesis", "numpy", "pandas", "PIL.Image", "pydantic", "pytest", "rich.console", "scipy.stats", "timm",
    "torch", "torchvision", "yaml",
)  # fmt: skip
ARGUMENTS = ("-n", "0", "-x", "-p", "no:benchmark", "-W", "ignore::pytest.PytestAssertRewriteWarning",
             "-o", "addopts=-q --import-mode=importlib -p no:cacheprovider")  # fmt: skip
PASSED, FAILED = 0, 1
_chosen: list[Protection] = []  # what this process looks at, by number
FAILS = "fails"


def main() -> int:
    """A Markdown table: a row for each protection, as it is shown to be needed."""
    found = groups()
    parser = argparse.ArgumentParser(prog="python -m tests.protections", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(found), default=list(found), metavar="GROUP",
                        help=f"of {', '.join(found)}")  # fmt: skip
    parser.add_argument("--matching", default="", metavar="TEXT", help="promises that hold this text")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="side by side (default: 2)")
    options = parser.parse_args()
    chosen = [one for name in options.only for one in found[name] if options.matching in one.promise]
    for name in LIBRARIES:
        importlib.import_module(name)
    # What runs is the copy's.
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    # A file changed back within a second would else meet the bytecode of the other one.
    sys.dont_write_bytecode = True
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    begun, unproven = time.monotonic(), 0
    print("| promise | removed | test | without it |\n|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            options.jobs, multiprocessing.get_context("fork"), initializer=_begin, initargs=(folder, chosen)
        ) as pool,
    ):
        for one, verdict in zip(chosen, pool.map(_verdict, range(len(chosen))), strict=True):
            unproven += verdict != FAILS
            tests = ", ".join(f"`{name}`" for name in one.test.split())
            cells = (one.promise, f"`{one.file}`: {_code(_line(one))}", tests, verdict)
            print(f"| {' | '.join(cells)} |", flush=True)
    day = datetime.now(UTC).date()
    print(f"\n{len(chosen)} protections, {unproven} without proof; {time.monotonic() - begun:.0f} s, {day}")
    return FAILED if unproven else PASSED


def _begin(folder: str, chosen: list[Protection]) -> None:
    """Give this process a copy of the tree for itself: tracked files and those that git does not ignore."""
    _chosen.extend(chosen)
    copy = Path(folder) / str(os.getpid())
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    os.chdir(copy)


def _verdict(number: int) -> str:
    """FAILS if the test of protection `number` passes with it and fails without."""
    one = _chosen[number]
    if _ends_with(one.test) != PASSED:
        return "DOES NOT PASS WITH IT"
    path = Path(one.file)
    whole = path.read_text()
    path.write_text(whole.replace(one.removed, one.instead))
    try:
        code = _run(one.test)
    finally:
        path.write_text(whole)
    return {FAILED: FAILS, PASSED: "STILL PASSES"}.get(code, f"PYTEST ENDED WITH {code}")


@functools.cache
def _ends_with(test: str) -> int:
    """How the test ends on the tree as it is: several protections may share one."""
    return _run(test)


def _run(test: str) -> int:
    """pytest's exit code, of a session of its own that nothing of it outlives."""
    child = os.fork()
    if child == 0:
        os.setsid()
        # A job that was started in the background may have been told to ignore what a test sends.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.path.insert(0, os.getcwd())
        import pytest

        os._exit(int(pytest.main([*ARGUMENTS, *test.split()])))
    deadline = time.monotonic() + SECONDS
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return FAILED
    return os.waitstatus_to_exitcode(status)


def _code(line: str) -> str:
    """A span of code. A bar or a backtick, which would end the cell or the span, makes it one of entities."""
    if not {"|", "`"} & set(line):
        return f"`{line}`"
    said = (one if one.isalnum() or one in " .,=()" else f"&#{ord(one)};" for one in line)
    return f"<code>{''.join(said)}</code>"


def _line(one: Protection) -> str:
    lines = [line.strip() for line in one.removed.strip().splitlines()]
    return lines[0] + (" ..." if len(lines) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
