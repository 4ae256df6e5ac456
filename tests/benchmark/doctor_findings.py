"""What a check of `doctor` finds, for its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmark.doctor import Asked, Check, Finding, examine

Find = Callable[[Asked], Iterator[Finding]]


def found(find: Find, asked: Asked, **more: object) -> list[Finding]:
    """As the command finds it, in a process of its own."""
    return list(examine([Check("it", find)], Asked(**{**vars(asked), **more})))  # type: ignore[arg-type]


def only(findings: list[Finding], what: str) -> Finding:
    (one,) = [each for each in findings if each.what == what]
    return one
