"""Removes each protection in turn, in a copy of the tree, and sees that its test fails."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.protections import ROOT, Protection, groups

SECONDS = 600
PYTEST = (sys.executable, "-m", "pytest", "-n", "0", "-x", "--no-header", "-p", "no:benchmark", "-o",
          "addopts=-q --import-mode=importlib -p no:cacheprovider")  # fmt: skip
PASSED, FAILED = 0, 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protections", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="GROUP", help=f"of {', '.join(groups())}")
    parser.add_argument("--matching", default="", metavar="TEXT", help="promises that hold this text")
    options = parser.parse_args()
    chosen = {name: found for name, found in groups().items() if not options.only or name in options.only}
    unproven = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        _copy_tree(copy)
        print("| promise | removed | test | without it |\n|---|---|---|---|")
        for protections in chosen.values():
            for one in protections:
                if options.matching not in one.promise:
                    continue
                verdict = _verdict(copy, one)
                unproven += verdict != "fails"
                cells = (one.promise, f"`{one.file}`: `{_line(one)}`", _short(one.test), verdict)
                print(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |", flush=True)
    print(f"\n{unproven} without proof", file=sys.stderr)
    return FAILED if unproven else PASSED


def _copy_tree(copy: Path) -> None:
    """Tracked files and those that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def _verdict(copy: Path, one: Protection) -> str:
    """`fails` if the test passes with the protection and fails without."""
    if _run(copy, one) != PASSED:
        return "DOES NOT PASS WITH IT"
    path = copy / one.file
    whole = path.read_text()
    path.write_text(whole.replace(one.removed, one.instead))
    try:
        code = _run(copy, one)
    finally:
        path.write_text(whole)
    return {FAILED: "fails", PASSED: "STILL PASSES"}.get(code, f"PYTEST ENDED WITH {code}")


def _run(copy: Path, one: Protection) -> int:
    # A file changed back within a second would else meet the bytecode of the other one.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            [*PYTEST, *one.test.split()],
            cwd=copy,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return FAILED  # a promise that something ends


def _line(one: Protection) -> str:
    lines = [line.strip() for line in one.removed.strip().splitlines()]
    return lines[0] + (" ..." if len(lines) > 1 else "")


def _short(test: str) -> str:
    return ", ".join(name.removeprefix("tests/") for name in test.split())


if __name__ == "__main__":
    sys.exit(main())
