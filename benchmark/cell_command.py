"""The words of a command line that make any process, here or on another machine, run just one cell."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from benchmark.plugins import loaded_plugins
from benchmark.runtime import Runtime
from benchmark.survey import present_sources
from protocols.frozen import digest_of

PROGRAM = Path(__file__).parent.parent / "run_benchmark.py"


def cell_arguments(options: Namespace, cell_id: str, runtime: Runtime) -> list[str]:
    """What follows `run_benchmark.py`, for the cell `cell_id` of the run that `options` describe.

    `runtime` is that of the cell: its processes are the launcher's business, its other values are told.
    """
    words = ["cell", cell_id, "--protocol", _absolute(options.protocol)]
    words += ["--work-dir", str(options.work_dir.absolute())]
    for kind in ("methods", "tokenizers", "trunks", "evaluations", "views", "seeds", "set"):
        given = getattr(options, kind)
        if given:
            words += [f"--{kind}", *given]
    if loaded_plugins():
        words += ["--plugin", *loaded_plugins()]
    if options.data_root is not None:
        words += ["--data-root", str(options.data_root.absolute())]
    words += ["--device", runtime.device, "--precision", runtime.precision, "--images", runtime.images]
    words += ["--workers", str(runtime.workers), "--threads", str(runtime.threads)]
    words += ["--accumulation", str(runtime.accumulation)]
    words += ["--checkpoint-seconds", f"{runtime.checkpoint_seconds:g}"]
    if runtime.compile:
        words.append("--compile")
    if runtime.activation_checkpointing:
        words.append("--activation-checkpointing")
    if options.redo_stale:
        words.append("--redo-stale")
    return [*words, "--code", code_digest()]


def code_digest() -> str:
    """Over the code of all methods and tokenizers: the processes of one run must have the same."""
    return digest_of(present_sources())[:12]


def python_command(words: list[str]) -> list[str]:
    """The command that runs them in a fresh interpreter of the same environment."""
    return [sys.executable, str(PROGRAM), *words]


def _absolute(protocol: str) -> str:
    """A protocol's file by its whole path; a protocol's name as it is."""
    return str(Path(protocol).absolute()) if protocol.endswith((".yaml", ".yml")) else protocol
