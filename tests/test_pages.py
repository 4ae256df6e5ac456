"""Each code block of each page is executed, compared or read by a test: this file says which by what."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.cli import build_parser
from benchmark.commands import COMMANDS
from benchmark.commands.options import read_selection
from protocols import list_protocols
from tests.page_blocks import (
    ROOT,
    Block,
    blocks,
    calls,
    harness_commands,
    inline_code,
    logical_lines,
    name_of,
    pages,
    words,
)
from tokenizers import tokenizer_spec

# Written by `python -m tests.error_cases`; tests/test_errors.py gives its commands, most of which are wrong.
GENERATED = "docs/errors.md"
# Pages with Python: how many blocks, and the test that executes them.
PYTHON = {
    "docs/add-a-method.md": (1, "tests/conformance/test_newcomer.py"),
    "docs/add-a-tokenizer.md": (1, "tests/conformance/test_pages.py"),
    "docs/add-a-data-set.md": (2, "tests/conformance/test_pages.py"),
    "docs/mini.md": (1, "tests/test_docs.py"),
    "docs/notebooks.md": (2, "tests/sharing/test_notebooks.py"),
    "docs/weights.md": (1, "tests/convert/test_weights_page.py"),
}
# Pages with blocks that are neither commands nor code: how many, and what they are.
TEXT = {
    "docs/add-a-data-set.md": (1, "lines of check, which tests/conformance/test_pages.py compares"),
    "docs/add-a-tokenizer.md": (1, "lines of check, compared there too"),
    "docs/add-a-method.md": (1, "lines of check, which tests/conformance/test_newcomer.py compares"),
    "docs/architecture.md": (1, "a diagram"),
    "docs/data.md": (3, "layouts of folders, and a digest"),
    "docs/faq.md": (15, "errors, which test_messages_are_those_of_the_page_of_errors compares"),
    "docs/performance.md": (1, "output of a measurement"),
    "docs/protocols.md": (1, "an error with an edited file, compared like those of faq.md"),
    "docs/records.md": (1, "the layout of a work dir"),
    "docs/reliability.md": (3, "messages of runs that were killed"),
    "docs/results/cifar/about.md": (1, "output of status"),
    "docs/tokenizers.md": (1, "layouts of folders"),
}
# Options of other programs that pages name between backticks.
OTHERS_OPTIONS = {
    "--cooldown-epochs", "--kill-on-invalid-dep", "--shm-size", "--signal", "--strict",
    "--kills", "--matching", "--only", "--pairs", "--rounds",  # of modules of the tests
}  # fmt: skip
START = ROOT / "docs" / "index.md"
PAGES = [page for page in pages() if name_of(page) != GENERATED]
BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_the_command_line_takes(page: Path) -> None:
    """Parsed as `main` does; where the protocol is a released one, its cells are chosen, too."""
    for given in harness_commands(page):
        check(given)


def check(given: tuple[str, ...]) -> None:
    """HarnessError if the command line does not take these words. N stands for a number."""
    words_left = ["1" if word == "N" else word for word in given]
    name = words_left.pop(0) if words_left and not words_left[0].startswith("-") else "run"
    assert name in COMMANDS, given
    if {"--help", "-h"} & set(words_left):
        return
    options = build_parser(name).parse_args(words_left)
    is_released = getattr(options, "protocol", None) in list_protocols()
    if is_released and hasattr(options, "methods") and not getattr(options, "plugin", None):
        options.set = [one for one in options.set if "$(" not in one and "..." not in one]
        read_selection(options)


def test_options_that_pages_name_are_options_of_the_command() -> None:
    """`pack --verify`, `--redo-stale` and the like, where the whole command does not stand."""
    options = {
        name: {one for action in build_parser(name)._actions for one in action.option_strings}
        for name in COMMANDS
    }
    every = set().union(*options.values())
    wrong = []
    for page in PAGES:
        for code in inline_code(page):
            named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) - OTHERS_OPTIONS
            allowed = options.get(code.split(" ")[0], every)
            wrong += [f"{name_of(page)}: {one} in `{code}`" for one in sorted(named - allowed)]
    assert not wrong


def test_the_start_page_shows_every_command() -> None:
    shown = {
        given[0] if given and not given[0].startswith("-") else "run" for given in harness_commands(START)
    }
    assert shown == set(COMMANDS)


def test_a_command_with_a_mistake_is_found() -> None:
    """The reader sees comments, continuations, pipes and launchers, and what they start is checked."""
    line = "torchrun --nproc-per-node 8 run_benchmark.py cell ID --protocol mini | head   # a comment"
    assert calls(line) == [("cell", "ID", "--protocol", "mini")]
    assert logical_lines("a \\\n    b\n# c\n") == ["a  b"]
    for wrong in ("--protocol mini --method mim", "--protocol mini --methods mappet", "report --seeds 0"):
        with pytest.raises(Exception, match=r"did you mean|unknown option"):
            check(tuple(wrong.split()))


@pytest.mark.parametrize(("kind", "listed"), [("python", PYTHON), ("text", TEXT)])
def test_every_block_that_is_no_command_is_accounted_for(
    kind: str, listed: Mapping[str, tuple[int, str]]
) -> None:
    """By number: one more needs a test, or is a line of commands with a mistake in its first word."""
    found = Counter(block.page for block in of_kind(kind))
    assert found == {page: number for page, (number, _) in listed.items()}


@pytest.mark.parametrize("page", PYTHON)
def test_python_on_a_page_is_executed_by_a_test(page: str) -> None:
    _, test = PYTHON[page]
    text, name = (ROOT / test).read_text(encoding="utf-8"), Path(page)
    assert name.name in text or f'"{name.stem}"' in text, f"{test} does not read {page}"


def test_python_on_pages_compiles() -> None:
    """What stands after `python -c` too, most of which fetches something and is not run here."""
    for block in of_kind("python"):
        compile(block.text, f"{block.page}:{block.line}", "exec")
    for block in of_kind("commands"):
        for line in logical_lines(block.text):
            given = words(line)
            if given[:2] == ["python", "-c"]:
                compile(given[2], f"{block.page}:{block.line}", "exec")


def test_parts_of_protocols_on_pages_stand_in_a_protocol() -> None:
    """Each value of the blocks of docs/protocols.md and docs/tables.md. docs/cluster.md's file is run."""
    files = [ROOT / "protocols" / name for name in ("mini.yaml", "fair300.yaml")]
    protocols = [yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader) for file in files]
    others = {"docs/cluster.md", "docs/tokenizers.md"}
    shown = [block for block in of_kind("yaml") if block.page not in others]
    assert len(shown) == 3
    for block in shown:
        for key, value in yaml.safe_load(block.text).items():
            assert value in values_under(key, protocols), f"{block.page}:{block.line}: {key}"


