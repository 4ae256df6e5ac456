"""The clock: its date, its pace, and that of the work dir's file system. No torch."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

from benchmark.doctor import Asked, Finding, failed, ok, warning

YEARS = (2025, 2100)
SKEW_SECONDS = 2.0
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def clock(asked: Asked) -> Iterator[Finding]:
    """Records are dated, and the newest of two counts."""
    now = time.gmtime()
    if not YEARS[0] <= now.tm_year < YEARS[1]:
        yield failed(
            "clock",
            f"it says {time.strftime('%Y-%m-%d', now)}, and records would be dated so",
            "set the clock (date -s, or NTP)",
        )
    else:
        state = {True: "synchronised", False: "not synchronised by NTP", None: "NTP unknown"}[
            is_synchronised()
        ]
        yield ok("clock", f"{time.strftime('%Y-%m-%d %H:%M UTC', now)}, {state}")
    began = time.monotonic()
    time.sleep(0.01)
    if not time.monotonic() > began:
        yield failed(
            "clock", "the monotonic clock stands still: no limit on a wait would end", "use another machine"
        )
    if asked.scratch is None:
        return
    probe = asked.scratch / "clock"
    before = time.time()
    probe.write_bytes(b"")
    skew = probe.stat().st_mtime - before
    if abs(skew) > SKEW_SECONDS:
        yield warning(
            "clock of the work dir",
            f"its file system is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine",
            "synchronise both (NTP): times of logs and records of several machines would not fit together",
        )
    else:
        yield ok("clock of the work dir", f"within {SKEW_SECONDS:.0f} s of this machine's")


def is_synchronised() -> bool | None:
    """What the kernel knows of NTP; None where it cannot be asked."""
    try:
        # A struct timex of zeros changes nothing; 208 bytes on Linux, rounded up.
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _UNSYNCHRONISED
