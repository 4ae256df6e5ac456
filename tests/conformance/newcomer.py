"""The path of a newcomer, as docs/add-a-method.md gives it: its file, and its commands as they stand.

    python -m tests.conformance.newcomer [CHECKOUT]

clones the repository (or CHECKOUT) afresh and runs every command of the page in the clone, one after the
other, up to the first that fails. It takes minutes: the protocol is mini.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = "docs/add-a-method.md"
PYTHON = "python run_benchmark.py"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return found


def commands(page: Path) -> list[str]:
    """Every line of every shell block of a page."""
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


def main(origin: Path) -> int:
    """Everything in a fresh clone of `origin`; the exit code of the first command that fails, else 0."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "checkout"
        subprocess.run(["git", "clone", "--quiet", str(origin), str(clone)], check=True)
        for command in commands(clone / PAGE):
            print(f"$ {command}", flush=True)
            here = command.replace("python ", f"{sys.executable} ", 1)
            code = subprocess.run(here, shell=True, cwd=clone, check=False).returncode
            if code:
                print(f"ended with {code}")
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
