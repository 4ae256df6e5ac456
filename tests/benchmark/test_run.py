"""The whole line on a tiny protocol: run, run again, fail, be killed, go on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny.yaml"
STAGES = {"tokenise": 1, "pretrain": 5, "finetune": 6, "linear-probe": 6}
pytestmark = pytest.mark.usefixtures("boards_without_drawings")
# Times, memory and attempts are measurements of a run, not results of it; the digest is over them, too.
MEASURED = {("cost", "wall_seconds"), ("cost", "peak_memory_bytes"), ("attempts",), ("digest",)}


def command(work_dir: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "run_benchmark.py"), "--protocol", str(TINY), "--work-dir", str(work_dir),
        "--device", "cpu", *arguments,
    ]  # fmt: skip


def run(work_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this very process, whose server for forking cells is warm."""
    words, out, err = command(work_dir, *arguments)[2:], io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run_as_user(work_dir: Path, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as it is typed, in `folder`."""
    return subprocess.run(
        command(work_dir), capture_output=True, text=True, timeout=300, check=False, cwd=folder
    )


def records(work_dir: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((work_dir / "tiny" / "cells").glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def without_measurements(record: dict[str, Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(record))
    for *groups, name in MEASURED:
        holder = copy
        for group in groups:
            holder = holder[group]
        del holder[name]
    copy["metrics"] = {name: one for name, one in copy["metrics"].items() if one["unit"] != "images/s"}
    return copy


def stage_counts(work_dir: Path) -> dict[str, int]:
    stages = [record["stage"] for record in records(work_dir).values()]
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From another folder, in which something lies that bears the name of a room of the harness."""
    work_dir, folder = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("elsewhere")
    (folder / "benchmark").mkdir()
    (folder / "benchmark" / "__init__.py").write_text("raise RuntimeError('not this one')")
    done = run_as_user(work_dir, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "MaPeT" in done.stdout
    assert "page:" in done.stdout
    assert "Traceback" not in done.stderr
    return work_dir


def test_every_cell_is_done_and_complete(finished: Path) -> None:
    assert stage_counts(finished) == STAGES
    for cell_id, record in records(finished).items():
        assert record["status"] == "done"
        assert record["cell_id"] == cell_id
        assert record["compliance"]["status"] == "clean"
        assert set(record["resolved"]) - {"hyperparameters"} == set(record["protocol"]["slices"])
        assert record["artefacts"]
        assert len(record["attempts"]) == 1
        assert record["environment"]["torch"]
        assert str(finished) not in json.dumps(record), "a record must not depend on where it was made"


def test_evaluations_use_exactly_the_test_images(finished: Path) -> None:
    for cell_id, record in records(finished).items():
        if record["stage"] not in ("finetune", "linear-probe"):
            continue
        predictions = np.load(finished / "tiny" / "cells" / cell_id / "predictions.npz", allow_pickle=False)
        assert len(predictions["predicted"]) == record["data_set"]["n"] == 203
        assert predictions["image_ids"].tolist() == [f"test/{index:07d}" for index in range(203)]
        accuracy = 100 * np.mean(predictions["predicted"] == predictions["labels"])
        assert record["metrics"]["top1_percent"]["value"] == pytest.approx(accuracy)


def test_parents_are_named_with_their_digests(finished: Path) -> None:
    every = records(finished)
    for record in every.values():
        for parent, digest in record["parents"].items():
            assert every[parent]["status"] == "done"
            assert len(digest) == 64
        expected = 0 if record["stage"] == "tokenise" or record["method"]["name"] == "scratch" else 1
        assert len(record["parents"]) == expected


def test_the_same_command_again_only_shows_the_board(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "tiny" / "cells").rglob("*")}
    again = run(finished)
    assert again.returncode == 0
    assert "linear probe" in again.stdout
    assert "done" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (finished / "tiny" / "cells").rglob("*")} == before


def test_another_work_dir_and_folder_give_identical_records(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "--methods", "scratch", "mapet", "--jobs", "1").returncode == 0
    first, second = records(finished), records(tmp_path)
    for cell_id, record in second.items():
        ours = without_measurements(record)
        ours["runtime"]["jobs"] = first[cell_id]["runtime"]["jobs"]  # one at a time here, on purpose
        assert ours == without_measurements(first[cell_id]), cell_id


def test_another_seed_differs(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "--methods", "mim", "--seeds", "1", "--evaluations", "linear-probe").returncode == 0
    (other,) = [record for record in records(tmp_path).values() if record["stage"] == "pretrain"]
    (ours,) = [
        record for record in records(finished).values()
        if record["stage"] == "pretrain" and record["method"]["name"] == "mim"
    ]  # fmt: skip
    assert other["artefacts"] != ours["artefacts"]
    assert other["metrics"]["loss"] != ours["metrics"]["loss"]


