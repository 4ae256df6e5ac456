"""The machine: cores, memory, the limits of its containers, shared memory, open files. No torch."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from benchmark.commands.text import size
from benchmark.doctor import Asked, Finding, failed, ok, warning
from protocols import list_protocols, load_protocol

SHARED_MEMORY = Path("/dev/shm")
CGROUPS = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")
MEMORY_PER_JOB = 1.5e9  # the hungriest cell of mini took 1.3 GB
BATCHES_PER_WORKER = 2  # prefetch_factor of the engine's loader
FILES_AT_REST, FILES_PER_WORKER = 256, 32  # libraries and stores; what a reading process has under way
UNLIMITED = 1 << 60  # what cgroups call no limit is a number near 2**63


def cores_and_memory(asked: Asked) -> Iterator[Finding]:
    """What this process may use, not what the machine has."""
    cores = len(os.sched_getaffinity(0))
    granted = cpu_limit()
    if granted is not None and granted < cores - 0.5:
        yield warning(
            "cores",
            f"{cores} are visible, but the container may use only {granted:.1f} at a time: as many cells as "
            "cores would slow each other down",
            f"give --jobs {max(1, round(granted))}",
        )
    else:
        yield ok("cores", f"{cores} of the machine's {os.cpu_count()}")
    memory = available_memory()
    wanted = cores * MEMORY_PER_JOB
    if memory is None:
        yield warning(
            "memory",
            "how much is free is unknown: there is no /proc/meminfo",
            f"mount /proc, or give --jobs N with {size(MEMORY_PER_JOB)} for each",
        )
    elif memory < MEMORY_PER_JOB:
        yield failed("memory", f"{size(memory)} are free; one cell of mini takes up to 1.3 GB", "free some")
    elif memory < wanted:
        yield warning(
            "memory",
            f"{size(memory)} are free, too few for {cores} cells side by side at {size(MEMORY_PER_JOB)} each",
            f"give --jobs {int(memory // MEMORY_PER_JOB)}",
        )
    else:
        yield ok("memory", f"{size(memory)} free for {cores} cells side by side")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and (not threads.isdecimal() or not 0 < int(threads) <= cores):
        yield warning(
            "OMP_NUM_THREADS",
            f"{threads!r}, with {cores} cores: libraries of this process start more threads than that",
            "unset it, or set it to 1: cells set their own",
        )
    else:
        yield ok("OMP_NUM_THREADS", "not set; cells set their own" if threads is None else threads)


def available_memory() -> float | None:
    """Bytes that this process may still take: the machine's, or what its control groups leave.

    None where neither is told.
    """
    try:
        stated = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        free = float(stated["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = math.inf
    for folder in _groups("memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes") or 0
        if limit is not None and limit < UNLIMITED:
            free = min(free, max(0.0, limit - used))
    return None if free == math.inf else free


def cpu_limit() -> float | None:
    """Cores' worth of time that the control groups grant; None without a limit."""
    found = []
    for folder in _groups("cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota = str(_number(folder / "cpu.cfs_quota_us") or -1)
            period = str(_number(folder / "cpu.cfs_period_us") or 1)
        if quota != "max" and float(quota) > 0:
            found.append(float(quota) / float(period))
    return min(found, default=None)


def _groups(controller: str) -> list[Path]:
    """The folders, of version 1 and 2, whose limits bind this process, its own and those above."""
    folders = [CGROUPS, CGROUPS / controller]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            top = CGROUPS / controller if names else CGROUPS
            own = top / path.lstrip("/")
            folders += [one for one in (own, *own.parents) if top in one.parents]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _number(*paths: Path) -> float | None:
    for path in paths:
        try:
            return float(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def shared_memory(asked: Asked) -> Iterator[Finding]:
    """Room for the batches that reading processes hand over."""
    batches = {}
    for name in list_protocols():
        protocol = load_protocol(name)
        batches[name] = protocol.pretraining.global_batch * 3 * protocol.data.image_size**2
    largest = max(batches, key=lambda name: batches[name])
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        remedy = "mount a tmpfs there, or read with --workers 0"
        yield failed("shared memory", f"there is no {SHARED_MEMORY}, which reading processes need", remedy)
        return
    free = status.f_bavail * status.f_frsize
    room = free // (BATCHES_PER_WORKER * batches[largest])
    text = (
        f"{size(free)} free in {SHARED_MEMORY}: room for {room:,} reading processes of {largest}, which keep "
        f"{BATCHES_PER_WORKER} batches of up to {size(batches[largest])} each"
    )
    remedy = "make it larger (docker run --shm-size 16g, or --ipc=host), or give fewer --workers"
    if asked.workers > room:
        yield failed("shared memory", f"{text}; --workers {asked.workers} do not fit", remedy)
    elif not room:
        yield warning("shared memory", text, remedy)
    else:
        yield ok("shared memory", text)


def open_files(asked: Asked) -> Iterator[Finding]:
    """The limit on them against what reading processes hand over."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield ok("open files", "no limit")
        return
    needed = FILES_AT_REST + FILES_PER_WORKER * asked.workers
    room = max(0, (soft - FILES_AT_REST) // FILES_PER_WORKER)
    enough = max(needed, FILES_AT_REST + 8 * FILES_PER_WORKER)
    reachable = hard == resource.RLIM_INFINITY or hard >= enough
    remedy = f"ulimit -n {max(4096, enough) if reachable and hard > 4096 else enough}"
    remedy += "" if reachable else f" needs an administrator: the hard limit is {hard}"
    text = f"the limit is {soft:,}: enough for {room:,} reading processes"
    if soft < needed:
        yield failed("open files", f"{text}; --workers {asked.workers} take up to {needed:,}", remedy)
    elif soft < enough:
        yield warning("open files", text, remedy)
    else:
        yield ok("open files", text)
