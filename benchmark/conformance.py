"""What an adapter must do, tried out: findings, and how the checks that make them are run. No torch.

The checks themselves: conformance_contract.py, conformance_leaks.py, conformance_training.py and
conformance_cost.py of a method, conformance_tokenizer.py, conformance_data.py.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from protocols.errors import HarnessError

BUILT_IN = [Path(__file__).resolve().parent.parent / room for room in ("methods", "tokenizers")]
Status = Literal["ok", "FAILED", "info", "n/a"]


@dataclass(frozen=True)
class Finding:
    """What was tried and what came out; of a failure also what to do. `info` judges nothing."""

    status: Status
    what: str
    found: str
    remedy: str = ""


class Subject(Protocol):
    """What is examined: its name, and the files of its code, by which an error's line is found."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The adapter's own files."""
        ...


S = TypeVar("S", bound=Subject)


class Blocked(Exception):
    """Raised by a check, after a finding: without it nothing else can be tried."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """Something to try. `is_essential`: where it ends in an error, nothing else can be tried."""

    name: str
    examine: Callable[[S], Iterable[Finding]]
    is_essential: bool = False


def ok(what: str, found: str) -> Finding:
    """As it has to be."""
    return Finding("ok", what, found)


def failed(what: str, found: str, remedy: str) -> Finding:
    """Not as it has to be."""
    return Finding("FAILED", what, found, remedy)


def info(what: str, found: str) -> Finding:
    """Measured; no judgement."""
    return Finding("info", what, found)


def not_applicable(what: str, why: str) -> Finding:
    """Nothing to try here."""
    return Finding("n/a", what, why)


def judged(what: str, is_good: bool, *, good: str, bad: str, remedy: str) -> Finding:
    """`good` or `bad` as it turned out."""
    return ok(what, good) if is_good else failed(what, bad, remedy)


def examined(checks: Sequence[Check[S]], subject: S) -> Iterator[Finding]:
    """All findings of all checks, in order. An error of the adapter's code is a finding too.

    This is the one place where any error is caught: the code that is tried is not ours.
    """
    for check in checks:
        is_blocked = False
        try:
            yield from check.examine(subject)
        except Blocked:
            is_blocked = True
        except (Exception, SystemExit) as error:  # code that calls exit() has not passed
            is_blocked = check.is_essential
            said = str(error) or "no message"
            remedy = "mend this error first: what this check would find is not known"
            # What the harness refuses says where, and what to do.
            kind = (
                "" if isinstance(error, HarnessError) else f"{type(error).__name__}{_line(error, subject)}: "
            )
            yield failed(check.name, f"{kind}{said}", remedy)
        if is_blocked:
            yield not_applicable("all further checks", f"they need what failed under {check.name!r}")
            return


def _line(error: BaseException, subject: Subject) -> str:
    """Where the adapter's own code was when it went wrong: a plug-in's, not what it builds on."""
    own = {path.resolve() for path in subject.files}
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).resolve() in own]
    inside = [one for one in inside if Path(one.filename).resolve().parent not in BUILT_IN] or inside
    return f" at {Path(inside[-1].filename).name}, line {inside[-1].lineno}" if inside else ""
