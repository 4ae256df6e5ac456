"""How cells of several processes end: what the harness makes of torchrun's end, and a process of its peers'.

No process is started here; tests/benchmark/test_launched_cells.py starts and kills real ones.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch.distributed as dist

from benchmark import execute as execution
from benchmark import worker
from benchmark.execute import Placement, execute
from benchmark.interrupt import Interrupted
from benchmark.job import Job
from benchmark.layout import cell_folder
from benchmark.peers import Peers, hosting, leave_together
from benchmark.plan import Cell, make_plan, select
from benchmark.process_group import ShareDone
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import present_sources
from leaderboard.record import Record, read_record
from protocols import load_protocol
from protocols.errors import HarnessError

TINY = load_protocol(str(Path(__file__).parent.parent / "tiny.yaml"))
RUNTIME = Runtime(device="cpu", jobs=2, threads=1)
TWO = RUNTIME.model_copy(update={"processes": 2})
(CELL,) = [cell for cell in make_plan(TINY, select(TINY)) if cell.stage == "tokenise"]


class Launched:
    """Stands for torchrun: ends at once, with the code that is set."""

    code: ClassVar[int]
    started: ClassVar[int]

    def __init__(self, words: Sequence[str], **settings: Any) -> None:
        type(self).started += 1
        self.exitcode = self.code

    def terminate(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


class Silent:
    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None: ...

    def ended(self, cell: Cell, record: Record) -> None: ...


@pytest.mark.parametrize(
    ("code", "starts", "said"),
    [
        (2, 1, "ended with code 2 and left no record"),
        (1, 3, "ended with code 1 3 times"),
        (137, 3, "was killed by SIGKILL (out of memory? then give fewer --jobs or --workers, and"),
        (-9, 3, "fewer --jobs or --workers, and --redo-failed) 3 times"),
        (143, 3, "was killed by SIGTERM 3 times"),
        (75, 3, "another process runs this cell; nothing is recorded here"),
    ],
)
def test_what_was_killed_starts_again_and_what_cannot_start_does_not(
    code: int, starts: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LaunchedCell", Launched)
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Launched, "code", code, raising=False)
    monkeypatch.setattr(Launched, "started", 0, raising=False)
    placement = Placement(of=lambda cell: TWO, words=lambda cell, runtime: [])
    (record,) = execute([CELL], TINY, RUNTIME, tmp_path, display=Silent(), placement=placement)
    assert record.status == "failed"
    assert said in (record.error or "")
    assert Launched.started == starts


def test_what_failed_with_a_record_does_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(Launched):
        """Its cell fails by itself, and says so."""

        def __init__(self, words: Sequence[str], **settings: Any) -> None:
            super().__init__(words)
            write_cell_record(
                CELL, TINY, TWO, tmp_path, status="failed", error="its own", peak_memory_bytes=0
            )

    monkeypatch.setattr(execution, "LaunchedCell", Recording)
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Recording, "code", 1, raising=False)
    monkeypatch.setattr(Recording, "started", 0, raising=False)
    placement = Placement(of=lambda cell: TWO, words=lambda cell, runtime: [])
    (record,) = execute([CELL], TINY, RUNTIME, tmp_path, display=Silent(), placement=placement)
    assert (record.status, record.error) == ("failed", "its own")
    assert Recording.started == 1


def test_each_process_of_a_cell_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --jobs 4 on two GPUs, slots 0 and 2 are the first one's."""
    monkeypatch.setattr(execution, "visible_gpus", lambda: ("a", "b"))
    runtime = Runtime(device="cuda", jobs=4, threads=1)
    placement = Placement(of=lambda cell: runtime.model_copy(update={"processes": 2}), words=lambda *_: [])
    running = execution._Execution(
        [CELL], TINY, runtime, tmp_path, Silent(), False, False, frozenset(), None, placement
    )
    assert running._slots_for(CELL, [0, 1, 2, 3]) == (0, 1)
    assert running._slots_for(CELL, [0, 2, 3]) == (0, 3)
    assert running._slots_for(CELL, [1, 3]) is None
    alone = execution._Execution(
        [CELL], TINY, runtime, tmp_path, Silent(), False, False, frozenset(), None, None
    )
    assert alone._slots_for(CELL, [1, 3]) == (1,)


def context_of(work_dir: Path, store: dist.Store, *, rank: int = 0) -> CellContext:
    context = CellContext(
        cell=CELL, protocol=TINY, runtime=TWO, work_dir=work_dir, peers=Peers(rank, 2, store),
    )  # fmt: skip
    context.folder.mkdir(parents=True)
    return context


def breaks(context: CellContext) -> Any:
    raise RuntimeError("Connection closed by peer")


def test_a_failure_that_is_a_lost_process_doing_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun has lost a process and ends this one: the cell goes on later."""
    monkeypatch.setitem(worker.STAGES, "tokenise", breaks)
    monkeypatch.setattr(worker, "LAUNCHER_SECONDS", 0.0)
    context = context_of(tmp_path, dist.HashStore())
    context.stop.raised = True
    with pytest.raises(Interrupted):
        worker.run_cell(context)
    assert read_record(context.folder) is None
    context.stop.raised = False
    assert worker.run_cell(context) == 1, "nobody else was lost"
    record = read_record(context.folder)
    assert record is not None
    assert record.error == "process 0 of 2: RuntimeError: Connection closed by peer"
    assert "Traceback" in capsys.readouterr().err


class Gone(dist.HashStore):
    """A store whose process has ended."""

    def check(self, keys: list[str]) -> bool:
        raise dist.DistNetworkError("connection reset")

    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("connection reset")

    def add(self, key: str, value: int) -> int:
        raise dist.DistNetworkError("connection reset")


def test_a_store_that_is_gone_undoes_nothing() -> None:
    peers = Peers(0, 2, Gone())
    peers.end()
    peers.wait_for_end()
    leave_together(peers)


def test_who_has_done_its_share_stays_until_the_first_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Store(dist.HashStore):
        def check(self, keys: list[str]) -> bool:
            asked.append(keys)
            return len(asked) > 3

    def share(context: CellContext) -> Any:
        raise ShareDone

    monkeypatch.setattr(worker.tokenise, "assist", share)
    monkeypatch.setattr("benchmark.peers.POLL_SECONDS", 0.0)
    assert worker.run_cell(context_of(tmp_path, Store(), rank=1)) == 0
    assert asked == [["over"]] * 4


def test_what_another_process_did_meanwhile_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `cell` by hand beside a run: between its look at the records and the lock the other one ended."""
    monkeypatch.setattr(worker, "_redirect_output", lambda log, rank: None)
    monkeypatch.setattr(worker, "run_cell", lambda context, **_: pytest.fail("it ran again"))
    store = dist.HashStore()
    job = Job(cell=CELL, protocol=TINY, runtime=TWO, work_dir=tmp_path, slot=0, sources=present_sources())
    done = write_cell_record(CELL, TINY, TWO, tmp_path, status="done", peak_memory_bytes=0)
    assert worker.run_here(job, Peers(0, 2, store)) == 0
    assert read_record(cell_folder(tmp_path, TINY.name, CELL.id)) == done
    assert Peers(1, 2, store).has_ended(), "the others do not wait for it"


def test_a_meeting_point_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in (
            ("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", str(taken.getsockname()[1])),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(HarnessError, match=r"cannot meet at MASTER_ADDR 127.0.0.1"), hosting():
            pass
