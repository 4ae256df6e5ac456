"""Fills a small disk at many places of a run, makes room, goes on, and compares with an undisturbed run.

python -m tests.disks               needs the right to mount (unshare -rm); about 8 minutes on two cores
python -m tests.disks --rooms 24 96 KiB that are free when tokens are made, instead of 4, 12, 20 and so on

The disk is a tmpfs that only this process sees. Each row is one size: which file met the end of the disk,
how the run ended, whether anything was recorded as failed, and whether the bytes are right in the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from benchmark.cli import main as run_command
from tests.disks.small_disk import mount

TINY = Path(__file__).parent.parent / "tiny.yaml"
INSIDE = "TESTS_DISKS_INSIDE"
# KiB: of the whole disk while tokens are made, and then of what is free for all that follows.
TOKENISING = (40, 120, 400, 800, 900)
ROOMS = tuple(range(4, 400, 20))
LARGE = "64m"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.disks", description=__doc__)
    parser.add_argument("--rooms", type=int, nargs="*", default=ROOMS, metavar="KIB")
    parser.add_argument("--tokenising", type=int, nargs="*", default=TOKENISING, metavar="KIB")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.disks", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        mount(disk, "-t", "tmpfs", "-o", f"size={LARGE}", "none")
        try:
            lost = compare(disk, options.tokenising, options.rooms)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    print(f"\n{len(options.tokenising) + len(options.rooms)} disks, {lost} not as promised", file=sys.stderr)
    return int(lost > 0)


def compare(disk: Path, sizes: list[int], rooms: list[int]) -> int:
    """A row for each disk; how many of them are not as promised."""
    code, error = run(disk / "runs")
    assert code == 0, error
    right = results(disk / "runs")
    print("| free | what did not fit | ends with | failed cells | the same command then | bytes |")
    print("|---|---|---|---|---|---|")
    return sum(tokenising(disk, size, right) for size in sizes) + sum(
        after_tokens(disk, room, right) for room in rooms
    )


def run(work_dir: Path, *before: str) -> tuple[int, str]:
    """One command on the tests' protocol; its exit code, and its error if it ended with one."""
    words = [*before, "--protocol", str(TINY), "--work-dir", str(work_dir), "--device", "cpu", "--quiet"]
    if not before:
        words += ["--methods", "mim", "--evaluations", "linear-probe", "--set", "pretraining.epochs=2"]
    out, err = io.StringIO(), io.StringIO()
    # A run looks for room before it begins: here the disk fills up afterwards.
    plenty = mock.patch("benchmark.disk.free_bytes", return_value=2**40)
    with plenty, redirect_stdout(out), redirect_stderr(err):
        code = run_command(words)
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    return code, errors[0] if errors else ""


def tokenising(disk: Path, size: int, right: dict[str, str]) -> bool:
    """A disk of `size` KiB from the first moment on."""
    empty(disk)
    mount(disk, "-o", f"remount,size={size}k")
    return row(f"{size} KiB in all", disk, right)


def after_tokens(disk: Path, room: int, right: dict[str, str]) -> bool:
    """Tokens are made; `room` KiB are free for what follows."""
    empty(disk)
    assert run(disk / "runs", "tokenize")[0] == 0
    used = os.statvfs(disk)
    taken = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
    mount(disk, "-o", f"remount,size={taken + room}k")
    return row(f"{room} KiB after tokens", disk, right)


def row(free: str, disk: Path, right: dict[str, str]) -> bool:
    """Run into the end of the disk, make room, run again; True if something is not as promised."""
    code, error = run(disk / "runs")
    failed = sum(status != "done" for status in statuses(disk / "runs"))
    leftovers = sum(1 for path in disk.rglob(".*.*-*") if re.fullmatch(r"\..+-\d+", path.name))
    mount(disk, "-o", f"remount,size={LARGE}")
    again, _ = run(disk / "runs")
    is_same = results(disk / "runs") == right
    named = re.search(r"(?:disk: |error: |written to )(\S+?): No space left", error)
    what = shown(Path(named[1]), disk) if named else "nothing: all of it fits" if not code else error
    ended = f"{code}{'' if not error else ', a sentence' if named else ', another'}"
    print(
        f"| {free} | {what} | {ended} | {failed} | {again} | {'the same' if is_same else 'OTHERS'} |",
        flush=True,
    )
    good_end = code == 0 or (code == 2 and named is not None)
    return not (good_end and not failed and not leftovers and again == 0 and is_same)


def shown(path: Path, disk: Path) -> str:
    parts = path.relative_to(disk / "runs").parts if path.is_relative_to(disk / "runs") else (path.name,)
    words = [re.sub(r"-[0-9a-f]{12}(?=$|/)", "", part) for part in parts]
    return "`" + re.sub(r"[0-9a-f]{64}", "KEY", "/".join(words[-3:])) + "`"


def statuses(work_dir: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in work_dir.glob("tiny/cells/*/record.json")]


def results(work_dir: Path) -> dict[str, str]:
    """Digests of every file that a cell made, as they are on the disk, by their names in the records."""
    found = {}
    for path in sorted(work_dir.glob("tiny/cells/*/record.json")):
        for name in json.loads(path.read_text())["artefacts"]:
            file = (work_dir if name.startswith("tokens/") else path.parent) / name
            content = file.read_bytes() if file.is_file() else b""
            found[f"{path.parent.name}/{name}"] = hashlib.sha256(content).hexdigest()
    return found


def empty(disk: Path) -> None:
    mount(disk, "-o", f"remount,size={LARGE}")
    for path in sorted(disk.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
