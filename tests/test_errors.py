"""The errors of tests/error_cases.py: exit codes, form, what each must say, and the page of all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmark.cli import main
from tests.error_cases import CASES, GO_ON, Outcome, page, provoke_all
from tests.error_settings import (
    TINY,
    Setting,
    begin_with_other_code,
    cut_tokens,
    delete_backbone,
    finished_run,
    only,
)

ROOT = Path(__file__).parent.parent
MOST_LINES = 24
pytestmark = pytest.mark.usefixtures("boards_without_drawings")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return provoke_all(tmp_path_factory.mktemp("errors"))


@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_where_and_what_to_do(name: str, outcomes: dict[str, Outcome]) -> None:
    case, outcome = CASES[name], outcomes[name]
    assert outcome.exit_code == case.exit_code, outcome.text
    for part in (case.given, case.where, case.remedy):
        assert part in outcome.text
    assert "Traceback" not in outcome.text
    assert 0 < len(outcome.text.splitlines()) <= MOST_LINES
    if outcome.exit_code in (2, 3):
        # What a run found in order stands above what it meets only when it starts.
        assert re.search(r"^error: ", outcome.text, re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        if "mine.yaml" in case.command and "--plugin mine.yaml" not in case.command
    ],
)
def test_faults_of_a_file_name_the_file(name: str, outcomes: dict[str, Outcome]) -> None:
    # Hyperparameters are checked by their method's specification, which knows no file but its protocol.
    assert re.match(r"error: (mine\.yaml(:\d+)?: |protocol mine, methods\.\w+: )", outcomes[name].text)


def test_the_page_is_what_is_shown_now(outcomes: dict[str, Outcome]) -> None:
    remedy = "bring it up to date: python -m tests.error_cases > docs/errors.md"
    assert page(outcomes.items()) == (ROOT / "docs" / "errors.md").read_text(), remedy


def test_every_kind_of_exit_code_is_shown(outcomes: dict[str, Outcome]) -> None:
    assert {outcome.exit_code for outcome in outcomes.values()} == {0, 1, 2, 3}


def test_debug_adds_the_traceback_and_keeps_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--protocol", "minni", "--debug"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback")
    assert errors.splitlines()[-1].startswith("error: unknown protocol 'minni'")
    assert main(["--protocol", "minni"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def _delete_store_and_cell(work_dir: Path) -> None:
    shutil.rmtree(only(work_dir, "tokens/*/fashion-mnist-12k-*"))
    shutil.rmtree(only(work_dir, "tiny/cells/tokenise-*"))


def _delete_pretraining(work_dir: Path) -> None:
    shutil.rmtree(only(work_dir, "tiny/cells/pretrain-*-s0-*"))


def _nothing(work_dir: Path) -> None:
    return None


@pytest.mark.parametrize(
    ("setting", "more", "stage", "error", "remedy", "flags"),
    [
        (finished_run(cut_tokens), ["--seeds", "1"], "pretrain", "cut short", _delete_store_and_cell, []),
        (
            finished_run(delete_backbone),
            ["--evaluations", "finetune"],
            "finetune",
            "is missing; restore it, or delete",
            _delete_pretraining,
            [],
        ),
        (
            finished_run(begin_with_other_code),
            [],
            "pretrain",
            "begun with other code",
            _nothing,
            ["--redo-stale"],
        ),
    ],
    ids=["token store", "backbone", "other code"],
)
def test_an_error_in_a_cell_is_recorded_and_its_remedy_works(
    setting: Setting,
    more: list[str],
    stage: str,
    error: str,
    remedy: object,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_dir = tmp_path / "runs"
    arguments = [str(work_dir) if word == "runs" else word for word in GO_ON.split()]
    arguments = [str(TINY) if word == "tiny.yaml" else word for word in arguments] + more
    with setting(tmp_path):
        assert main([*arguments, "--quiet"]) == 1
        paths = (work_dir / "tiny" / "cells").glob(f"{stage}-*/record.json")
        records = [json.loads(path.read_text()) for path in paths]
        (failed,) = [record for record in records if record["status"] == "failed"]
        assert error in failed["error"]
        assert "Traceback" in (work_dir / "tiny" / "cells" / failed["cell_id"] / "log").read_text()
        assert main([*arguments, "--quiet", "--redo-failed"]) == 1, "it does not mend itself"
        remedy(work_dir)  # type: ignore[operator]
        capsys.readouterr()
        assert main([*arguments, "--quiet", "--redo-failed", *flags]) == 0, capsys.readouterr().err
