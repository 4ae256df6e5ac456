"""Code blocks of the pages: where they stand, what kind they are, and the harness's commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SCRIPT = "run_benchmark.py"
# What a line of a shell begins with on these pages.
SHELL = {
    "./run_benchmark.py", "cd", "cp", "curl", "export", "git", "jupyter", "mkdir", "mkdocs", "npm", "pip",
    "pytest", "python", "python3.11", "rsync", "sbatch", "scancel", "sinfo", "source", "squeue", "srun",
    "tensorboard", "time", "torchrun", "wandb",
}  # fmt: skip
MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One code block: `language` is that of its fence, empty for an indented one."""

    page: str  # relative to the repository
    line: int
    language: str
    text: str

    @property
    def kind(self) -> str:
        """console (a command and its output), commands, python, yaml, or text."""
        if self.language in ("console", "python", "yaml"):
            return self.language
        if re.match(r"(import|from) \w", self.text):
            return "python"
        return "commands" if all(map(_is_shell, logical_lines(self.text))) else "text"


def pages() -> list[Path]:
    """README.md and every page of docs."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """How tests name a page: its path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The page's code blocks in order."""
    return [
        Block(
            page=name_of(page),
            line=(token.map or [0])[0] + 1,
            language=token.info.strip(),
            text=token.content,
        )
        for token in _parsed(page)
        if token.type in ("fence", "code_block")
    ]


def harness_commands(page: Path) -> list[tuple[str, ...]]:
    """The arguments of each `run_benchmark.py` on the page, in blocks and in running text.

    Not those of console blocks: tests/test_docs.py gives these, errors or not, and compares what they print.
    """
    found = []
    for block in blocks(page):
        if block.kind != "console":
            lines = [line for line in logical_lines(block.text) if SCRIPT in line]
            found += [arguments for line in lines for arguments in calls(line)]
    for code in inline_code(page):
        if code.startswith((f"python {SCRIPT}", f"./{SCRIPT}")):
            found += calls(code)
    return list(dict.fromkeys(found))


def inline_code(page: Path) -> list[str]:
    """What stands between backticks in the page's running text, tables and lists."""
    parts = [part for token in _parsed(page) for part in token.children or ()]
    return [part.content for part in parts if part.type == "code_inline"]


def logical_lines(text: str) -> list[str]:
    """Lines with their continuations, without empty ones and whole-line comments."""
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def words(line: str) -> list[str]:
    """The words of a line of a shell, its operators (`&&`, `|`, `<`) as words of their own, no comment."""
    reader = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, "#"
    return list(reader)


def calls(line: str) -> list[tuple[str, ...]]:
    """What follows each `run_benchmark.py` of the line, up to an operator of the shell."""
    found: list[list[str]] = []
    is_inside = False
    for word in words(line):
        if Path(word).name == SCRIPT:
            found.append([])
            is_inside = True
        elif re.fullmatch(r"[();<>|&]+", word):
            is_inside = False
        elif is_inside:
            found[-1].append(word)
    return [tuple(arguments) for arguments in found]


@cache
def _parsed(page: Path) -> list[Token]:
    return MARKDOWN.parse(page.read_text(encoding="utf-8"))


def _is_shell(line: str) -> bool:
    try:
        first = next((word for word in words(line) if not re.match(r"[A-Z]\w*=", word)), "")
    except ValueError:  # a quotation mark without its like: prose
        return False
    return first in SHELL
