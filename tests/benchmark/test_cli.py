"""The command line's words: help, lists, and short errors with the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.cli import build_parser, main
from benchmark.commands import COMMANDS, load_command

ENTRY = Path(__file__).parent.parent.parent / "run_benchmark.py"


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
        (["--protocol", "mini", "--workers", "-1"], "--workers must be 0 or more, got -1"),
        (["--protocol", "mini", "--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["--protocol", "mini", "--accumulation", "0"], "--accumulation must be 1 or more, got 0"),
        (
            ["--protocol", "mini", "--checkpoint-seconds", "inf"],
            "--checkpoint-seconds must be 0 or more, got inf",
        ),
        (
            ["report", "--protocol", "mini", "--work-dir", "nowhere"],
            "no records of protocol mini under nowhere",
        ),
        ([], "required: --protocol (see run_benchmark.py --help)"),
        (["--protocol"], "--protocol: expected one argument"),
        (["--protocal", "mini"], "unknown option --protocal; did you mean --protocol?"),
        (["--protocol", "mini", "-x"], "unrecognized arguments: -x"),
        (["--protocol", "mini", "--method", "mim"], "unknown option --method; did you mean --methods?"),
        (["plan", "--protocol", "mini", "--quiet"], "(see run_benchmark.py plan --help)"),
        (["plan", "mini"], "did you mean --protocol mini? (see run_benchmark.py plan --help)"),
        (["status", "--json", "Mini"], "did you mean --protocol Mini?"),
        (["mini"], "did you mean --protocol mini?"),
        (["plan", "--methods", "mini"], "required: --protocol"),
        (["list", "cats"], "invalid choice: 'cats'"),
        (["list"], "required: KIND (see run_benchmark.py list --help)"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_fits_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "--debug" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command_that_is_understood(name: str) -> None:
    lines = load_command(name).DESCRIPTION.replace("\\\n", "").splitlines()
    examples = [line.strip() for line in lines if line.startswith("  ") and "run_benchmark.py " in line]
    assert examples
    for line in examples:
        words = line.partition("run_benchmark.py ")[2].partition(" >")[0].rstrip(")").split()
        command = words.pop(0) if words[0] in COMMANDS else "run"
        assert build_parser(command).parse_args(words)


def test_help_shows_exit_codes_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python run_benchmark.py --protocol mini --methods all" in shown
    assert "exit codes" in shown
    for name in set(COMMANDS) - {"run"}:
        assert f"\n  {name}" in shown or f", {name}" in shown


def test_run_needs_no_name_but_may_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--protocol", "minni"]) == main(["run", "--protocol", "minni"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second


def test_a_reader_that_has_seen_enough_is_no_error_but_not_the_end_either() -> None:
    """`run_benchmark.py explain fair300 | true`: no message, and the code that shells show for SIGPIPE."""
    explained = subprocess.Popen(
        [sys.executable, str(ENTRY), "explain", "fair300"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert explained.stdout is not None
    explained.stdout.close()
    assert explained.stderr is not None
    with explained.stderr:
        assert explained.stderr.read() == b""
    assert explained.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("protocols", ["mini", "fair300"]),
        ("methods", ["mapet", "scratch"]),
        ("tokenizers", ["k-feature  built in  k-means on a map", "supervised"]),
        ("trunks", ["vit-mini   64 wide, 4 deep, patches of 4 (mini)", "vit-b"]),
        ("evaluations", ["finetune       fine-tuning of all weights (cifar, fair300, mini)", "token-mlp"]),
        ("views", ["table6", "Cutting point"]),
    ],
)
def test_lists(
    kind: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", kind]) == 0
    shown = capsys.readouterr().out
    for text in expected:
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 80
