"""A cell in a process of its own, forked from a server that has imported torch once and started nothing.

A cell starts in milliseconds instead of seconds, and memory, signals, random state and CUDA stay apart all
the same. Loads no torch itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
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
            # Of a server that is just dying, this finds out by itself, and starts the next.
            with _given_to_a_server():
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

    It ends with this process by the kernel, from its first import on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    threads = {
        name: str(runtime.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    os.environ |= threads
    with _given_to_a_server():
        forkserver.ensure_running()
    return context


@contextmanager
def _given_to_a_server() -> Iterator[None]:
    """What a server that is started meanwhile has from its first moment on.

    It is told where the repository is and to look nowhere else for it: Python 3.11 gives it neither
    this process's path nor anything but the current folder. SIGINT and SIGHUP are blocked, for a terminal
    sends them to the whole group; and SIGTERM, which systems send to all processes of a job: cells end with
    it (worker.py), and could not save their step. From its first import on (ends_with_harness.py) it ignores
    them; this process is told of them a moment later.
    """
    resource_tracker.ensure_running()  # which frees some of these signals once it has started
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    given = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", PARENT_VARIABLE: str(os.getpid())}
    before = {name: os.environ.get(name) for name in given}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        os.environ |= given
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
