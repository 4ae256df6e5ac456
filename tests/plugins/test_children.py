"""Plug-ins reach every process of a run, and their records say which one they were."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmark import worker
from benchmark.cell_command import cell_arguments, code_digest
from benchmark.cli import main
from benchmark.commands.options import plugins_in
from benchmark.job import Job, run_in_child
from benchmark.layout import cell_folder
from benchmark.plan import Cell, make_plan
from benchmark.plugins import load_plugins, unload_plugins
from benchmark.record_cell import write_cell_record
from benchmark.runtime import detect_runtime
from benchmark.selection import select
from benchmark.survey import present_sources
from leaderboard.record import write_record
from leaderboard.staleness import stale_reasons
from methods import list_methods
from protocols import load_protocol
from tests.error_settings import TINY
from tests.plugins.conftest import Load
from tests.plugins.plugin_texts import METHOD, TOKENIZER, changed

PROTOCOL = load_protocol(str(TINY))
RUNTIME = detect_runtime(device="cpu")


def pretraining() -> Cell:
    plan = make_plan(PROTOCOL, select(PROTOCOL, methods=["ring-mim"], tokenizers=["brightness"]))
    return next(cell for cell in plan if cell.stage == "pretrain")


@pytest.fixture
def both(load: Load) -> tuple[Path, Path]:
    return load(METHOD, "ring.py"), load(TOKENIZER, "bright.py")


def job_in(folder: Path) -> Job:
    return Job(
        cell=pretraining(),
        protocol=PROTOCOL,
        runtime=RUNTIME,
        work_dir=folder,
        slot=0,
        sources=present_sources(),
    )


def test_a_forked_cell_loads_them_before_it_begins(
    both: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = job_in(tmp_path)
    assert job.plugins == tuple(map(str, both))
    seen: list[bool] = []
    monkeypatch.setattr(worker, "run_job", lambda job: seen.append("ring-mim" in list_methods()))
    unload_plugins()
    run_in_child(job)
    assert seen == [True]
    # One that was broken meanwhile is told of; whether the cell needs it, its worker finds.
    both[0].write_text("1 / 0\n")
    run_in_child(job)
    assert seen == [True, False]
    assert "ring.py:1: cannot be imported: ZeroDivisionError" in capsys.readouterr().err


def test_a_cell_whose_plug_in_was_edited_meanwhile_is_refused(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    job = job_in(tmp_path)
    both[0].write_text(METHOD + "# edited\n")
    load_plugins(job.plugins, packages=False)
    context = worker.CellContext(
        cell=job.cell, protocol=PROTOCOL, runtime=RUNTIME, work_dir=tmp_path, sources=job.sources
    )
    context.folder.mkdir(parents=True)
    assert worker.run_cell(context) == 1
    record = json.loads((cell_folder(tmp_path, "tiny", job.cell.id) / "record.json").read_text())
    assert "the code of method ring-mim changed while this run was going on" in record["error"]


def test_launchers_and_clusters_are_told_where_they_lie(both: tuple[Path, Path], tmp_path: Path) -> None:
    options = Namespace(
        protocol=str(TINY), work_dir=tmp_path, methods=["ring-mim"], tokenizers=["brightness"], trunks=None,
        evaluations=None, views=None, seeds=None, set=[], data_root=None, redo_stale=False,
    )  # fmt: skip
    words = cell_arguments(options, "an-id", RUNTIME)
    assert plugins_in(words) == [str(path) for path in both]
    # Other code of a plug-in is other code: `cell` refuses it by this digest.
    assert words[words.index("--code") + 1] == code_digest()
    both[0].write_text(METHOD + "# edited\n")
    assert words[words.index("--code") + 1] != code_digest()


def test_commands_that_are_shown_take_them_along(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--protocol", "mini", "--work-dir", str(tmp_path / "none")]) == 2
    assert f"run_benchmark.py --protocol mini --plugin {both[0]} {both[1]}, or" in capsys.readouterr().err
    fork = ["fork", "mini", "mine", "--out", str(tmp_path / "mine.yaml")]
    assert main(fork) == 0
    assert f"mine.yaml --plugin {both[0]} {both[1]}\n" in capsys.readouterr().out


def test_words_after_plugin_are_its_own_up_to_the_next_option() -> None:
    assert plugins_in(["--plugin", "a.py", "b", "--methods", "mim", "--plugin=c.py"]) == ["a.py", "b", "c.py"]
    assert plugins_in(["--protocol", "mini", "--plugin"]) == []
    assert plugins_in(["--plug", "a.py"]) == []


def test_records_name_the_plug_in_and_stand_without_it(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = pretraining()
    record = write_cell_record(
        cell, PROTOCOL, RUNTIME, tmp_path, status="failed", error="a try", is_kept=False
    )
    assert record.method is not None
    assert (record.method.plugin, record.method.title) == ("ring.py", "RingMIM")
    assert record.tokenizer is not None
    assert record.tokenizer.plugin == "bright.py"
    assert str(tmp_path) not in record.model_dump_json(exclude={"environment"})
    chosen = select(PROTOCOL, methods=["ring-mim"], tokenizers=["brightness"])
    tokenise = next(one for one in make_plan(PROTOCOL, chosen) if one.stage == "tokenise")
    made = write_cell_record(
        tokenise, PROTOCOL, RUNTIME, tmp_path, status="failed", error="a try", is_kept=False
    )
    assert made.resolved["tokenizer:brightness"]["codebook_size"] == 8
    done = record.model_copy(update={"status": "done", "parents": {}})
    assert stale_reasons([done], present_sources()) == {}
    both[0].write_text(changed(METHOD, ("RingMIM: MIM", "RingMIM: a MIM")))
    assert "code has changed since" in stale_reasons([done], present_sources())[cell.id][0]
    unload_plugins()
    assert stale_reasons([done], present_sources()) == {}, "what is not known is not judged"
    write_record(cell_folder(tmp_path, "tiny", cell.id), record)
    capsys.readouterr()
    words = ["status", "--protocol", str(TINY), "--work-dir", str(tmp_path), "--methods", "ring-mim"]
    assert main(words) == 2
    assert "it came from the plug-in ring.py; give --plugin" in capsys.readouterr().err
    built_in = [*words[:-1], "mim", "--tokenizers", "brightness"]
    assert main(built_in) == 2
    assert "tokenizer 'brightness' is known from records" in capsys.readouterr().err
