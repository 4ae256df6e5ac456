"""What becomes of merged cells: their origin, their state, their ids; and which cells are bundled."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.plan import make_plan
from benchmark.recorded_ids import ids_of_record
from benchmark.selection import select
from benchmark.survey import made_anew, survey
from leaderboard.origins import MAX_ORIGIN_BYTES, origin_notes, origins, read_origin
from leaderboard.record import DataUse, MethodUse, read_record, write_record
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.made_records import Lab, contents_of, tiny
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


def test_origins_say_where_a_cell_comes_from_until_it_is_made_here(
    lab: Lab, here: Path, tmp_path: Path
) -> None:
    bundle = bundled(lab)
    assert merge(bundle, here) == 0
    known = origins(here, "tiny")
    assert set(known) == set(lab.records)
    first = known[lab.id("finetune")]
    assert (first.bundle, first.passed_through) == ("there.tar", ())
    (note,) = origin_notes(known)
    assert "merged from there.tar" in note
    assert "6 cells, finetune-mim-" in note
    assert note.endswith(" and 1 more")

    again = tmp_path / "again.tar"
    assert main(["bundle", str(again), "--protocol", str(TINY), "--work-dir", str(here)]) == 0
    assert merge(again, tmp_path / "third") == 0
    third = origins(tmp_path / "third", "tiny")[lab.id("finetune")]
    assert third.passed_through == (first.bundle_sha256,)

    last = here / "tiny" / "cells" / lab.id("tokenise")
    passed = first.model_copy(update={"passed_through": tuple(f"{number:064x}" for number in range(100))})
    passed = passed.model_copy(update={"record_digest": known[lab.id("tokenise")].record_digest})
    (last / "origin.json").write_bytes(passed.text())
    assert len(passed.text()) < MAX_ORIGIN_BYTES / 2
    words = ["bundle", str(tmp_path / "far.tar"), "--protocol", str(TINY), "--work-dir", str(here)]
    assert main([*words, "--cells", "tokenise-*"]) == 0
    (entry,) = contents_of(tmp_path / "far.tar")[0].cells
    assert entry.passed_through == (*passed.passed_through[1:], first.bundle_sha256)

    folder = here / "tiny" / "cells" / lab.id("finetune")
    record = read_record(folder)
    assert record is not None
    write_record(folder, record.model_copy(update={"compliance": record.compliance.model_copy()}))
    assert read_origin(folder) == first
    write_record(folder, record.model_copy(update={"cost": record.cost.model_copy(update={"device": "gpu"})}))
    assert read_origin(folder) is None
    (folder / "origin.json").write_text("{")
    with pytest.raises(HarnessError, match="merge the bundle"):
        origins(here, "tiny")


def states(here: Path, *, seed: int = 0) -> dict[str, tuple[str, str]]:
    """Evaluation or stage -> state and first reason, of mim's cells."""
    protocol = tiny()
    selection = select(protocol, methods=["mim"], evaluations=["finetune", "linear-probe"], seeds=[seed])
    return {
        one.cell.evaluation or one.cell.stage: (one.state, one.reasons[0] if one.reasons else "")
        for one in survey(make_plan(protocol, selection), protocol, here)
    }


def test_merged_cells_are_done_until_something_needs_their_weights(
    lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(bundled(lab), here) == 0
    assert {state for state, _ in states(here).values()} == {"done"}
    other_seed = states(here, seed=1)
    assert other_seed["tokenise"][0] == "done"
    assert other_seed["pretrain"][0] == "blocked"
    assert "merged from a bundle that came without tokens/" in other_seed["pretrain"][1]
    assert other_seed["finetune"][1] == f"needs {_pretraining(1)}, which is blocked"

    capsys.readouterr()
    words = [
        "--protocol",
        str(TINY),
        "--work-dir",
        str(here),
        "--methods",
        "mim",
        "--evaluations",
        "finetune",
    ]
    assert main(["status", *words]) == 0
    assert "merged from bundles, not made here: 3 cells" in capsys.readouterr().out
    before = snapshot(here)
    assert main([*words, "--seeds", "1", "--device", "cpu", "--jobs", "1"]) == 2
    refusal = capsys.readouterr().err
    assert lab.id("tokenise") in refusal
    assert "or delete" in refusal
    assert snapshot(here).keys() == before.keys()

    cells = here / "tiny" / "cells"
    shutil.rmtree(cells / lab.id("tokenise"))
    assert states(here, seed=1)["pretrain"][0] == "to do"

    (cells / lab.id("finetune") / "predictions.npz").unlink()
    assert states(here)["finetune"][0] == "damaged"


def _pretraining(seed: int) -> str:
    protocol = tiny()
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["finetune"], seeds=[seed]))
    (found,) = [cell.id for cell in plan if cell.stage == "pretrain"]
    return found


