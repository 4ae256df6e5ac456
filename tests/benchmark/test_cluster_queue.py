"""The ledger of what was submitted, and what a run and `status` make of it and of squeue's answers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.cluster_queue import Entry, Ledger, ledger_path, read_ledger, read_queue, write_ledger
from benchmark.cluster_queue import Task as QueueTask
from benchmark.commands.submit import check_not_queued
from benchmark.plan import Cell, make_plan, select
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.submitting import TINY, cluster_file, options_of, submit_open

CHOICE = ("--methods", "mim", "pim", "--evaluations", "linear-probe")


def plan() -> list[Cell]:
    protocol = load_protocol(str(TINY))
    return make_plan(protocol, select(protocol, methods=["mim", "pim"], evaluations=["linear-probe"]))


def entry(array: str, index: int, job: str | None = "7") -> Entry:
    return Entry(scheduler="slurm", array=array, index=index, job=job, at="2026-01-01T00:00:00+00:00")


def note(work_dir: Path, cells: dict[str, Entry]) -> None:
    (work_dir / "tiny" / "cells").mkdir(parents=True)
    write_ledger(ledger_path(work_dir, "tiny"), Ledger(cells=cells))


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that prints the file given back, in the harness's format, and keeps what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/answer\n')
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "answer"


def test_the_queue_is_asked_by_names_and_finds_what_the_ledger_could_not_note(squeue: Path) -> None:
    ledger = Ledger(
        cells={"a": entry("p-1", 0), "b": entry("p-1", 3), "c": entry("q-2", 0, None), "d": entry("q-2", 1)}
    )
    squeue.write_text(
        "7|0|p-1|RUNNING|None\n7|3|p-1|PENDING|Resources, or so | it says\n"
        "9|0|q-2|COMPLETED|None\n7|N/A|p-1|PENDING|None\n"
    )
    queue = read_queue(ledger)
    assert queue.problem is None
    assert queue.tasks["a"] == QueueTask("7", 0, "RUNNING")
    assert queue.tasks["b"].reason == "Resources, or so | it says"
    assert queue.tasks["c"].name == "9_0"
    assert [name for name in ledger.cells if queue.is_active(name)] == ["a", "b"]
    assert "--name=p-1,q-2" in (squeue.parent / "asked").read_text()


def test_without_squeue_status_says_so_and_nothing_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, file = tmp_path / "runs", cluster_file(tmp_path)
    cell = plan()[0]
    note(work_dir, {cell.id: entry("p-1", 0)})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status", "--protocol", str(TINY), "--work-dir", str(work_dir), *CHOICE]) == 0
    assert "queue: not asked, there is no squeue on this machine" in capsys.readouterr().out
    with pytest.raises(HarnessError, match="there is no squeue on this machine, and cells were submitted"):
        submit_open(work_dir, file, *CHOICE)
    assert submit_open(work_dir, file, *CHOICE, "--dry-run") == 0
    assert "the queue was not asked" in capsys.readouterr().err


def test_status_shows_what_waits_and_what_left_without_a_record(
    tmp_path: Path, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "runs"
    tokenise, *others = plan()
    cells = {tokenise.id: entry("t-1", 0, "6")} | {one.id: entry("p-1", n) for n, one in enumerate(others)}
    note(work_dir, cells)
    squeue.write_text("6|0|t-1|RUNNING|None\n7|0|p-1|PENDING|Priority\n7|1|p-1|TIMEOUT|TimeLimit\n")
    (squeue.parent / "sacct").write_text("#!/bin/sh\necho '7_2|CANCELLED by 0'\n")
    (squeue.parent / "sacct").chmod(0o755)
    command = ["status", "--protocol", str(TINY), "--work-dir", str(work_dir), *CHOICE]
    main(command)
    text = capsys.readouterr().out
    assert re.search(r"^stage +cells +running +to do +queued$", text, re.MULTILINE)
    assert re.search(r"^all +5 +1 +4 +1$", text, re.MULTILINE)
    assert "- tokenise k-pixel, job 6_0\n" in text
    assert "queue: 1 running, 1 waiting (Priority)\nleft the queue without a record" in text
    lost = text.partition("without a record")[2].replace("\n  ", " ")
    assert f"{others[1].id}, job 7_1: TIMEOUT TimeLimit" in lost
    assert f"{others[2].id}, job 7_2: CANCELLED" in lost
    assert f"{others[3].id}, job 7_3: how is not known" in lost
    main([*command, "--json"])
    first, second, *_ = json.loads(capsys.readouterr().out)["cells"]
    assert (first["state"], first["job"]["state"]) == ("running", "RUNNING")
    assert second["job"] == {
        "job": "7_0", "submitted_at": "2026-01-01T00:00:00+00:00", "state": "PENDING", "reason": "Priority",
    }  # fmt: skip


def test_a_run_on_one_machine_keeps_away_from_what_is_queued(
    tmp_path: Path, squeue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, protocol = tmp_path / "runs", load_protocol(str(TINY))
    options = options_of(work_dir, tmp_path / "unused.yaml")
    check_not_queued(options, protocol)
    note(work_dir, {"a": entry("p-1", 0), "b": entry("p-1", 1)})
    squeue.write_text("7|0|p-1|COMPLETED|None\n7|1|p-1|PENDING|Priority\n")
    with pytest.raises(HarnessError, match=r"1 cell of .* \(7_1\)"):
        check_not_queued(options, protocol)
    squeue.write_text("7|0|p-1|COMPLETED|None\n")
    check_not_queued(options, protocol)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    check_not_queued(options, protocol)
    assert "its queue was not asked: there is no squeue" in capsys.readouterr().err


def test_a_damaged_ledger_is_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    assert read_ledger(path) is None
    path.write_text('{"schema_version": 1, "cells": {"a": {}}}')
    with pytest.raises(HarnessError, match="cannot be read"):
        read_ledger(path)


def test_without_sbatch_the_remedy_is_named_and_nothing_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = tmp_path / "runs"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match="there is no sbatch on this machine"):
        submit_open(work_dir, cluster_file(tmp_path), *CHOICE)
    assert read_ledger(ledger_path(work_dir, "tiny")) == Ledger()
