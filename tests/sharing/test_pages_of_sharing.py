"""docs/sharing.md and docs/tracking.md: their commands, one after another, as they stand."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from benchmark.cli import main
from leaderboard import load_records
from leaderboard.bundle import WEIGHTS_NAME
from protocols import load_protocol
from tests.benchmark.made_records import Lab
from tests.page_blocks import DOCS, harness_commands

pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def lab_of(tmp_path: Path, *methods: str) -> Lab:
    """Rows of mini, one seed, with the trunks of their pre-trainings, in the folder `runs`."""
    made = Lab(tmp_path / "runs", methods=methods, protocol=load_protocol("mini"))
    for cell in made.plan:
        if cell.stage == "pretrain":
            weights = made.cells / cell.id / WEIGHTS_NAME
            weights.parent.mkdir()
            weights.write_bytes(f"{made.tokens} {WEIGHTS_NAME} {cell.id}".encode())
    return made


def test_the_commands_of_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lab = lab_of(tmp_path, "mim")
    given = harness_commands(DOCS / "sharing.md")
    assert [words[0] for words in given] == ["bundle", "merge", "report", "bundle", "merge"]
    for words in given:
        assert main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Gain is the linear probe's top-1" in said
    both, theirs = load_records("both", "mini"), load_records("theirs", "mini")
    assert set(both.cell_id) == set(lab.records)
    assert set(both.merged_from) == {"mini-here.tar"}
    trained = [cell.id for cell in lab.plan if cell.stage == "pretrain"]
    assert set(trained) <= set(theirs.cell_id)
    assert all((tmp_path / "theirs" / "mini" / "cells" / one / WEIGHTS_NAME).is_file() for one in trained)
    # `tar xf mini-here.tar configuration.yaml`, then `--protocol configuration.yaml`.
    assert "`tar xf mini-here.tar configuration.yaml`" in (DOCS / "sharing.md").read_text()
    with tarfile.open("mini-here.tar") as archive:
        archive.extract("configuration.yaml", filter="data")
    assert main(["status", "--protocol", "configuration.yaml", "--work-dir", "both"]) == 0


def test_the_commands_of_tracking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every cell is done, merged from a bundle without weights, the run has nothing but to track."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmark.commands.run.show_board", lambda *_: None)
    lab = lab_of(tmp_path, *load_protocol("mini").defaults.methods)
    run, later = harness_commands(DOCS / "tracking.md")
    assert run == ("--protocol", "mini", "--methods", "all", "--track", "tensorboard")
    assert main(["bundle", "all.tar", "--protocol", "mini"]) == 0
    lab.work_dir.rename(tmp_path / "elsewhere")
    assert main(["merge", "all.tar"]) == 0
    assert main(run) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "mini" / "tracking" / "tensorboard"
    assert {path.parent.name for path in folder.glob("*/events.*")} == set(lab.records)
    before = sorted(folder.rglob("*"))
    assert main(later) == 0
    assert sorted(folder.rglob("*")) == before, "nothing is handed over twice"
