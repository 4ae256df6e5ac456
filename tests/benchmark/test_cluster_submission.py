"""What a submission leaves behind whatever sbatch answers, by programs that stand in for Slurm's."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.cluster_file import load_cluster_file
from benchmark.cluster_queue import Entry, Ledger, ledger_path, read_ledger, write_ledger
from benchmark.file_lock import try_lock
from protocols.errors import HarnessError
from tests.benchmark.submitting import cluster_file, submit_open, words_of

CHOICE = ("--methods", "mim", "--evaluations", "linear-probe")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs first on the PATH: sbatch takes arrays 1, 2, ..., and squeue prints `answer`.

    Each notes its environment in a file of its name with `.env`, sbatch each command line in `asked`.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "answer").touch()
    note = f"env > {folder}/$(basename $0).env"
    program(folder, "squeue", f"{note}; cat {folder}/answer")
    program(
        folder,
        "sbatch",
        f"{note}; echo $@ >> {folder}/asked; echo Submitted batch job $(wc -l < {folder}/asked)",
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def ledger_of(work_dir: Path) -> dict[str, Entry]:
    return dict((read_ledger(ledger_path(work_dir, "tiny")) or Ledger()).cells)


def test_no_variable_changes_what_the_file_asks_for_or_what_is_found(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster_file(tmp_path)
    for name in ("SBATCH_TIMELIMIT", "SLURM_MEM_PER_CPU", "SLURM_JOB_ID", "SQUEUE_USERS", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/its.conf")
    submit_open(tmp_path / "runs", file, *CHOICE)
    submit_open(tmp_path / "runs", file, *CHOICE)
    of_sbatch, of_squeue = ((slurm / f"{name}.env").read_text() for name in ("sbatch", "squeue"))
    slurms = [line for line in of_sbatch.splitlines() if line.startswith(("SBATCH_", "SLURM_", "SQUEUE_"))]
    assert sorted(slurms) == ["SLURM_CONF=/etc/its.conf", "SQUEUE_USERS=1"]
    assert "SLURM_CONF=/etc/its.conf" in of_squeue
    assert "SQUEUE_" not in of_squeue
    assert "SLURM_CLUSTERS" not in of_squeue
    assert os.environ["SBATCH_TIMELIMIT"] == "1"


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1",
        "echo queued",
    ],
    ids=["the controller was slow", "no number"],
)
def test_an_array_that_sbatch_may_have_taken_is_not_submitted_again(
    answer: str, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir, file = tmp_path / "runs", cluster_file(tmp_path)
    whole = (slurm / "sbatch").read_text()
    program(slurm, "sbatch", answer)
    with pytest.raises(HarnessError, match=r"gave no clear answer: .*may be in the queue all the same"):
        submit_open(work_dir, file, *CHOICE)
    ((cell, entry),) = ledger_of(work_dir).items()
    assert entry.job is None
    (slurm / "answer").write_text(f"70|0|{entry.array}|RUNNING|None\n")
    (slurm / "sbatch").write_text(whole)
    assert submit_open(work_dir, file, *CHOICE) == 0
    assert "2 cells submitted, 1 in the queue already" in capsys.readouterr().out
    assert ledger_of(work_dir)[cell].job == "70"
    assert "--dependency=afterok:70_0" in (slurm / "asked").read_text().splitlines()[0]


def test_a_clear_refusal_is_not_remembered(tmp_path: Path, slurm: Path) -> None:
    program(slurm, "sbatch", "echo 'sbatch: error: Job violates accounting/QOS policy' >&2; exit 1")
    with pytest.raises(HarnessError, match=r"refused an array: .*QOS policy.*wait where a limit is reached"):
        submit_open(tmp_path / "runs", cluster_file(tmp_path), *CHOICE)
    assert ledger_of(tmp_path / "runs") == {}


def test_what_waits_under_another_scheduler_is_not_waited_for(tmp_path: Path, slurm: Path) -> None:
    work_dir, entry = tmp_path / "runs", Entry(scheduler="slurm", array="p-1", index=0, job="7", at="")
    (work_dir / "tiny" / "cells").mkdir(parents=True)
    write_ledger(ledger_path(work_dir, "tiny"), Ledger(cells={"a": entry}))
    (slurm / "answer").write_text("7|0|p-1|PENDING|Priority\n")
    with pytest.raises(HarnessError, match=r"1 of the run's cells .* scheduler: slurm, .* \(7_0\)"):
        submit_open(work_dir, cluster_file(tmp_path, scheduler="local"), *CHOICE)


def test_the_command_that_follows_it_means_the_same_cells(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*CHOICE, "--set", "pretraining.epochs=3")
    submit_open(tmp_path / "my runs", cluster_file(tmp_path), *given)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("follow it:")]
    assert line.endswith(f"--work-dir '{tmp_path}/my runs' {' '.join(given)}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"time": "00:02:00"}, "time 00:02:00 leaves a cell nothing to work in: stop_seconds 90"),
        ({"stages": {"tokenise": {"time": "00:00:00"}}}, "time 00:00:00 leaves"),
        ({"sbatch": {"clusters": "all"}}, "--clusters is the harness's own"),
        ({"sbatch": {"mem-per-cpu": "4G"}}, "--mem-per-cpu is the harness's own"),
    ],
)
def test_what_could_only_go_wrong_is_refused(given: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=told):
        load_cluster_file(cluster_file(tmp_path, **given))
    load_cluster_file(cluster_file(tmp_path, time="00:02:00", stop_seconds=30))


# Scripts


def script_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the first array would run."""
    file = cluster_file(tmp_path, processes_per_node=2, max_nodes_per_cell=2)
    assert main(words_of(tmp_path / "100% runs", file, *CHOICE, "--dry-run", *arguments)) == 0
    return capsys.readouterr().out.split("### array ")[1].split("### submitted with")[0]


def test_a_percent_sign_in_a_folders_name_is_none_of_slurms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"#SBATCH --output='{tmp_path}/100%% runs/tiny/cluster/" in script_of(tmp_path, capsys)


def test_processes_of_one_node_need_no_name_and_no_port_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = script_of(tmp_path, capsys, "--gpus-per-cell", "2")
    assert "--standalone --local-addr=127.0.0.1" in alone
    assert "rdzv" not in alone
    (port,) = [line for line in script_of(tmp_path, capsys, "--gpus-per-cell", "4").splitlines()
               if line.startswith("port=")]  # fmt: skip
    for job in (1, 11_999, 12_000, 67_043_328):
        told = subprocess.run(
            ["bash", "-c", f"{port}; echo $port"],
            env={"SLURM_JOB_ID": str(job)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # Linux gives ports from 32768 to whoever connects.
        assert 20_000 <= int(told.stdout) < 32_000


def test_a_requeue_is_asked_for_until_slurm_answers(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = script_of(tmp_path, capsys).partition("#!/bin/bash")[2]
    program(slurm, "srun", "exit 143")
    program(slurm, "sleep", "true")
    program(slurm, "scontrol", f"echo $@ >> {slurm}/requeues; [ $(wc -l < {slurm}/requeues) -eq 3 ]")
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "12"},
        capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 143
    assert (slurm / "requeues").read_text() == 3 * "requeue 12\n"


# Locks


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open() as other:
        assert try_lock(mine)
        assert not try_lock(other, shared=True)
        monkeypatch.setattr(fcntl, "flock", none)
        with pytest.raises(HarnessError, match=r"lock: its file system keeps no locks .*give a --work-dir"):
            try_lock(mine)
