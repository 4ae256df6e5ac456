"""Errors that a user can cause, each with the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

MOST_LISTED = 20
# What a terminal acts on, or what turns the text around it: controls, formats, surrogates, line separators.
_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


class HarnessError(ValueError):
    """A user's mistake or a missing input: the message says what, where, what is allowed, the remedy."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(str(message)))


class ProtocolViolation(HarnessError):
    """What was asked for would break what the protocol holds equal."""

    exit_code = 3


def shown(text: str) -> str:
    """`text`, which may quote a stranger's file, with what a terminal would act on written out as \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if one != "\n" and unicodedata.category(one) in _ACTING else one
        for one in text
    )


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
