"""docs/add-a-*.md: the code that they show is that of the examples, and their commands run.

docs/add-a-method.md's commands: tests/conformance/test_newcomer.py.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.plugins import unload_plugins
from tests.conformance.newcomer import PYTHON, ROOT, blocks, commands

DOCS = ROOT / "docs"
EXAMPLES = {
    "add-a-method.md": "ring_mim.py",
    "add-a-tokenizer.md": "k_gradient.py",
    "add-a-data-set.md": "kmnist.py",
}


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    yield
    unload_plugins()


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_page_shows_the_example_as_it_is(page: str) -> None:
    text = (DOCS / "examples" / EXAMPLES[page]).read_text()
    assert blocks(DOCS / page, "python")[0] == text


def test_the_example_method_has_sixty_lines_at_most() -> None:
    assert len((DOCS / "examples" / "ring_mim.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("page", ["add-a-tokenizer.md", "add-a-data-set.md"])
def test_its_commands_and_code_run(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)
    mine, shown = str(tmp_path / "mine"), dict[str, str]()
    code = "".join(blocks(DOCS / page, "python")[1:])
    for command in commands(DOCS / page):
        words = shlex.split(command.replace("../mine", mine))
        if command.startswith(PYTHON):
            if code:
                exec(code.replace("../mine", mine), {})
                code = ""
            assert main(words[2:]) == 0, command
            shown[words[2]] = capsys.readouterr().out
        else:
            subprocess.run(words, check=True)
    (excerpt,) = blocks(DOCS / page, "text")
    assert set(excerpt.splitlines()) <= set(shown["check"].splitlines())
    assert "pretrain" in shown["plan"]
