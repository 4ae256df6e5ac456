"""Feeds readers damaged and malicious files for as long as asked; keeps each that one stumbles over.

python -m tests.fuzz --minutes 20                      every reader in turn
python -m tests.fuzz --reader checkpoint --seed 7      those of one group
python -m tests.fuzz --replay FILE                     a file that was kept, once more, with its traceback
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.readers import GROUPS, TARGETS
from tests.fuzz.running import MOST_MB, MOST_SECONDS, Finding, Run

FOUND, NOTHING = 1, 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=[*GROUPS, "all"], default="all")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    targets = [target for target in TARGETS if options.reader in (target.group, "all")]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        runs = [Run(target, Path(scratch), seed=options.seed) for target in targets]
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            for run in runs:
                for finding in run.some(until=min(end, time.monotonic() + 2)):
                    _keep(finding, options.keep)
    print("| reader | inputs | refused | read | minutes | findings |\n|---|---:|---:|---:|---:|---:|")
    for run in runs:
        print(
            f"| {run.target.name} | {run.inputs:,} | {run.refused:,} | {run.inputs - run.refused:,} | "
            f"{run.seconds / 60:.1f} | {len(run.findings)} |"
        )
    inputs, kinds = sum(run.inputs for run in runs), sum(len(run.findings) for run in runs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{inputs:,} inputs, {kinds} kinds of findings; seed {options.seed}; limits {MOST_SECONDS:g} s and "
        f"{MOST_MB} MB more; peak {peak:,.0f} MB"
    )
    return FOUND if kinds else NOTHING


def _keep(finding: Finding, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / finding.file_name
    path.write_bytes(finding.content)
    print(f"{finding.target.name}: {finding.what}\n    {path}", file=sys.stderr, flush=True)


def _replay(path: Path) -> int:
    (target,) = [one for one in TARGETS if path.name.startswith(one.name.replace(" ", "-").replace("'", ""))][
        :1
    ]
    folder = Path(tempfile.mkdtemp())
    try:
        print(target.read(folder, path.read_bytes()))
    finally:
        shutil.rmtree(folder)
    return NOTHING


if __name__ == "__main__":
    sys.exit(main())