def values_under(key: str, tree: Any) -> list[Any]:
    """Whatever stands under the key, at any depth."""
    children = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    below = [value for child in children for value in values_under(key, child)]
    return [tree[key], *below] if isinstance(tree, dict) and key in tree else below


def test_the_tokenizer_of_a_page_takes_these_values() -> None:
    (block,) = [block for block in of_kind("yaml") if block.page == "docs/tokenizers.md"]
    given = yaml.safe_load(block.text.replace("<64 hex digits>", "0" * 64))["tokenizers"]["k-feature"]
    assert all(set(one) == {"value", "source"} for one in given.values())
    resolved = tokenizer_spec("k-feature").resolve({name: one["value"] for name, one in given.items()})
    assert resolved["teacher"] == given["teacher"]["value"]


@pytest.mark.parametrize("page", ["docs/faq.md", "docs/protocols.md"])
def test_messages_are_those_of_the_page_of_errors(page: str) -> None:
    """Each is a part of what a test causes and tests/test_errors.py compares."""
    shown = " ".join((ROOT / GENERATED).read_text(encoding="utf-8").split())
    texts = [" ".join(block.text.split()) for block in of_kind("text") if block.page == page]
    assert texts
    assert [text for text in texts if text not in shown] == []


def test_modules_that_pages_start_are_there() -> None:
    """`python -m tests.chaos` and the like, in blocks and in running text."""
    named = {one for page in PAGES for one in re.findall(r"python -m (tests[.\w]*\w)", page.read_text())}
    assert named
    assert [one for one in named if importlib.util.find_spec(one) is None] == []


def test_files_that_pages_name_are_there() -> None:
    """`benchmark/engine.py`, `tests/chaos` and so on, wherever a page names them between backticks."""
    rooms = "benchmark|docs|leaderboard|methods|protocols|tests|tokenizers"
    missing = []
    for page in PAGES:
        for name in re.findall(rf"`((?:{rooms})/[\w./-]+)`", page.read_text(encoding="utf-8")):
            if not (ROOT / name).exists():
                missing.append(f"{name_of(page)}: {name}")
    assert not missing


def test_tests_that_pages_name_are_there() -> None:
    """`tests/x/test_y.py::test_z`: the proof that a page points to."""
    missing, found = [], 0
    for page in PAGES:
        for name, test in re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
            found += 1
            if not (ROOT / name).exists() or f"def {test}(" not in (ROOT / name).read_text(encoding="utf-8"):
                missing.append(f"{name_of(page)}: {name}::{test}")
    assert found
    assert not missing


def test_every_footgun_names_the_test_that_catches_it() -> None:
    lines = (ROOT / "docs" / "footguns.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if re.match(r"\| (?!what goes wrong)", line)]
    assert rows
    assert [row for row in rows if "`tests/" not in row.rsplit("|", 2)[1]] == []


def of_kind(kind: str) -> list[Block]:
    """The blocks of one kind on all pages."""
    return [block for block in BLOCKS if block.kind == kind]
