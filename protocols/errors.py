"""Errors that a user can cause, each with the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 20


class HarnessError(ValueError):
    """A user's mistake or a missing input: the message says what, where, what is allowed, the remedy."""

    exit_code = 2


class ProtocolViolation(HarnessError):
    """What was asked for would break what the protocol holds equal."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, the ones most like `name` first where there are many."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > MOST_LISTED:
        return f"{hint}the nearest of {len(names)}: {', '.join(close or names[:5])}"
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def unknown(kind: str, name: str, known: Iterable[str]) -> HarnessError:
    """The error for a name that no registry or protocol knows."""
    return HarnessError(f"unknown {kind} {name!r}; {nearest(name, known)}")
