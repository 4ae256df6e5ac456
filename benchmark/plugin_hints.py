"""A name that nobody knows here, and records of this work dir do: the plug-in that made them is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from leaderboard.record import plugin_words, read_records
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
                words = shlex.join(plugin_words([used.plugin]))
                remedy = f"give {words}, with its folder" if words else "install that package"
                raise HarnessError(
                    f"{kind} {used.name!r} is known from records in {work_dir} alone: it came from the "
                    f"plug-in {used.plugin}; {remedy} (report and compare need only the records)"
                )
