"""Two processes on one work dir: a cell runs in one of them, and the other says who has it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark import execute as execution
from benchmark.cli import main
from benchmark.execute import Placement, execute
from benchmark.file_lock import held_lock
from benchmark.layout import LOCK_NAME, cell_folder
from benchmark.plan import Cell
from benchmark.survey import survey
from leaderboard.record import Record, read_record
from protocols.errors import HarnessError
from tests.benchmark.forked_ranks import in_processes
from tests.campaigns.racing import RUNTIME, Race, random_trunk, start
from tests.error_settings import TINY

PROCESSES, RACES = 4, 9
PROTOCOL, CELL = random_trunk()
TWO = RUNTIME.model_copy(update={"processes": 2})
CHOICE = ("--protocol", str(TINY), "--methods", "scratch", "--evaluations", "linear-probe", "--device", "cpu")


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> list[Race]:
    """All run. In every third one the first process is killed in its work; in another its folder goes."""
    folder = tmp_path_factory.mktemp("races")
    made = [
        Race(folder / str(seed), folder / f"{seed}.diary", seed, seed % 3 == 1, seed % 3 == 2)
        for seed in range(RACES)
    ]
    in_processes(start, made, processes=PROCESSES)
    return made


def _lines(race: Race) -> list[tuple[str, str]]:
    return [(word, who) for word, who in (line.split() for line in race.diary.read_text().splitlines())]


def test_a_cell_runs_in_one_process_at_a_time_and_once_in_all(races: list[Race]) -> None:
    for race in races:
        if race.first_dies or race.folder_goes:
            continue
        (first, second) = _lines(race)
        assert (first[0], second[0]) == ("begins", "ends")
        assert first[1] == second[1]
        record = read_record(_folder(race.work_dir))
        assert record is not None
        assert [one.outcome for one in record.attempts] == ["done"]


def test_after_a_killed_owner_one_of_the_others_takes_over(races: list[Race]) -> None:
    for race in (one for one in races if one.first_dies):
        (killed, begins, ends) = _lines(race)
        assert (killed[0], begins[0], ends[0]) == ("begins", "begins", "ends")
        assert killed[1] != begins[1] == ends[1]
        record = read_record(_folder(race.work_dir))
        assert record is not None
        assert [one.outcome for one in record.attempts] == ["interrupted", "done"]


def test_whose_folder_was_deleted_records_nothing(races: list[Race]) -> None:
    """Whoever has the new folder's lock by then records, and nobody else."""
    for race in (one for one in races if one.folder_goes):
        lines = _lines(race)
        runs = [who for word, who in lines if word == "begins"]
        assert len(runs) == 2, lines
        record = read_record(_folder(race.work_dir))
        assert record is not None
        assert [one.outcome for one in record.attempts] == ["done"]
        starts = (_folder(race.work_dir) / "attempts.jsonl").read_text()
        assert runs[0] not in starts
        assert runs[1] in starts


def _folder(work_dir: Path) -> Path:
    return cell_folder(work_dir, PROTOCOL.name, CELL.id)


class Launched:
    """Stands for a process of the cell that found another one running it."""

    exitcode = 75

    def __init__(self, words: Sequence[str], **settings: Any) -> None:
        pass

    def terminate(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


class Silent:
    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None: ...

    def ended(self, cell: Cell, record: Record) -> None: ...


def test_a_run_beside_a_cell_by_hand_records_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LaunchedCell", Launched)
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    placement = Placement(of=lambda cell: TWO, words=lambda cell, runtime: [])
    with held_lock(_folder(tmp_path) / LOCK_NAME):
        (record,) = execute([CELL], PROTOCOL, RUNTIME, tmp_path, display=Silent(), placement=placement)
        assert record.status == "failed"
        assert f"another process (process {os.getpid()} on " in (record.error or "")
        assert read_record(_folder(tmp_path)) is None
        assert not (_folder(tmp_path) / "attempts.jsonl").exists()
        (state,) = survey([CELL], PROTOCOL, tmp_path)
        assert state.state == "running"
        assert state.reasons[0].startswith(f"by process {os.getpid()} on ")
    (state,) = survey([CELL], PROTOCOL, tmp_path)
    assert state.state == "to do"


def test_what_a_run_says_of_a_killed_cell_never_stands_over_anothers_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed three times; by then somebody runs the cell by hand."""
    monkeypatch.setattr(execution, "LaunchedCell", Launched)
    monkeypatch.setattr(Launched, "exitcode", -9)
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(execution, "DYING_SECONDS", 0.0)
    placement = Placement(of=lambda cell: TWO, words=lambda cell, runtime: [])
    with held_lock(_folder(tmp_path) / LOCK_NAME):
        (record,) = execute([CELL], PROTOCOL, RUNTIME, tmp_path, display=Silent(), placement=placement)
        assert record.status == "failed"
        assert read_record(_folder(tmp_path)) is None
    (record,) = execute([CELL], PROTOCOL, RUNTIME, tmp_path, display=Silent(), placement=placement)
    assert read_record(_folder(tmp_path)) == record


@pytest.mark.parametrize("command", [(), ("tokenize",)], ids=["run", "tokenize"])
def test_a_second_run_says_who_has_the_work_dir(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = CHOICE if not command else ("--protocol", str(TINY), "--device", "cpu")
    with held_lock(tmp_path / "runs" / "tiny" / LOCK_NAME):
        assert main([*command, *choice, "--work-dir", str(tmp_path / "runs")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"another run (process {os.getpid()} on {os.uname().nodename}, since " in said
    assert f"is using {tmp_path / 'runs' / 'tiny'}; wait for it" in said
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [tmp_path / "runs" / "tiny" / LOCK_NAME]


def test_of_two_executions_the_second_raises_before_it_reads(tmp_path: Path) -> None:
    with held_lock(tmp_path / PROTOCOL.name / LOCK_NAME), pytest.raises(HarnessError, match="another run"):
        execute([CELL], PROTOCOL, RUNTIME, tmp_path, display=Silent())
