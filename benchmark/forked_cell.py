"""A cell in a process of its own, forked from a server that has imported torch once and started nothing.

A cell starts in milliseconds instead of seconds, and memory, signals, random state and CUDA stay apart all
the same. Loads no torch itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from benchmark.die_with_parent import PARENT_VARIABLE
from benchmark.job import Job, run_in_child
from benchmark.runtime import Runtime
from benchmark.stopping import STOPPING
from protocols.errors import HarnessError

DYING_SECONDS = 5.0  # in which a killed server answers no more and is not yet known to be dead
ROOT = Path(__file__).parent.parent
IMPORTED = ("benchmark.ends_with_harness", "benchmark.worker", "benchmark.embedded_once")


def start_forked(job: Job) -> ForkServerProcess:
    """Start the job's cell, from another server if that one has been killed.

    Raises HarnessError if servers die again and again, as they do whose imports fail.
    """
    deadline = None
    while True:
        process = fork_server(job.runtime).Process(target=run_in_child, args=(job,), name=job.cell.id)
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            deadline = deadline or time.monotonic() + DYING_SECONDS
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"the process that cells are started from has died ({type(error).__name__}); "
                    "its message stands above; `python -c 'import benchmark.worker'` shows it again"
                ) from None
            time.sleep(0.1)
        else:
            return process


def fork_server(runtime: Runtime) -> multiprocessing.context.ForkServerContext:
    """The fork server, started on first use; what it imports must start no threads and no CUDA.

    It is told where the repository is and to look nowhere else for it: Python 3.11 gives it neither
    this process's path nor anything but the current folder. SIGINT and SIGHUP are ignored from its
    first moment, for a terminal sends them to the whole group; and SIGTERM, which systems send to all
    processes of a job: cells end with it (worker.py), and could not save their step. So it ends with
    this process by the kernel, from its first import on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    threads = {
        name: str(runtime.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= threads
    given = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", PARENT_VARIABLE: str(os.getpid())}
    before = {name: os.environ.get(name) for name in given}
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        os.environ |= given
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return context
