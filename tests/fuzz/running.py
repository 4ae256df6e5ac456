"""One reader and what it is fed: what came out, how long it took, and what it must never do."""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from protocols.errors import HarnessError
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import Target
from tests.untrusted.watching import nothing_escapes

MOST_SECONDS, MOST_MB = 10.0, 600
MOST_CHARACTERS, MOST_LINES = 4000, 45
# Nothing that moves a cursor, colours or turns text around may reach a terminal.
_UNFIT = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class TooLong(BaseException):
    """No Exception: what is read must not be able to catch it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An input, and what its reader did that none may do; `what` is the same for findings of one kind."""

    target: Target
    content: bytes
    what: str

    @property
    def file_name(self) -> str:
        name = self.target.name.replace(" ", "-").replace("'", "")
        return f"{name}-{hashlib.sha256(self.what.encode()).hexdigest()[:8]}"


@dataclass
class Run:
    """Inputs of one target, one after another, out of one seed."""

    target: Target
    scratch: Path
    seed: int
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: set[str] = field(default_factory=set)

    def some(self, *, until: float) -> Iterator[Finding]:
        """Feed it until then (`time.monotonic`); a finding of each new kind."""
        seeds = self.target.seeds()
        started = time.monotonic()
        while time.monotonic() < until:
            random = Random(f"{self.seed} {self.target.name} {self.inputs}")
            content = mutated(random, random.choice(seeds), seeds, structured=self.target.structured)
            self.inputs += 1
            finding = self.feed(content)
            if finding is not None and finding.what not in self.findings:
                self.findings.add(finding.what)
                yield finding
        self.seconds += time.monotonic() - started

    def feed(self, content: bytes) -> Finding | None:
        """Read one input. None if it was read, or refused as a user's mistake is."""
        folder = self.scratch / "input"
        folder.mkdir()
        before = _peak_mb()
        try:
            with nothing_escapes(folder), _no_longer_than(MOST_SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.target.read(folder, content)
            what = ""
        except HarnessError as error:
            self.refused += 1
            what = _unfit(str(error))
        except (Exception, TooLong) as error:
            frames = traceback.extract_tb(error.__traceback__)
            at = [f"{Path(one.filename).name}:{one.name}" for one in frames][-4:]
            what = f"{type(error).__name__} {' '.join(at)}: {str(error)[:200]!r}"
            what = re.sub(r"0x[0-9a-f]+|\d+", "N", what)
        finally:
            shutil.rmtree(folder)
        if not what and _peak_mb() - before > MOST_MB:
            what = "took too much memory"
        return Finding(target=self.target, content=content, what=what) if what else None


def _unfit(message: str) -> str:
    if found := _UNFIT.search(message):
        return f"an error with the character {found[0]!r} in it"
    if len(message) > MOST_CHARACTERS or message.count("\n") > MOST_LINES:
        return "an error that is too long"
    return "an error with a traceback" if "Traceback" in message else ""


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
