"""Every wait has a limit: a process that dies or hangs ends the others with a word, and is not waited for."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from benchmark import peers, process_group, readers, shard_processes
from benchmark.forked_cell import fork_server
from benchmark.peers import Peers
from benchmark.readers import named_readers, read
from protocols.errors import HarnessError
from tests.benchmark.forked_ranks import RUNTIME


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """AssertionError where this is waited for longer; whatever processes are left are killed."""

    def fail(*_: object) -> None:
        raise AssertionError(f"waited for more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for left in multiprocessing.active_children():
            left.kill()


class Signalled(Dataset[int]):
    """Item 3's reading process gets a signal before it can give it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), self.number)
        return item


def test_a_reading_process_that_is_killed_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(HarnessError, match=r"^the reading process \d+ (was killed|ended).*fewer --workers"):
        list(read(Signalled(signal.SIGKILL), order=range(8), workers=2))
    assert time.monotonic() - started < readers.READER_SECONDS / 4, "it was not waited for"


def test_whoever_stops_asking_waits_for_no_reading_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thrown away in a cycle, as by an error that holds on to it: torch would wait 5 s for each of them."""
    ended: list[object] = []
    end = readers._end
    monkeypatch.setattr(readers, "_end", lambda processes: (ended.extend(processes), end(processes))[1])
    items = read(Signalled(0), order=range(8), workers=2)
    next(items)
    cycle: list[object] = [items]
    cycle.append(cycle)
    del items, cycle
    gc.collect()
    assert len(ended) == 2
    assert not set(ended) & set(multiprocessing.active_children())


def test_full_shared_memory_is_not_taken_for_another_lack() -> None:
    said = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."
    told = r"^the reading process 7 was killed .*/dev/shm.*--shm-size"
    with pytest.raises(HarnessError, match=told), named_readers():
        raise RuntimeError(said)


def test_a_reading_process_that_hangs_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READER_SECONDS", 1.0)
    told = r"^no batch came .* for 1 s; its processes: .*\(stopped\)"
    with no_longer_than(60), pytest.raises(HarnessError, match=told) as raised:
        list(read(Signalled(signal.SIGSTOP), order=range(8), workers=2))
    pids = re.findall(r"pid (\d+)", str(raised.value))
    assert len(pids) == 2
    # Whoever is stopped would be waited for at this process's end.
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_what_is_read_stay_what_they_are(workers: int) -> None:
    class Broken(Dataset[int]):
        def __getitem__(self, item: int) -> int:
            raise RuntimeError("such an image")

    with pytest.raises(RuntimeError, match="such an image"):
        list(read(Broken(), order=range(8), workers=workers))


def test_reading_draws_from_nobodys_generator() -> None:
    torch.manual_seed(3)
    assert list(read(Signalled(0), order=[2, 0, 1], workers=0)) == [2, 0, 1]
    found = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), found)


def stop_at_two(shard: int) -> int:
    if shard == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return shard


def test_a_process_at_a_shard_that_hangs_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_processes, "SHARD_SECONDS", 1.0)
    found = shard_processes.in_processes(stop_at_two, range(4), workers=1)
    assert [next(found), next(found)] == [0, 1]
    told = r"the reading processes \d+ finished nothing for 1 s"
    with no_longer_than(60), pytest.raises(HarnessError, match=told):
        next(found)


def test_nobody_waits_for_ever_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(peers, "POLL_SECONDS", 0.0)
    told = "did not come to 'ready/1' within 0 h: it hangs"
    with no_longer_than(20), pytest.raises(HarnessError, match=told):
        Peers(rank=0, processes=2, store=dist.HashStore()).wait_for_all("ready")


def sum_up(rank: int, port: int) -> None:
    """Two sums with another process, which stops before the second."""
    process_group.TIMEOUT = timedelta(seconds=3)
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=120))
    process_group.join(Peers(rank=rank, processes=2, store=store), device="cpu")
    number = torch.ones(())
    dist.all_reduce(number)
    assert float(number) == 2
    if rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        dist.all_reduce(number)
    except RuntimeError:
        os._exit(7)


@pytest.fixture
def hanging_pair() -> Iterator[tuple[int | None, int | None]]:
    """Exit codes of both processes of `sum_up` once the first has ended, or after a minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = fork_server(RUNTIME)
    ranks = [server.Process(target=sum_up, args=(rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[0].join(120)
    yield ranks[0].exitcode, ranks[1].exitcode
    for rank in ranks:
        rank.kill()
        rank.join()


def test_a_process_that_hangs_in_a_sum_ends_the_other(
    hanging_pair: tuple[int | None, int | None],
) -> None:
    assert hanging_pair == (7, None)


def test_the_documented_limits_are_those_of_the_code() -> None:
    """docs/reliability.md's table of waits."""
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for name, seconds in limits().items():
        assert re.search(rf"^\| .*`{re.escape(name)}`.* \| {seconds:g} s \|", text, re.MULTILINE), name


def limits() -> dict[str, float]:
    """Constant -> seconds."""
    from benchmark import cluster_queue, execute, fitting, measure_steps, worker

    return {
        "readers.READER_SECONDS": readers.READER_SECONDS,
        "shard_processes.SHARD_SECONDS": shard_processes.SHARD_SECONDS,
        "process_group.TIMEOUT": process_group.TIMEOUT.total_seconds(),
        "peers.WAIT_SECONDS": peers.WAIT_SECONDS,
        "peers.CONNECT": peers.CONNECT.total_seconds(),
        "peers.LEAVE_SECONDS": peers.LEAVE_SECONDS,
        "worker.LOCK_SECONDS": worker.LOCK_SECONDS,
        "execute.GRACE_SECONDS": execute.GRACE_SECONDS,
        "fitting.SEEN_SECONDS": fitting.SEEN_SECONDS,
        "measure_steps.GRACE_SECONDS": measure_steps.GRACE_SECONDS,
        "cluster_queue.QUEUE_SECONDS": cluster_queue.QUEUE_SECONDS,
    }
