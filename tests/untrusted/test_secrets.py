"""What a record says of the machine that made it is chosen by name: nothing else of it gets out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import provenance
from benchmark.layout import cell_folder
from benchmark.plan import make_plan
from benchmark.record_cell import note_attempt, write_cell_record
from benchmark.recorded_ids import ids_of_record
from benchmark.runtime import Runtime
from benchmark.selection import select
from benchmark.stage import CellContext, StageResult
from leaderboard.bundle_writer import write_bundle
from leaderboard.record import read_record
from leaderboard.report import write_report
from protocols import load_protocol
from tests.benchmark.made_records import HARNESS
from tests.error_settings import TINY

SECRET = "hunter2-5ecre7"
# What may be said of a machine: versions, what decodes images, and what computes.
ALLOWED = {
    *provenance.PACKAGES, "python", "system", "cpu", "cores", "numpy blas", "pillow jpg", "pillow zlib",
    "pillow libjpeg_turbo", provenance.DECODE_DIGEST,
}  # fmt: skip


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine, a user, a checkout and a command line of which every name is a secret."""
    home = tmp_path / f"home-{SECRET}"
    checkout = home / "checkout"
    checkout.mkdir(parents=True)
    git = ["git", "-C", str(checkout), "-c", f"user.name={SECRET}", "-c", f"user.email={SECRET}@example.com"]
    for words in (
        ["init", "-q", "-b", SECRET],
        ["remote", "add", "origin", f"https://{SECRET}:{SECRET}@example.com/x.git"],
        ["commit", "-q", "--allow-empty", "-m", SECRET],
    ):
        subprocess.run([*git, *words], check=True, capture_output=True)
    for name in (
        "HOME", "USER", "LOGNAME", "HOSTNAME", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN",
        "PYTHONPATH", "SLURM_JOB_ACCOUNT", "OMP_PLACES", "CUDA_VISIBLE_DEVICES",
    ):  # fmt: skip
        monkeypatch.setenv(name, f"{home}/{SECRET}" if name == "HOME" else SECRET)
    names = list(os.uname())
    names[1] = SECRET
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(names))
    monkeypatch.setattr("platform.node", lambda: SECRET)
    monkeypatch.setattr("socket.gethostname", lambda: SECRET)
    monkeypatch.setattr(sys, "argv", ["run_benchmark.py", "--data-root", f"{home}/data", f"--token={SECRET}"])
    monkeypatch.setattr(provenance, "ROOT", checkout)
    caches = (provenance.environment, provenance.git_state)
    for cached in caches:
        cached.cache_clear()
    yield home
    for cached in caches:
        cached.cache_clear()


def test_no_secret_of_the_machine_is_in_what_leaves_it(
    secretive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record, metrics, bundle and board of a cell that was made there."""
    work_dir, protocol, runtime = (
        Path("runs"),
        load_protocol(str(TINY)),
        Runtime(device="cpu", jobs=1, threads=1),
    )
    cell = make_plan(protocol, select(protocol, methods=["mim"]))[0]
    (secretive / "work").mkdir()
    monkeypatch.chdir(secretive / "work")
    folder = cell_folder(work_dir, protocol.name, cell.id)
    folder.mkdir(parents=True)
    note_attempt(folder, started="2026-01-02T03:04:05+00:00")
    images = CellContext(
        cell=cell, protocol=protocol, runtime=runtime, work_dir=work_dir, data_root=secretive / "data"
    ).images("test")
    result = StageResult(
        metrics={}, data=images, seconds=1.0, images_seen=1, train_flops=0.0, artefacts={"a.bin": "a" * 64}
    )
    write_cell_record(
        cell, protocol, runtime, work_dir, status="done", result=result, error=None, peak_memory_bytes=0
    )
    record = read_record(folder)
    assert record is not None
    assert set(record.environment) == ALLOWED
    assert record.git == provenance.git_state()
    assert len(record.git.commit) == 40
    written = write_bundle(
        Path("shared.tar"), work_dir, protocol, [cell.id], harness=HARNESS, ids_of=ids_of_record
    )
    assert written.cells
    report = write_report(work_dir, protocol)
    for path in (folder / "record.json", Path("shared.tar"), *report.paths.values()):
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in report.json + report.full_terminal
