"""Completion scripts: every command, option and name stands in them, those of plug-ins too."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from pathlib import Path

import pytest

from benchmark.cli import build_parser, main
from benchmark.commands import COMMANDS
from tests.plugins.plugin_texts import METHOD


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["completion", *words]) == 0
    return capsys.readouterr().out


def test_every_option_of_every_command_and_the_names_of_plug_ins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ring.py").write_text(METHOD)
    script = printed(capsys, "bash", "--plugin", str(tmp_path / "ring.py"))
    known = dict(re.findall(r"^_shtab_run_benchmark_py_(\w+)_option_strings=\((.*)\)$", script, re.MULTILINE))
    for name in COMMANDS:
        shown = (action for action in build_parser(name)._actions if action.help != SUPPRESS)
        options = {flag for action in shown for flag in action.option_strings}
        assert options == set(known[name].replace("'", "").split()), name
    (methods,) = re.findall(
        r"^_shtab_run_benchmark_py_plan___methods_choices=\((.*)\)$", script, re.MULTILINE
    )
    assert {"all", "all-known", "mim", "ring-mim"} <= set(methods.split())
    assert "ring-mim" not in printed(capsys, "bash")


def test_zsh_completes_every_one_of_several_files_and_shows_summaries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = printed(capsys, "zsh")
    assert '\n  "*:files that' in script
    assert "(*):" not in script
    assert "    merge:'another lab" in script
