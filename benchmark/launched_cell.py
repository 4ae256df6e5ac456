"""A cell that several processes of this machine share, under torchrun: started, watched, ended. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.cell_command import PROGRAM
from benchmark.die_with_parent import PARENT_VARIABLE
from benchmark.disk_trouble import LAST_WORDS_VARIABLE

ROOT = PROGRAM.parent


class LaunchedCell:
    """torchrun as a child process, with the parts of multiprocessing's Process that the scheduler uses.

    Its session is its own: a terminal's signals reach this process alone, which ends its children politely.
    Killed, it takes its processes with it (benchmark/die_with_parent.py).
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        processes: int,
        threads: int,
        log: Path,
        devices: Sequence[str],
        last_words: str,
    ) -> None:
        """`words` follow `run_benchmark.py`; `devices` are the GPUs to be seen, none on a CPU.

        `last_words` is where its processes say what a disk did to them.
        """
        command = [
            sys.executable, "-m", "benchmark.elastic", "--standalone", "--local-addr=127.0.0.1",
            f"--nproc-per-node={processes}", "--max-restarts=0", str(PROGRAM), *words,
        ]  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**_environment(devices, threads=threads), LAST_WORDS_VARIABLE: last_words},
                start_new_session=True,
            )

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask all its processes to save their step and end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and by that its processes."""
        self._send(signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        """Return when it has ended, or after `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return

    def _send(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def _environment(devices: Sequence[str], *, threads: int) -> Mapping[str, str]:
    """This process's, for torchrun: nothing of another launcher, and `benchmark` to be found."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: str(os.getpid())}
    if devices:
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return ours
