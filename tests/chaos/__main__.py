"""Kills every stage at random moments and says what was lost.

    python -m tests.chaos [--kills 60] [--seed 0] [--stages NAME ...] [--keep DIR] [--table FILE]

Sixty kills take about a quarter of an hour of two cores. Ends with 1 if anything was lost, anybody left
running, or a command did not end as it should.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.campaign import KILLS_IN_A_ROW, Kill, References, disturb, left_behind
from tests.chaos.stages import ROOT, STAGES, Stage
from tests.chaos.table import table
from tests.performance.token_store import machine

NOTHING_LOST, LOST = 0, 1


def main() -> int:
    """Kill until as many kills as were asked for have landed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="that land (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all work dirs here, a new folder")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table here, too")
    options = parser.parse_args()
    begun, kills = time.monotonic(), list[Kill]()
    with _folder(options.keep) as folder:
        (folder / "undisturbed").mkdir()
        references = References(folder=folder / "undisturbed", say=_say)
        for number, (stage, wanted) in enumerate(_campaigns(options.stages, options.seed)):
            landed = sum(kill.landed for kill in kills)
            if landed >= options.kills:
                break
            own = folder / f"{number:03d}-{stage.name.replace(', ', '-').replace(' ', '-')}"
            own.mkdir()
            draw = random.Random(f"{options.seed} {number}")
            done = disturb(stage, wanted, references, draw, own)
            kills += done
            for kill in done:
                how = "landed" if kill.landed else "too late"
                _say(f"{time.monotonic() - begun:6.0f} s  {stage.name}: {kill.moment}: {how}")
                for fault in kill.lost:
                    _say(f"LOST  {fault}")
            for path in left_behind(own):
                _say(f"left half-written, and read by nobody: {path}")
    words = " ".join(["python -m tests.chaos", *sys.argv[1:]])
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    text = (
        f"{table(kills)}\n\n`{words}`, seed {options.seed}, {time.monotonic() - begun:.0f} s; "
        f"commit {commit}; {machine()}.\n"
    )
    print(text)
    if options.table is not None:
        options.table.write_text(text)
    return LOST if any(kill.lost for kill in kills) else NOTHING_LOST


def _campaigns(names: list[str], seed: int) -> Iterator[tuple[Stage, list[tuple[str, str]]]]:
    """Stages in turn, as often as their share says, each with the next few of its ways to be killed."""
    chosen = [stage for stage in STAGES if stage.name in names]
    ways = {stage.name: itertools.cycle(stage.kills) for stage in chosen}
    draw = random.Random(seed)
    while True:
        left = {stage.name: stage.share for stage in chosen}
        while any(left.values()):
            for stage in chosen:
                count = min(left[stage.name], draw.randint(1, KILLS_IN_A_ROW))
                left[stage.name] -= count
                if count:
                    yield stage, [next(ways[stage.name]) for _ in range(count)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


if __name__ == "__main__":
    sys.exit(main())
