"""The newcomer's path of docs/add-a-method.md, every command of it, in seconds.

Cut short: `--protocol mini` becomes a protocol of tests with one short epoch (and merge is told of it, for
it is none of the harness' own), `../mine` a temporary folder, and `check` leaves out the time of steps,
with --quick; figures are not drawn. `python -m tests.conformance.newcomer` cuts nothing.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.plugins import unload_plugins
from tests.conformance.newcomer import PAGE, PYTHON, ROOT, blocks, commands

pytestmark = pytest.mark.usefixtures("boards_without_drawings")


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    yield
    unload_plugins()


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """tests/tiny.yaml with one epoch of pre-training and of fine-tuning."""
    text = (ROOT / "tests" / "tiny.yaml").read_text()
    shorter = text.replace("epochs: {value: 8,", "epochs: {value: 1,").replace(
        "epochs: {value: 2, source: test}\n    warmup_epochs: {value: 1,",
        "epochs: {value: 1, source: test}\n    warmup_epochs: {value: 0,",
    )
    assert shorter != text
    path = tmp_path / "tiny.yaml"
    path.write_text(shorter)
    return path


def test_every_command_of_the_page(
    tmp_path: Path, protocol: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)
    mine, shown = tmp_path / "mine", dict[str, list[str]]()
    page = ROOT / PAGE
    for command in commands(page):
        here = command.replace("../mine", str(mine)).replace("--protocol mini", f"--protocol {protocol}")
        if not here.startswith(PYTHON):
            subprocess.run(shlex.split(here), check=True)
            continue
        name, *_ = words = shlex.split(here.removeprefix(PYTHON))
        words += {"check": ["--quick"], "merge": ["--protocol", str(protocol)]}.get(name, [])
        assert main(words) == 0, here
        shown.setdefault(name, []).append(capsys.readouterr().out)
    assert set(shown) == {"check", "plan", "--protocol", "report", "compare", "bundle", "merge", "list"}
    (excerpt,) = blocks(page, "text")
    assert set(excerpt.splitlines()) <= set(shown["check"][0].splitlines())
    here, elsewhere = shown["report"]
    assert "Ring MIM (plug-in" in here
    assert "plug-in ring_mim.py" in shown["list"][0]
    first = here.split("\n\n")[0]
    assert first == elsewhere.split("\n\n")[0]
    assert "merged from ring.tar" in elsewhere
    records = [json.loads(path.read_text()) for path in (mine / "elsewhere").rglob("record.json")]
    own = [one for one in records if one["method"] and one["method"]["name"] == "ring-mim"]
    assert {one["stage"] for one in own} == {"pretrain", "finetune", "linear-probe"}
    assert {one["method"]["plugin"] for one in own} == {"ring_mim.py"}