def wait_for(condition: Callable[[], bool], *, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_pretraining_it_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    """SIGKILL to the harness alone; then the same command to the end. tests/chaos kills the cell, too."""
    long = ["--methods", "mapet", "--evaluations", "linear-probe", "--set", "pretraining.epochs=20"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for work_dir in (undisturbed, disturbed):
        shutil.copytree(finished / "tokens", work_dir / "tokens")
        for cell in (finished / "tiny" / "cells").glob("tokenise-*"):
            shutil.copytree(cell, work_dir / "tiny" / "cells" / cell.name)
    assert run(undisturbed, *long).returncode == 0

    def folder() -> Path:
        (found,) = (disturbed / "tiny" / "cells").glob("pretrain-*")
        return found

    def trainer() -> int:
        (event,) = [json.loads(line) for line in (folder() / "attempts.jsonl").read_text().splitlines()]
        return int(event["pid"])

    def saved() -> bool:
        """A checkpoint was written, and steps were taken after it."""
        if not list((disturbed / "tiny" / "cells").glob("pretrain-*/metrics.jsonl")):
            return False
        newest = max((folder() / "checkpoints").glob("*.sha256"), default=None)
        lines = (folder() / "metrics.jsonl").read_text().splitlines()
        if newest is None or not lines:
            return False
        return json.loads(lines[-1])["step"] > int(newest.stem.removeprefix("step-")) > 0

    harness = subprocess.Popen(
        command(disturbed, *long, "--checkpoint-seconds", "0"),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_for(saved)
    harness.kill()
    harness.wait()
    wait_for(lambda: not Path(f"/proc/{trainer()}").exists())  # no orphan trains on
    assert not (folder() / "record.json").exists()
    done = run(disturbed, *long)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in (folder() / "log").read_text()
    ours, theirs = records(disturbed), records(undisturbed)
    assert ours.keys() == theirs.keys()
    for cell_id, record in ours.items():
        assert without_measurements(record) == without_measurements(theirs[cell_id])
    outcomes = [attempt["outcome"] for attempt in ours[folder().name]["attempts"]]
    assert outcomes == ["interrupted", "done"]


def test_exploring_leaves_the_clean_cells_clean(finished: Path, tmp_path: Path) -> None:
    """--set marks what it moved and nothing else: the protocol's own run can follow in the same work dir."""
    small = ["--methods", "mim"]
    explored = run(tmp_path, *small, "--set", "evaluations.linear-probe.peak_lr=0.2")
    assert explored.returncode == 0, explored.stderr
    marked = {r["stage"] for r in records(tmp_path).values() if r["compliance"]["status"] == "modified"}
    assert marked == {"linear-probe"}
    assert (
        run(tmp_path, *small, "--set", "pretraining.epochs=2", "evaluations.finetune.epochs=2").returncode
        == 0
    )
    deviations = {r["stage"]: r["compliance"]["deviations"] for r in records(tmp_path).values()
                  if r["compliance"]["deviations"] and r["method"]["name"] == "mim"
                  and "peak_lr" not in str(r["compliance"]["deviations"])}  # fmt: skip
    own_value = ["pretraining.epochs=2"]  # tiny's own fine-tuning epochs are 2: no deviation
    assert deviations == {"pretrain": own_value, "finetune": own_value, "linear-probe": own_value}
    assert run(tmp_path, *small).returncode == 0
    clean = {key: r for key, r in records(tmp_path).items() if r["compliance"]["status"] == "clean"}
    wanted = {key: r for key, r in records(finished).items()
              if r["stage"] == "tokenise" or r["method"]["name"] == "mim"}  # fmt: skip
    assert {key: without_measurements(r) for key, r in clean.items()} == {
        key: without_measurements(r) for key, r in wanted.items()
    }


def test_a_changed_token_store_is_refused(finished: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "copy"
    shutil.copytree(finished, work_dir)
    (tokens,) = work_dir.glob("tokens/*/*/tokens.npy")
    content = bytearray(tokens.read_bytes())
    content[-5] ^= 1
    tokens.write_bytes(content)
    done = run(work_dir, "--methods", "mim", "--seeds", "5", "--evaluations", "linear-probe")
    assert done.returncode == 1
    (failed,) = [r for r in records(work_dir).values() if r["status"] == "failed"]
    assert "SHA-256" in failed["error"]
    assert "tokenise again" in failed["error"] or "delete the store" in failed["error"]


def test_one_run_at_a_time(finished: Path) -> None:
    import fcntl

    with (finished / "tiny" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = run(finished)
    assert second.returncode == 2
    assert "another run (process " in second.stderr


def test_report_needs_only_records_and_no_torch(finished: Path, tmp_path: Path) -> None:
    arguments = [
        "report",
        "--protocol",
        str(TINY),
        "--work-dir",
        str(finished),
        "--out",
        str(tmp_path / "board"),
    ]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmark.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'timm', 'mmengine', 'faiss'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    names = {path.name for path in (tmp_path / "board").iterdir()}
    assert {"index.html", "board.md", "board.csv", "runs.csv"} <= names
