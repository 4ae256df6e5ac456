"""Hands what the cells of a work dir have written to a metric back-end: once, in order, also after a break.

It reads `metrics.jsonl` and `record.json` and writes what was handed over to WORK_DIR/PROTOCOL/tracking, and
nothing else. It follows files that are being written as it follows those of last year.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from benchmark.layout import METRICS_NAME, TRACKING_NAME
from benchmark.metric_backends import Backend, Run
from benchmark.metrics import is_number, read_line
from leaderboard.record import RECORD_NAME, Record
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, NonNegativeInt, PositiveInt

_COUNTERS = ("step", "steps", "phase")
_CHUNK = 4 * 1024**2  # of one file at a time, so that a long history needs little memory


class Part(Frozen):
    """What was handed over of one curve: its first and last step, and how often it was begun."""

    first: NonNegativeInt
    last: NonNegativeInt
    attempt: PositiveInt = 1


class Sent(Frozen):
    """What was handed over of one cell: so many bytes of its metrics file, and the record of that digest."""

    offset: NonNegativeInt = 0
    record: str = ""
    parts: dict[str, Part] = Field(default_factory=dict)


class _State(Frozen):
    cells: dict[str, Sent] = Field(default_factory=dict)


class Follower:
    """One back-end and what it has. `failure` says why it gets nothing more; empty while all is well."""

    def __init__(self, folder: Path, backend: Backend, *, warn: Callable[[str], None]) -> None:
        """`folder` is WORK_DIR/PROTOCOL. HarnessError if what is kept of earlier times cannot be read."""
        self.failure = ""
        self._folder, self._backend, self._warn = folder, backend, warn
        self._path = folder / TRACKING_NAME / f"{backend.name}.json"
        self._sent = _read(self._path)
        self._runs: dict[tuple[str, str], Run] = {}
        # What a cell's files looked like when all of them was handed over: no need to read them again.
        self._settled: dict[str, tuple[Any, ...]] = {}

    def poll(self) -> None:
        """Hand over all that is new. Never raises for what the back-end does."""
        if self.failure:
            return
        before = dict(self._sent)
        try:
            for folder in sorted((self._folder / "cells").glob("*/")):
                self._follow(folder)
        except Exception as error:
            # Code of other projects, their servers, their disks: whatever it is, no cell has to do with it.
            self._fail(error)
        if self._sent != before:
            write_atomically(self._path, _State(cells=self._sent).model_dump_json() + "\n")

    def close(self) -> None:
        """Let the back-end keep what it was handed."""
        runs, self._runs = list(self._runs.values()), {}
        for run in runs:
            try:
                run.close()
            except Exception as error:  # as in poll
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.failure:
            said = str(error).splitlines()
            self.failure = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
            self._warn(
                f"tracking: {self._backend.name} failed ({self.failure}); no result is touched by that, and "
                "`track` hands over what is missing"
            )

    def _follow(self, folder: Path) -> None:
        cell_id, metrics = folder.name, folder / METRICS_NAME
        looks = (_looks(metrics), _looks(folder / RECORD_NAME))
        if self._settled.get(cell_id) == looks or looks == (None, None):
            return
        sent = self._sent.get(cell_id, Sent())
        if looks[0] is None or looks[0][0] < sent.offset:
            sent = sent.model_copy(update={"offset": 0})  # the cell's folder was made anew
        while looks[0] and (lines := _new_lines(metrics, sent.offset)):
            for line, end in lines:
                sent = self._hand_over(cell_id, line, sent).model_copy(update={"offset": end})
                self._sent[cell_id] = sent
        record, digest = _record(folder)
        if record is not None and digest != sent.record:
            self._end(cell_id, record, sent)
            self._sent[cell_id] = sent.model_copy(update={"record": digest})
        if record is not None:
            self._settled[cell_id] = looks

    def _hand_over(self, cell_id: str, line: bytes, sent: Sent) -> Sent:
        values = read_line(line)
        if values is None or not isinstance(values["step"], int) or values["step"] < 0:
            return sent  # cut short by a kill, or damaged
        part, step = values.get("phase", ""), values["step"]
        known = sent.parts.get(part) or Part(first=step, last=0)
        if 0 < step <= known.last:
            if step <= known.first:
                known = Part(first=step, last=0, attempt=known.attempt + 1)
                self._close(cell_id, part)
            self._run(cell_id, part, known).rewind(step)
        numbers = {
            name: float(one)
            for name, one in values.items()
            if name not in _COUNTERS and is_number(one) and name.isprintable()
        }
        self._run(cell_id, part, known).log(step, numbers)
        return sent.model_copy(
            update={"parts": {**sent.parts, part: known.model_copy(update={"last": step})}}
        )

    def _end(self, cell_id: str, record: Record, sent: Sent) -> None:
        """Hand over what the record says, and close the cell's runs."""
        part = "" if "" in sent.parts or not sent.parts else list(sent.parts)[-1]
        known = sent.parts.get(part, Part(first=0, last=0))
        metrics = {name: one.value for name, one in record.metrics.items() if math.isfinite(one.value)}
        facts = {
            "status": record.status,
            "stage": record.stage,
            "method": record.method.name if record.method else "",
            "tokenizer": record.tokenizer.name if record.tokenizer else "",
            "trunk": record.trunk or "",
            "seed": "" if record.seed is None else str(record.seed),
            "compliance": record.compliance.status,
            "protocol version": str(record.protocol.version),
            "record digest": record.digest,
        }
        self._run(cell_id, part, known).result(known.last, metrics, facts)
        for one in {part, *sent.parts}:
            self._close(cell_id, one)

    def _run(self, cell_id: str, part: str, known: Part) -> Run:
        key = cell_id, part
        if key not in self._runs:
            self._runs[key] = self._backend.run(
                cell_id=cell_id, part=part, attempt=known.attempt, after=known.last
            )
        return self._runs[key]

    def _close(self, cell_id: str, part: str) -> None:
        run = self._runs.pop((cell_id, part), None)
        if run is not None:
            run.close()


def _read(path: Path) -> dict[str, Sent]:
    try:
        return dict(_State.model_validate_json(path.read_bytes()).cells)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"]
        raise HarnessError(
            f"{path} is damaged: {why}; delete the folder {path.parent}, and `track` hands over everything "
            "again"
        ) from None


def _looks(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _new_lines(path: Path, offset: int) -> list[tuple[bytes, int]]:
    """Whole lines from `offset` on, each with where it ends; what is still being written waits."""
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(_CHUNK)
    lines = []
    for line in content.split(b"\n")[:-1]:
        offset += len(line) + 1
        lines.append((line, offset))
    return lines


def _record(folder: Path) -> tuple[Record | None, str]:
    """The record of a cell that has ended and the SHA-256 of its file; a damaged one is others' to report."""
    try:
        content = (folder / RECORD_NAME).read_bytes()
        return Record.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except (OSError, ValueError):
        return None, ""
