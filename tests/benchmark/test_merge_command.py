"""`bundle` and `merge` as a user gives them: round trips, conflicts, and a run beside merged cells."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmark import merging
from benchmark.cli import main
from leaderboard.origins import origins
from leaderboard.record import read_record
from leaderboard.report import read_board
from protocols import load_protocol
from tests.benchmark.made_records import Lab, changed_record, contents_of, forge, predictions_file
from tests.disks.small_disk import full_after
from tests.error_settings import TINY


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Another lab, whose cells are all done."""
    return Lab(tmp_path / "there")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A work dir in which nothing is."""
    return tmp_path / "here"


def bundled(lab: Lab, *more: str) -> Path:
    """The bundle of a lab, as its people write it."""
    out = lab.work_dir.parent / f"{lab.work_dir.name}.tar"
    words = ["bundle", str(out), "--protocol", str(TINY), "--work-dir", str(lab.work_dir), *more]
    assert main(words) == 0
    return out


def merge(bundle: Path, here: Path, *more: str) -> int:
    return main(["merge", str(bundle), "--work-dir", str(here), *more])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_merged_board_is_the_board(lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(bundled(lab), here) == 0
    said = capsys.readouterr()
    assert "6 cells of tiny, version 1, written by harness 0.1.0" in " ".join(said.out.split())
    assert said.err == ""
    mine, theirs = read_board(here, lab.protocol), read_board(lab.work_dir, lab.protocol)
    for frame in ("rows", "runs", "tokenizers"):
        assert getattr(mine, frame).to_csv() == getattr(theirs, frame).to_csv()
    assert len(mine.runs) == 4
    for cell_id in lab.records:
        for name in ("record.json", "metrics.jsonl"):
            content = (here / "tiny" / "cells" / cell_id / name).read_bytes()
            assert content == (lab.cells / cell_id / name).read_bytes()
        assert not (here / "tiny" / "cells" / cell_id / "log").exists()


def test_merging_again_changes_nothing(lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundled(lab)
    assert merge(bundle, here) == 0
    before = snapshot(here)
    capsys.readouterr()
    assert merge(bundle, here) == 0
    assert "already here         6" in capsys.readouterr().out
    assert snapshot(here) == before


def test_a_trial_writes_nothing(lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(bundled(lab), here, "--dry-run") == 0
    assert "would be merged      6" in capsys.readouterr().out
    assert not here.exists()


def test_other_seeds_add_to_a_row_when_the_tokens_are_the_same(tmp_path: Path, lab: Lab) -> None:
    own = Lab(tmp_path / "own", seeds=(1,), seconds=2.0)
    record = own.folder("tokenise") / "record.json"
    before = record.read_bytes()
    assert merge(bundled(lab), own.work_dir) == 0
    assert record.read_bytes() == before, "made here too: its own record stays"
    board = read_board(own.work_dir, lab.protocol)
    assert set(board.rows["linear-probe_seeds"]) == {2}
    assert lab.id("tokenise") not in origins(own.work_dir, "tiny")


def test_other_tokens_are_refused_with_all_that_was_made_from_them(
    tmp_path: Path, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Lab(tmp_path / "own", methods=["mim"], seeds=(1,), tokens="other bits")
    before = snapshot(own.work_dir)
    bundle = bundled(lab)
    capsys.readouterr()
    assert merge(bundle, own.work_dir, "--json") == 1
    (document,) = json.loads(capsys.readouterr().out)
    results = {one["entry"]: one for one in document["entries"]}
    why = results[lab.id("tokenise")]["why"]
    assert "another record of it is here (done, SHA-256" in why
    assert "--work-dir, or delete" in why
    assert "made from another" in results[lab.id("pretrain")]["why"]
    assert "is not there, or was refused" in results[lab.id("linear-probe")]["why"]
    for name in ("finetune", "linear-probe"):
        assert results[lab.id(name, "scratch")]["result"] == "merged"
    after = snapshot(own.work_dir)
    assert {name: after[name] for name in before} == before


def test_another_result_of_the_same_cell_is_refused_and_the_own_one_stays(
    tmp_path: Path, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Lab(tmp_path / "own", methods=["scratch"], correct=11)
    before = snapshot(own.cells)
    assert merge(bundled(lab), own.work_dir) == 1
    said = capsys.readouterr()
    assert said.err.count("refused ") == 2
    assert "merged               4" in said.out
    after = snapshot(own.cells)
    assert {name: after[name] for name in before} == before


def test_a_failed_cell_here_is_not_replaced(
    tmp_path: Path, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Lab(tmp_path / "own", methods=["scratch"])
    own.finish(
        own.cell("finetune", "scratch"), status="failed", error="out of memory", artefacts={}, metrics={}
    )
    assert merge(bundled(lab), own.work_dir) == 1
    assert "is here (failed," in " ".join(capsys.readouterr().err.split())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The cell's lock, as the process that runs it holds it."""
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_cell_that_runs_or_was_begun_here_is_left_alone(
    lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "tiny" / "cells" / lab.id("finetune")
    with _held(folder):
        assert merge(bundled(lab), here) == 1
        assert "a process runs this cell here" in " ".join(capsys.readouterr().err.split())
        assert sorted(path.name for path in folder.iterdir()) == [".lock"]
    assert merge(bundled_again(lab), here) == 1
    assert "it was begun here" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(folder)
    assert merge(bundled_again(lab), here) == 0


def bundled_again(lab: Lab) -> Path:
    return lab.work_dir.parent / f"{lab.work_dir.name}.tar"


def test_a_cell_that_a_process_begins_at_the_last_moment_is_its_own(
    lab: Lab, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with what was made from it; what appears is on the disk before."""
    rename, happened = os.rename, []

    def begun_meanwhile(source: Path, target: Path) -> None:
        happened.append(target.name)
        if target.name == lab.id("pretrain"):
            target.mkdir()
            (target / ".lock").touch()
        rename(source, target)

    monkeypatch.setattr(merging.os, "rename", begun_meanwhile)
    monkeypatch.setattr(merging.os, "sync", lambda: happened.append("sync"))
    assert merge(bundled(lab), here) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "began this cell here meanwhile" in said
    assert said.count(f"its parent {lab.id('pretrain')} is not there, or was refused") == 2
    assert happened.index("sync") == 0
    cells = here / "tiny" / "cells"
    assert not (cells / lab.id("pretrain") / "record.json").exists()
    scratch = {lab.id("finetune", "scratch"), lab.id("linear-probe", "scratch")}
    assert {one.name for one in cells.iterdir()} == {lab.id("tokenise"), lab.id("pretrain"), *scratch}
    assert not (here / "tiny" / merging.STAGING_NAME).exists()


def test_links_and_files_where_folders_belong(
    lab: Lab, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cells' folder may be a link to another disk: there they are put together. No other is followed."""
    elsewhere, outside = tmp_path / "disk" / "cells", tmp_path / "outside"
    elsewhere.mkdir(parents=True)
    outside.mkdir()
    (here / "tiny").mkdir(parents=True)
    (here / "tiny" / "cells").symlink_to(elsewhere)
    (elsewhere / lab.id("finetune")).write_text("a file")
    (elsewhere / lab.id("linear-probe")).symlink_to(outside)
    assert merge(bundled(lab), here) == 1
    said = capsys.readouterr()
    assert said.err.count("is no folder; move it away") == 2
    assert "merged               4" in said.out
    assert (elsewhere.parent / merging.LOCK_NAME).exists()
    assert list(outside.iterdir()) == []
    assert (elsewhere / lab.id("finetune")).read_text() == "a file"


@pytest.mark.parametrize(("cell", "moments"), [("tokenise", (0, 3)), ("linear-probe", (2, 4))])
def test_a_merge_that_is_killed_leaves_whole_cells_or_none(
    cell: str, moments: tuple[int, ...], lab: Lab, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before a file of a cell, and before its folder is renamed; the next merge ends the work."""
    bundle = bundled(lab)
    write, rename, remove = merging.write_file, os.rename, shutil.rmtree

    class Killed(BaseException):
        pass

    for stop in moments:
        calls = iter(range(100))

        def stopping(folder: str, calls: Iterator[int] = calls, stop: int = stop) -> None:
            if folder == lab.id(cell) and next(calls) == stop:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(
                merging,
                "write_file",
                lambda path, content: (stopping(path.parent.name), write(path, content)),
            )
            patched.setattr(merging.os, "rename", lambda one, two: (stopping(two.name), rename(one, two)))
            # A kill cleans nothing up.
            patched.setattr(merging.shutil, "rmtree", lambda *_, **__: None)
            with pytest.raises(Killed):
                merge(bundle, here)
        found = {one.name: read_record(one) for one in (here / "tiny" / "cells").iterdir()}
        assert lab.id(cell) not in found
        assert all(record is not None for record in found.values())
        assert (here / "tiny" / merging.STAGING_NAME / lab.id(cell)).exists()
        read_board(here, lab.protocol)
        assert merge(bundle, here) == 0
        assert set(origins(here, "tiny")) == set(lab.records)
        assert not (here / "tiny" / merging.STAGING_NAME).exists()
        remove(here)


def test_a_merge_that_was_stopped_before_it_had_made_its_folders_is_ended_by_the_same_command(
    lab: Lab, here: Path
) -> None:
    (here / "tiny").mkdir(parents=True)
    assert merge(bundled(lab), here) == 0


def test_a_disk_that_is_full_or_broken_is_named(
    lab: Lab, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundled(lab)
    with full_after(100):
        assert merge(bundle, here) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {here / 'tiny' / merging.STAGING_NAME}")
    assert "File too large" in said
    assert list((here / "tiny" / "cells").iterdir()) == []
    assert not (here / "tiny" / merging.STAGING_NAME).exists()

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("leaderboard.bundle.sha256_of_file", broken)
        assert merge(bundle, here) == 2
    assert f"error: {bundle}: Input/output error" in capsys.readouterr().err
    assert merge(bundle, here) == 0


def test_a_bundle_whose_name_is_no_text_leaves_origins_that_are(lab: Lab, here: Path) -> None:
    bundle = bundled(lab).rename(lab.work_dir.parent / os.fsdecode(b"there\xff.tar"))
    assert merge(bundle, here) == 0
    assert {origin.bundle for origin in origins(here, "tiny").values()} == {"there?.tar"}


def test_two_merges_into_one_folder_wait_for_each_other(
    lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "tiny" / "cells").mkdir(parents=True)
    with (here / "tiny" / merging.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert merge(bundled(lab), here) == 2
    assert "another merge into" in capsys.readouterr().err


def test_good_bundles_are_merged_beside_one_that_is_none(
    lab: Lab, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.tar").write_text("dear diary")
    assert main(["merge", str(tmp_path / "notes.tar"), str(bundled(lab)), "--work-dir", str(here)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert "merged               6" in said.out


def test_a_bundle_of_another_version_is_merged_and_stands_apart(
    lab: Lab, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer.yaml"
    newer.write_text(
        TINY.read_text()
        .replace("version: 1", "version: 2")
        .replace("count: {value: 203", "count: {value: 200")
    )
    assert merge(bundled(lab), here, "--protocol", str(newer)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "written under version 1 of tiny, which is version 2 here and differs in data" in said
    board = read_board(here, load_protocol(str(newer)))
    assert set(board.runs["standing"]) == {"other version"}
    assert merge(bundled_again(lab), here, "--protocol", "mini") == 2
    assert "is of protocol tiny, not mini" in capsys.readouterr().err
    assert merge(bundled_again(lab), here) == 0
    assert "Protocol tiny is not known here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["tokens", "packed", "features"])
def test_a_protocol_named_like_a_folder_of_the_work_dir_is_refused(
    name: str, lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundled(lab)
    manifest, files = contents_of(bundle)
    forge(bundle, manifest, files, protocol=manifest.protocol.model_copy(update={"name": name}))
    assert merge(bundle, here) == 2
    assert "taken for the folder" in capsys.readouterr().err


def test_an_accuracy_that_its_predictions_do_not_bear_is_refused_by_name(
    lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundled(lab)
    manifest, files = contents_of(bundle)
    probe = lab.id("linear-probe")
    path = f"cells/{probe}/record.json"
    better = {"top1_percent": {"value": 90.0, "n": 40, "unit": "%"}}
    forge(bundle, manifest, {**files, path: changed_record(files[path], metrics=better)})
    assert merge(bundle, here) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"refused {probe}: predictions.npz gives 25.0000 % top-1" in said
    assert not (here / "tiny" / "cells" / probe).exists()
    assert (
        predictions_file(10)
        == (here / "tiny" / "cells" / lab.id("finetune") / "predictions.npz").read_bytes()
    )