@pytest.mark.parametrize("flag", ["--redo-stale", "--redo-failed"])
def test_what_a_merged_cell_was_made_from_is_asked_for_before_its_record_goes(
    flag: str, lab: Lab, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run removes a record before it makes the cell anew; without its parents' weights it never could."""
    trained = lab.cell("pretrain")
    if flag == "--redo-stale":
        lab.finish(trained, method=MethodUse(name="mim", source_digest="of older code"))
    else:
        lab.finish(lab.cell("finetune"), status="failed", error="of a full disk", artefacts={}, metrics={})
        (lab.folder("finetune") / "predictions.npz").unlink()
    assert merge(bundled(lab, *(["--failed"] if flag == "--redo-failed" else [])), here) == 0
    before = snapshot(here)
    words = ["--protocol", str(TINY), "--work-dir", str(here), "--methods", "mim"]
    asked = ["--evaluations", "finetune", "--device", "cpu", "--jobs", "1", "--quiet"]
    capsys.readouterr()
    assert main([*words, *asked, flag]) == 2
    lacking = lab.id("tokenise") if flag == "--redo-stale" else trained.id
    assert f"cell {lacking} was merged from a bundle" in capsys.readouterr().err
    assert {name: content for name, content in snapshot(here).items() if name in before} == before
    protocol = tiny()
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["finetune"]))
    chosen = trained if flag == "--redo-stale" else lab.cell("finetune")
    assert main(["cell", chosen.id, *words, *asked[:-3], "--redo-stale"]) == 2
    assert (here / "tiny" / "cells" / chosen.id / "record.json").is_file()
    # A parent that is made anew by the same run brings its files, and what hangs on it follows.
    found = survey(plan, protocol, here)
    stale = [replace(one, state="stale") if one.cell.stage == "tokenise" else one for one in found]
    assert [one.missing for one in made_anew(stale, redo_stale=True)] == [(), (), ()]
    assert all(one.missing == () for one in made_anew(found))


def test_files_that_are_brought_later_are_used(lab: Lab, here: Path) -> None:
    assert merge(bundled(lab), here) == 0
    for name in lab.records[lab.id("tokenise")].artefacts:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("as its makers have them")
    assert states(here, seed=1)["pretrain"][0] == "to do"


def test_every_cell_of_a_protocol_is_known_by_its_record_again(tmp_path: Path) -> None:
    """The id is computed from the record alone, for every stage, trial value and two parents."""
    protocol = load_protocol("mini")
    maker = Lab(tmp_path, methods=[], protocol=protocol)
    for cell in make_plan(protocol, select(protocol, views=["all"])):
        data_set = DataUse(name="made", part=cell.part or "pretraining", n=1, digest="d")
        ids = ids_of_record(maker.finish(cell, data_set=data_set))
        assert ids is not None
        assert cell.id in ids
        assert len(ids) == max(1, len(cell.parents))


def test_left_out_cells_give_exit_code_1_and_failed_ones_are_asked_for(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetuning = lab.cell("finetune")
    failed = {"status": "failed", "artefacts": {}, "metrics": {}}
    lab.finish(finetuning, error="the loss is nan", **failed)
    (lab.folder("finetune") / "predictions.npz").unlink()
    bundled(lab)
    assert "1 cell that is failed; --failed takes them too" in capsys.readouterr().out
    words = ["--protocol", str(TINY), "--work-dir", str(lab.work_dir), "--failed"]
    assert main(["bundle", str(tmp_path / "all.tar"), *words]) == 0
    assert merge(tmp_path / "all.tar", tmp_path / "other") == 0
    record = read_record(tmp_path / "other" / "tiny" / "cells" / finetuning.id)
    assert record is not None
    assert record.status == "failed"
    lab.finish(finetuning, error="no room in /home/alice/runs", **failed)
    (lab.folder("finetune") / "predictions.npz").unlink()
    assert main(["bundle", str(tmp_path / "some.tar"), *words]) == 1
    assert "names /home/alice" in " ".join(capsys.readouterr().err.split())
    (lab.folder("finetune") / "record.json").write_text("{")
    assert main(["bundle", str(tmp_path / "more.tar"), *words]) == 1
    assert f"left out {finetuning.id}" in " ".join(capsys.readouterr().err.split())


def test_cells_are_chosen_by_id_or_pattern(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    out = bundled(lab, "--cells", "*-scratch-*", lab.id("pretrain"))
    assert {one.cell_id for one in contents_of(out)[0].cells} == {
        lab.id("finetune", "scratch"), lab.id("linear-probe", "scratch"), lab.id("pretrain"),
        lab.id("tokenise"),
    }  # fmt: skip
