"""A name that nobody knows here, and records of this work dir do: the plug-in that made them is missing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from leaderboard.record import read_records
from methods import list_methods
from protocols.errors import HarnessError
from tokenizers import list_tokenizers


def check_recorded_plugins(
    protocol: str, work_dir: Path, *, methods: Iterable[str] = (), tokenizers: Iterable[str] = ()
) -> None:
    """HarnessError that names the plug-in, for a name of a plug-in's that only records of `work_dir` know."""
    wanted = {("method", name.lower()) for name in methods if name.lower() not in list_methods()}
    wanted |= {("tokenizer", name.lower()) for name in tokenizers if name.lower() not in list_tokenizers()}
    records = []
    with suppress(HarnessError):  # damaged ones are told of where they matter
        records = read_records(work_dir, protocol) if wanted else []
    for record in records:
        for kind, used in (("method", record.method), ("tokenizer", record.tokenizer)):
            if used is not None and used.plugin and (kind, used.name) in wanted:
                raise HarnessError(
                    f"{kind} {used.name!r} is known from records in {work_dir} alone: it came from the "
                    f"plug-in {used.plugin}; give --plugin with that file, or its folder, or install that "
                    "package (report and compare need only the records)"
                )
