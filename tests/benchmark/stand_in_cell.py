"""Stands in for Python in a cluster file: told to run a cell, it waits and records without training.

`python stand_in_cell.py FOLDER run_benchmark.py cell ID ...`. The plan, the record and the exit codes are the
harness's own; what a cell does is said by files in FOLDER: `ID.fails` makes it fail, `ID.waits` makes it wait
until it is gone, and with `ID.real` Python runs the cell itself. SIGTERM ends a waiting cell as it ends a
training: 143, and nothing recorded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from benchmark.cli import build_parser
from benchmark.commands.deviations import chosen_cells
from benchmark.layout import cell_folder
from benchmark.record_cell import note_attempt, write_cell_record
from benchmark.runtime import Runtime


def main() -> int:
    """Run the cell; returns the exit code of the `cell` command."""
    folder, words = Path(sys.argv[1]), sys.argv[3:]
    options = build_parser(words[0]).parse_args(words[1:])
    protocol, _, plan = chosen_cells(options)
    (cell,) = [one for one in plan if one.id == options.cell]
    if (folder / f"{cell.id}.real").exists():
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
    own = cell_folder(options.work_dir, protocol.name, cell.id)
    (own / "record.json").unlink(missing_ok=True)

    def stop(number: int, frame: FrameType | None) -> None:
        note_attempt(own, event="interrupted")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    note_attempt(own, event="start")
    print("stands in for", cell.id, flush=True)
    while (folder / f"{cell.id}.waits").exists():
        time.sleep(0.1)
    fails = (folder / f"{cell.id}.fails").exists()
    write_cell_record(
        cell,
        protocol,
        Runtime(device="cpu", jobs=1, threads=1),
        options.work_dir,
        status="failed" if fails else "done",
        error="a stand-in was told to fail" if fails else None,
        peak_memory_bytes=0,
        **({} if fails else {"device": "none"}),
    )
    return int(fails)


if __name__ == "__main__":
    sys.exit(main())
