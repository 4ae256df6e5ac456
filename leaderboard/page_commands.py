"""The commands that run a whole board again."""

from __future__ import annotations

import shlex

import pandas as pd

from leaderboard.lineage import TOKEN_CLASSIFICATION
from leaderboard.tables import Board
from protocols.schema import Protocol


def command(board: Board, protocol: Protocol) -> str:
    """The command that runs every row of the board again, and those that would stand on it but are stale.

    A second line where there are rows of tokens alone, which no method brings. The protocol's defaults
    if there is no row yet.
    """
    lines = [_command_of_rows(board, protocol), _command_of_tokens(board, protocol)]
    wanted = [shlex.join(parts) for parts in lines if parts]
    return "\n".join(wanted) or shlex.join(_start(protocol))


def _start(protocol: Protocol) -> list[str]:
    return ["python", "run_benchmark.py", "--protocol", protocol.argument]


def _command_of_tokens(board: Board, protocol: Protocol) -> list[str]:
    stale = board.stale[board.stale["stage"] == TOKEN_CLASSIFICATION]
    stale = stale[(stale["deviations"] == "") & (stale["differing_slices"] == "")]
    runs = board.runs[(board.runs["standing"] == "board") & (board.runs["stage"] == TOKEN_CLASSIFICATION)]
    columns = ["tokenizer", "evaluation", "seed"]
    cells = pd.concat([frame[columns] for frame in (runs, stale) if len(frame)] or [runs[columns]])
    if not len(cells):
        return []
    seeds = [str(seed) for seed in sorted(cells["seed"].dropna().unique())]
    plugins = board.plugin_files.words((), cells["tokenizer"])
    return [
        *_start(protocol), *plugins, "--tokenizers", *dict.fromkeys(cells["tokenizer"]),
        "--evaluations", *dict.fromkeys(cells["evaluation"]), *(["--seeds", *seeds] if seeds else []),
    ]  # fmt: skip


def _command_of_rows(board: Board, protocol: Protocol) -> list[str]:
    stale = board.stale
    stale = stale[(stale["method"] != "") & (stale["deviations"] == "") & (stale["differing_slices"] == "")]
    rows = pd.concat([frame for frame in (board.rows, stale) if len(frame)] or [stale])
    if not len(rows):
        return []
    runs = board.runs[(board.runs["standing"] == "board") & (board.runs["method"] != "")]
    parts = _start(protocol)
    seeds = [*runs["seed"].dropna(), *stale["seed"].dropna()]
    chosen = {
        "--methods": dict.fromkeys(rows["method"]),
        "--tokenizers": dict.fromkeys(name for name in rows["tokenizer"] if name),
        "--trunks": dict.fromkeys(rows["trunk"]),
        "--seeds": dict.fromkeys(str(seed) for seed in sorted(seeds)),
    }
    parts += board.plugin_files.words(chosen["--methods"], chosen["--tokenizers"])
    for option, values in chosen.items():
        if values:
            parts += [option, *values]
    return parts
