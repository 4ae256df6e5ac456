"""The command line's words: help, lists, and short errors with the right exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.cli import main

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "minni"], "did you mean 'mini'"),
        (["--protocol", "mini", "--methods", "mappet"], "did you mean 'mapet'"),
        (["--protocol", "mini", "--seeds", "one"], "'one' is not a whole number"),
        (["--protocol", "mini", "--seeds", "99999999999999999999"], "from 0 to 4294967295"),
        (["--protocol", "mini", "--seeds", "٣"], "is not a whole number"),
        (["--protocol", "mini", "--seeds", ","], "names nothing"),
        (["--protocol", "mini", "--methods", ","], "names nothing"),
        (["--protocol", "mini", "--methods", "all", "foo"], "unknown method of protocol mini 'foo'"),
        (["--protocol", "mini", "--set", "trunks.vit-mini.patch_size=5"], "not a multiple of patch_size 5"),
        (["--protocol", "mini", "--set", "data.test.count=4001"], "of test, which has 4000"),
        (["--protocol", "mini", "--set", "pretraining.peak_lr"], "the value is missing"),
        (["raport"], "unknown command 'raport'; did you mean 'report'"),
        (["--protocol", "mini", "--set", "pretraining.epoch=1"], "pretraining.epochs"),
        (["--protocol", "mini", "--set", "pretraining.epochs=["], "is not a value"),
        (["--protocol", "mini", "--workers", "-1"], "--workers and --checkpoint-seconds must be 0 or more"),
        (["--protocol", "mini", "--jobs", "0"], "--jobs 1 or more"),
        (
            ["report", "--protocol", "mini", "--work-dir", "nowhere"],
            "no records of protocol mini under nowhere",
        ),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--protocol"], ["--protocal", "mini"], ["list", "cats"], ["list"]]
)
def test_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_shows_examples_and_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python run_benchmark.py --protocol mini --methods all" in shown
    assert "exit codes" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("protocols", "mini"),
        ("methods", "mapet"),
        ("tokenizers", "supervised (ImageNet-1k labels)"),
        ("trunks", "vit-mini"),
        ("evaluations", "linear-probe"),
    ],
)
def test_lists(kind: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    assert expected in capsys.readouterr().out
