"""What a terminal sees beyond a pipe: the same letters, some bold or in colour."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

import pytest

from benchmark.cli import main
from benchmark.commands.text import styled, table

CODES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns that nobody told of colours, whatever this machine's environment says."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


TEXT = (
    table(["stage", "done", "failed"], [["pretrain", "2", "1"]], right=(1, 2)) + "\n!! red\n\nfailed (why):"
)


def test_a_terminal_sees_the_same_letters_with_heads_alarms_and_states_marked() -> None:
    with redirect_stdout(Terminal()):
        shown = styled(TEXT, has_states=True)
    assert CODES.sub("", shown) == TEXT
    head, rule, row, alarm, _, state = shown.split("\n")
    assert head.startswith("\x1b[1m")
    assert rule.startswith("\x1b[2m")
    assert row == "pretrain     2       1"
    assert alarm.startswith("\x1b[1;31m!! red")
    assert state == "\x1b[31mfailed\x1b[0m (why):"


def test_no_color_and_pipes_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    with redirect_stdout(io.StringIO()):
        assert styled(TEXT, has_states=True) == TEXT
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stdout(Terminal()):
        shown = styled(TEXT, has_states=True)
    assert "31m" not in shown
    assert "\x1b[1m" in shown


@pytest.mark.parametrize(
    "command",
    [
        "list methods",
        "plan --protocol mini --methods all --work-dir none",
        "status --protocol mini --work-dir none",
    ],
)
def test_commands_print_the_same_letters_within_80_columns(command: str) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with redirect_stdout(stream):
            assert main(command.split()) == 0
    assert "\x1b[1m" in terminal.getvalue()
    assert CODES.sub("", terminal.getvalue()) == pipe.getvalue()
    assert max(map(len, pipe.getvalue().splitlines())) <= 80
