"""The lock: the digest of every slice of every released protocol, and what to do when one differs.

`digests.lock` has one line for each slice: protocol, version, slice, SHA-256 of its canonical JSON, and
that JSON, so that a difference can be shown field by field. Lines are added, never changed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.errors import HarnessError, ProtocolViolation
from protocols.files import write_atomically
from protocols.frozen import canonical_json, digest_of
from protocols.schema import Protocol

LOCK = Path(__file__).parent / "digests.lock"
HEADER = "# protocol version slice sha256 canonical-json; written by `run_benchmark.py lock`, never edited\n"

Slices = dict[str, Mapping[str, Any]]


def read_lock(path: Path | None = None) -> dict[tuple[str, int], Slices]:
    """(protocol, version) -> slice name -> its released values.

    Raises HarnessError, naming the line, for a line that is damaged or does not bear its own digest.
    """
    path = path or LOCK
    released: dict[tuple[str, int], Slices] = {}
    remedy = f"restore the file with git checkout protocols/{path.name}"
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise HarnessError(f"{path.name} is missing from the checkout; {remedy}") from None
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith(b"#"):
            continue
        try:
            key, slice_name, values = _parsed(line.decode())
        except ValueError:
            raise HarnessError(f"{path.name}:{number}: the line is damaged; {remedy}") from None
        slices = released.setdefault(key, {})
        if slice_name in slices:
            raise HarnessError(
                f"{path.name}:{number}: {key[0]} {key[1]} {slice_name} is locked twice; {remedy}"
            )
        slices[slice_name] = values
    return released


def unlocked_slices(protocol: Protocol) -> list[str]:
    """The slices of `protocol` that the lock does not hold: all of them for one that was never released."""
    released = read_lock().get((protocol.name, protocol.version), {})
    return [name for name in protocol.slices if name not in released]


def check_lock(protocol: Protocol, *, file: str) -> None:
    """ProtocolViolation, with every field that differs, if a released slice is not as it was released.

    A slice that the lock does not know yet is no violation in a file of one's own: what is finished does
    not depend on it. A protocol that comes with the harness must be locked whole.
    """
    released = read_lock().get((protocol.name, protocol.version), {})
    unlocked = [name for name in protocol.slices if name not in released] if _is_ours(file) else []
    if unlocked:
        raise ProtocolViolation(
            f"{file}: protocols/{LOCK.name} has no line for {', '.join(unlocked)} of {protocol.name}, "
            f"version {protocol.version}; if lines were lost, restore them with git checkout "
            f"protocols/{LOCK.name}; to release what is new, python run_benchmark.py lock {protocol.name}"
        )
    check_released(protocol, file=file)


def check_released(protocol: Protocol, *, file: str) -> None:
    """ProtocolViolation if a slice that is locked differs; slices that are not locked are not looked at."""
    released, digests = read_lock().get((protocol.name, protocol.version), {}), protocol.slices
    is_ours = _is_ours(file)
    differing = [name for name, values in released.items() if digests.get(name) != digest_of(values)]
    if not differing:
        return
    lines = [
        f"{file} is not protocol {protocol.name}, version {protocol.version}, as it was released "
        "(protocols/digests.lock):"
    ]
    for name in differing:
        now = protocol.slice(name) if name in digests else None
        lines += [f"  {name}: {line}" for line in differences(released[name], now)]
    lines += [
        "A changed slice is another protocol. To keep the change, under a name of its own:",
        f"  python run_benchmark.py fork {_quoted(file, protocol.name)} NEW_NAME",
        "To look at a value without keeping it: --set SLICE.FIELD=VALUE. To undo the change:",
        f"  git checkout {shlex.quote(file)}" if is_ours else "  restore the file",
    ]
    raise ProtocolViolation("\n".join(lines))


def differences(released: Mapping[str, Any], now: Mapping[str, Any] | None) -> list[str]:
    """One line for each field that differs between a slice's released values and those of now."""
    if now is None:
        return ["the slice is gone"]
    before, after = _flat(released), _flat(now)
    lines = []
    for path in sorted({*before, *after}):
        was = canonical_json(before[path]) if path in before else "not set"
        found = canonical_json(after[path]) if path in after else "not set"
        if was != found:  # as texts: 1 and 1.0 are two digests
            lines.append(f"{path} was {was}, is {found}")
    return lines


def add_to_lock(protocol: Protocol, *, path: Path | None = None) -> list[str]:
    """Lock the slices of `protocol` that are not locked yet; returns their names."""
    path = path or LOCK
    released = read_lock(path) if path.is_file() else {}
    known = released.get((protocol.name, protocol.version), {})
    new = [name for name in protocol.slices if name not in known]
    text = path.read_bytes().decode() if path.is_file() else HEADER
    if not text.endswith("\n"):
        text += "\n"
    for name in new:
        values = protocol.slice(name)
        text += f"{protocol.name} {protocol.version} {name} {digest_of(values)} {canonical_json(values)}\n"
    if new:
        write_atomically(path, text)
    return new


def _parsed(line: str) -> tuple[tuple[str, int], str, Mapping[str, Any]]:
    """(protocol, version), slice and values of one line; ValueError if it does not bear its own digest."""
    name, version, slice_name, digest, text = line.split(" ", 4)
    values = json.loads(text)
    if not isinstance(values, dict) or digest_of(values) != digest:
        raise ValueError("not the values of this digest")
    return (name, int(version)), slice_name, values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _quoted(file: str, name: str) -> str:
    return name if _is_ours(file) else shlex.quote(file)


def _is_ours(file: str) -> bool:
    """True for a protocol that comes with the harness."""
    return Path(file).resolve().parent == Path(__file__).resolve().parent
