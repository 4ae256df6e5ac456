"""Damage and mischief done to good files: bytes flipped, cut and moved; values of JSON and YAML made odd.

Every choice is asked of `random`: Hypothesis gives one that it can shrink, the long run one of a seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**300, 0.0, -0.0, 0.5, 1e308,
    -1e308, 5e-324, float("nan"), float("inf"), "", " ", ".", "..", "../../evil", "/etc/passwd", "a/b",
    "\x00", "\x1b[31m", "\u202e", "\ud800", "é", "=1+1", "<b>", "$\\frac{$", "%s%n", "{0}", "[", [], {},
    [[]], [None], {"": 0}, {"a": {"b": {}}}, "A" * 1000, "0" * 64, "f" * 64, "nan", "1e999", "0x10",
    "1_000", "!!python/name:os.system",
)  # fmt: skip
ODD_TEXTS: tuple[bytes, ...] = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\x1b[2J", b"&a", b"*a", b"<<: *a",
    b"!!python/object:x ", b"!!binary ", b"!!set ", b"? ", b"---\n", b"...\n", b"%YAML 9.9\n", b"[" * 50,
    b"{" * 50, b"]", b"}", b": ", b"\t", b"\r", b"\xe2\x80\xa8", b"|+9\n", b"1e999", b"9" * 400, b"-", b"'",
    b'"', b"\\", b"#", b"@", b"`", b"~", b".inf", b".nan", b"0o7", b"12:30:45", b"2001-01-01", b"=", b"<<",
    b"null", b"\x85", b"\xc2\x85", b"\xf0\x9f\x92\xa9",
)  # fmt: skip


_NUMBERS = (b"\x00" * 4, b"\xff" * 4, b"\x00" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
            b"\x80\x00\x00\x00", b"\x01\x00\x00\x00")  # fmt: skip


def mutated(random: Random, whole: bytes, others: Sequence[bytes], *, structured: Mutation | None) -> bytes:
    """`whole` with one to four changes; `others` lend pieces."""
    content = whole
    for _ in range(random.randint(1, 4)):
        if structured is not None and random.random() < 0.5:
            content = structured(random, content)
        else:
            content = random.choice(BYTES)(random, content)
        if random.random() < 0.05:
            content = _spliced(random, content, random.choice(others))
    return content


def json_values(random: Random, content: bytes) -> bytes:
    """One value of a JSON text replaced, dropped, doubled or renamed; other bytes are left as they are."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places = list(_places(tree))
    if not places:
        return json.dumps(random.choice(ODD_VALUES)).encode()
    holder, key = random.choice(places)
    kind = random.randrange(5)
    if kind == 0 and isinstance(holder, dict):
        value = holder.pop(key)
        if random.random() < 0.5:
            holder[str(random.choice(ODD_VALUES))] = value
    elif kind == 1:
        other, at = random.choice(places)
        holder[key] = other[at] if key in holder or isinstance(holder, list) else None
    elif kind == 2 and isinstance(holder[key], str) and holder[key]:
        text = holder[key]
        at = random.randrange(len(text))
        holder[key] = text[:at] + str(random.choice(ODD_VALUES)) + text[at:]
    else:
        holder[key] = random.choice(ODD_VALUES)
    try:
        return json.dumps(tree, ensure_ascii=random.random() < 0.5, indent=1).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # what was moved may hold itself now
        return content


def yaml_lines(random: Random, content: bytes) -> bytes:
    """A line of a YAML text dropped, doubled, indented otherwise, or its value or name made odd."""
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    kind = random.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, random.choice(lines))
    elif kind == 2:
        lines[at] = b" " * random.randrange(9) + lines[at].lstrip()
    elif kind == 3:
        name, _, _ = lines[at].partition(b":")
        lines[at] = name + b": " + _odd_text(random)
    elif kind == 4:
        found = list(re.finditer(rb"value: *([^,}\n]+)", lines[at]))
        if found:
            one = random.choice(found)
            lines[at] = lines[at][: one.start(1)] + _odd_text(random) + lines[at][one.end(1) :]
    else:
        lines[at] = lines[at].replace(lines[at].strip().partition(b":")[0], _odd_text(random), 1)
    return b"\n".join(lines)


def _odd_text(random: Random) -> bytes:
    if random.random() < 0.3:
        return random.choice(ODD_TEXTS)
    value = random.choice(ODD_VALUES)
    return (
        json.dumps(value).encode() if random.random() < 0.7 else str(value).encode("utf-8", "surrogatepass")
    )


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            for key in list(one) if isinstance(one, dict) else range(len(one)):
                yield one, key
                waiting.append(one[key])


def _flipped(random: Random, content: bytes) -> bytes:
    if not content:
        return b"\x00"
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwritten(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    piece = random.choice((*_NUMBERS, *ODD_TEXTS))
    return content[:at] + piece + content[at + len(piece) :]


def _inserted(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.choice(ODD_TEXTS) * random.choice((1, 1, 1, 30)) + content[at:]


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _without_middle(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.choice((1, 2, 4, 16, 64, 512)) :]


def _repeated(random: Random, content: bytes) -> bytes:
    at, length = random.randrange(len(content) + 1), random.choice((1, 4, 16, 64, 512))
    return content[:at] + content[at : at + length] * random.choice((2, 3, 50)) + content[at:]


def _numbers(random: Random, content: bytes) -> bytes:
    """A number that is written out as digits becomes another."""
    found = list(re.finditer(rb"\d+", content[:200_000]))
    if not found:
        return content
    one = random.choice(found)
    number = random.choice(
        (b"0", b"1", b"-1", b"9" * 18, b"9" * 20, b"9" * 400, b"4294967296", b"1e400", b"0.5")
    )
    return content[: one.start()] + number + content[one.end() :]


def _spliced(random: Random, content: bytes, other: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]


BYTES: tuple[Mutation, ...] = (
    _flipped, _flipped, _overwritten, _inserted, _cut, _without_middle, _repeated, _numbers,
)  # fmt: skip
