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
    """A sentence that lists the known names; where there are many, those like `name`, or the first few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > MOST_LISTED and close:
        also = [one for one in difflib.get_close_matches(name, names, n=3, cutoff=0.75) if one != close[0]]
        return hint.rstrip() + (f" also near: {', '.join(also)}" if also else "")
    if len(names) > MOST_LISTED:
        return f"known: {', '.join(names[:5])} and {len(names) - 5} more"
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def unknown(kind: str, name: str, known: Iterable[str]) -> HarnessError:
    """The error for a name that no registry or protocol knows."""
    return HarnessError(f"unknown {kind} {name!r}; {nearest(name, known)}")
