"""Kills a stage again and again until it has ended, and holds what came out against an undisturbed run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.attempt import Attempt, Moment, start
from tests.chaos.stages import REFERENCES, Stage, command
from tests.chaos.wholeness import faults, leftovers, missing

KILLS_IN_A_ROW = 3  # then it may end; a cell that is killed three times under one harness is given up
STARTS = 8
# What a stopped or killed command may end with: 1 and 2 where one that reads images, say, was killed.
RESUMABLE = (1, 2)


@dataclass(kw_only=True)
class Kill:
    """One row's worth of what happened."""

    stage: str
    moment: str
    landed: bool
    seconds: float | None
    number: int
    lost: list[str] = field(default_factory=list)
    orphans: int = 0


@dataclass(frozen=True, kw_only=True)
class References:
    """The undisturbed work dirs under `folder`; how long each stage took, and how many files it changed."""

    folder: Path
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        return self.folder / "one" / "out.tar"

    def of(self, stage: Stage) -> Path:
        """The stage's undisturbed work dir, made on first use."""
        return self._made(stage.reference)

    def _made(self, name: str) -> Path:
        work_dir = self.folder / name
        if work_dir.exists():
            return work_dir
        basis, commands = REFERENCES[name]
        if name == "merged":
            self._made("one")
        if basis is not None:
            shutil.copytree(self._made(basis), work_dir)
            for path in [*work_dir.glob("chaos/cells/[!t]*"), work_dir / "chaos" / "leaderboard"]:
                shutil.rmtree(path)
        work_dir.mkdir(parents=True, exist_ok=True)
        for words in commands:
            self.say(f"undisturbed: {name}: {words[0]}")
            ended = start(command(words, work_dir=work_dir, bundle=self.bundle), None, work_dir=work_dir)
            if ended.code or ended.faults:
                raise SystemExit(f"{words}, undisturbed, ended with {ended.code}: {ended.errors}")
        return work_dir

    def measure(self, stage: Stage) -> None:
        """Run the stage once as it will be killed, for how long it takes and how many files it changes."""
        if stage.name in self.seconds:
            return
        work_dir, listing = self.folder / "measured" / "runs", self.folder / "changes"
        stage.prepare(work_dir, self.of(stage))
        begun = time.monotonic()
        words = command(stage.words, work_dir=work_dir, bundle=self.bundle)
        ended = start(words, None, work_dir=work_dir, changes=listing)
        self.seconds[stage.name] = time.monotonic() - begun
        if ended.code:
            raise SystemExit(f"{stage.name}, undisturbed, ended with {ended.code}: {ended.errors}")
        # Each process counts its own.
        self.changes[stage.name] = max(int(line.split()[1]) for line in listing.read_text().splitlines())
        listing.unlink()
        shutil.rmtree(work_dir.parent)


def disturb(
    stage: Stage, kills: list[tuple[str, str]], references: References, draw: random.Random, folder: Path
) -> list[Kill]:
    """Start the stage, kill it as `kills` say, and again until it has ended; then let it end, and compare."""
    reference = references.of(stage)
    references.measure(stage)
    work_dir = folder / "runs"
    stage.prepare(work_dir, reference)
    done: list[Kill] = []
    waiting = list(kills)
    for _ in range(STARTS):
        moment = _moment(*waiting.pop(0), stage, references, draw) if waiting else None
        words = command(stage.words, work_dir=work_dir, bundle=references.bundle) + _drawn(stage, draw)
        attempt = start(words, moment, work_dir=work_dir)
        found = attempt.faults + faults(work_dir, reference, with_board=stage.with_board)
        if moment is not None:
            done.append(
                Kill(
                    stage=stage.name,
                    moment=str(moment),
                    landed=attempt.landed,
                    seconds=attempt.seconds if attempt.code == 128 + moment.number else None,
                    number=moment.number,
                    lost=found,
                    orphans=sum(fault.startswith("left running") for fault in attempt.faults),
                )
            )
        else:
            done[-1].lost += found
        if attempt.code == 0 or (moment is None and attempt.code not in RESUMABLE):
            break
        if not _is_expected(attempt, moment):
            found.append(f"ended with {attempt.code}: {attempt.errors[-600:]!r}")
    ending = _last(stage, attempt, references, work_dir)
    # What is wrong in the end is the last kill's, for want of a better one to blame.
    done[-1].lost += ending
    return done


def _is_expected(attempt: Attempt, moment: Moment | None) -> bool:
    if moment is None or attempt.code in RESUMABLE or not attempt.landed:
        return attempt.code in RESUMABLE
    return attempt.code in (-signal.SIGKILL, -moment.number, 128 + moment.number)


def _last(stage: Stage, attempt: Attempt, references: References, work_dir: Path) -> list[str]:
    """What the stage's end lacks."""
    reference = references.of(stage)
    if stage.finish and attempt.code == 0:
        attempt = start(command(stage.finish, work_dir=work_dir, bundle=references.bundle), None,
                        work_dir=work_dir)  # fmt: skip
    if attempt.code:
        return [f"never ended: {attempt.code}, {attempt.errors[-600:]!r}"]
    found = faults(work_dir, reference, with_board=stage.with_board)
    if stage.removes is not None or stage.reference == "merged":
        # Which of the reference's files the stage makes: those that it began without.
        evaluated = "" if "finetune" in stage.words else "finetune"
        lost = missing(work_dir, reference, with_board=stage.with_board)
        return found + [one for one in lost if not evaluated or evaluated not in one]
    made = {"pack": "packed/"}.get(stage.name, "tokens/")
    return found + [one for one in missing(work_dir, reference) if one.startswith(made)]


def _moment(target: str, name: str, stage: Stage, references: References, draw: random.Random) -> Moment:
    number = int(signal.Signals[f"SIG{name}"])
    if target == "change":
        return Moment(target=target, number=number, change=draw.randint(1, references.changes[stage.name]))
    return Moment(
        target=target, number=number, seconds=draw.uniform(0.05, 0.7) * references.seconds[stage.name]
    )


def _drawn(stage: Stage, draw: random.Random) -> list[str]:
    """Other numbers of processes than before."""
    values = {"--workers": draw.randint(0, 3), "--jobs": draw.randint(1, 2)}
    words = [word for flag in stage.takes for word in (flag, str(values[flag]))]
    return [*words, "--redo-failed"] if "--jobs" in stage.takes else words


def left_behind(folder: Path) -> list[str]:
    """Half-written files that nobody reads, in what a campaign has left."""
    return leftovers(folder / "runs")
