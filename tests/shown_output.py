"""Commands and their output on the pages of docs: `python -m tests.shown_output` brings them up to date.

A block is fenced with ```console; it starts with `$ python run_benchmark.py ...` and goes on with what that
prints at 80 columns. tests/test_docs.py checks that every block is what the command prints now.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

from benchmark.cli import main

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```console\n\$ python run_benchmark\.py (.*)\n(?s:.*?)^```$", re.MULTILINE)


def pages() -> list[Path]:
    """The pages that show output."""
    return [page for page in sorted((ROOT / "docs").rglob("*.md")) if BLOCK.search(page.read_text())]


def refreshed(text: str) -> str:
    """`text` with every block's output as the command prints it now, from the repository's root."""
    return BLOCK.sub(
        lambda block: f"```console\n$ python run_benchmark.py {block[1]}\n{printed(block[1])}```", text
    )


def printed(command: str) -> str:
    """Standard output and error of a command that succeeds or not, at 80 columns."""
    shown = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            main(shlex.split(command))
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return shown.getvalue()


if __name__ == "__main__":
    for page in pages():
        page.write_text(refreshed(page.read_text()))
