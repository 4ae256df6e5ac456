"""A lock lives exactly as long as its owner: not as what it forked, not as what its file says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmark import file_lock
from benchmark.file_lock import held_lock, is_in_place, owner_of, try_lock

ROOT = Path(__file__).parent.parent.parent
TAKE = """
import os, subprocess, sys
from pathlib import Path
from benchmark.file_lock import try_lock
file = Path(sys.argv[1]).open("a")
assert try_lock(file)
"""
# The child says that it has begun: before that it holds what it was forked with.
FORK = """
begun, beginning = os.pipe()
child = os.fork()
if child == 0:
    os.write(beginning, b"1")
    os.read(0, 1)
    os._exit(0)
os.read(begun, 1)
"""
EXEC = """
child = subprocess.Popen([sys.executable, "-c", "import os; os.read(0, 1)"]).pid
"""


@contextmanager
def holder(path: Path, *, more: str = "child = 0") -> Iterator[tuple[int, int]]:
    """The ids of a process that holds the lock of `path`, and of the child that it may have."""
    code = f"{TAKE}\n{more}\nprint(child, flush=True)\nos.read(0, 1)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process.pid, child
        finally:
            for number in (process.pid, child):
                if number:
                    _kill(number)


def _kill(number: int) -> None:
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_the_owner_is_named_while_it_lives_and_gone_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as (owner, _):
        with held_lock(path) as lock:
            assert lock is None
        said = owner_of(path)
        assert said.startswith(f"process {owner} on {os.uname().nodename}, since 20")
        os.kill(owner, signal.SIGKILL)
        os.waitid(os.P_PID, owner, os.WEXITED | os.WNOWAIT)
        with held_lock(path) as lock:
            assert lock is not None, "at once: there is nothing to wait for, and nothing to delete"
            assert owner_of(path).startswith(f"process {os.getpid()} ")


@pytest.mark.parametrize("more", [FORK, EXEC], ids=["forked", "executed"])
def test_a_child_that_outlives_the_owner_does_not_keep_its_lock(more: str, tmp_path: Path) -> None:
    """A loader's worker, the server that cells are forked from, whatever a library starts."""
    path = tmp_path / ".lock"
    with holder(path, more=more) as (owner, child):
        os.kill(owner, signal.SIGKILL)
        os.waitid(os.P_PID, owner, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child}").exists()
        with held_lock(path) as lock:
            assert lock is not None


def test_a_childs_end_does_not_free_the_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_lock(path) as lock:
        assert lock is not None
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with path.open() as other:
            assert not try_lock(other, shared=True)


def test_what_the_file_says_locks_nothing(tmp_path: Path) -> None:
    """A dead owner's text, even where its number is another process's by now: this very one's, here."""
    path = tmp_path / ".lock"
    path.write_text(
        json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": "x", "command": "y"})
    )
    with held_lock(path) as lock:
        assert lock is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"pid": 1}', b"[" * 3000, b'{"pid": 1, "host": ' + b"9" * 5000],
)
def test_what_is_no_owner_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(content)
    assert owner_of(tmp_path / ".lock") == ""
    assert owner_of(tmp_path / "none") == ""


def test_an_owner_commands_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": "\x1b[2J", "host": "a\nb", "since": "\r", "command": "x" * 3000}))
    said = owner_of(path)
    assert said.isprintable()
    assert len(said) <= 400


def test_asking_does_not_change_what_the_owner_says(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("kept")
    with path.open() as asked:
        assert try_lock(asked, shared=True)
    assert path.read_text() == "kept"


def test_a_second_one_does_not_wipe_the_owners_name(tmp_path: Path) -> None:
    path = tmp_path / "cell" / ".lock"
    with held_lock(path) as mine:
        assert mine is not None
        with held_lock(path) as other:
            assert other is None
        assert owner_of(path).startswith(f"process {os.getpid()} ")


def test_a_lock_that_was_deleted_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who locks a file that nobody else can open any more has locked nothing."""
    path = tmp_path / "cell" / ".lock"
    tried: list[bool] = []

    def beaten(file: object, *, shared: bool = False) -> bool:
        if not tried:
            path.unlink()
        tried.append(True)
        return try_lock(file, shared=shared)  # type: ignore[arg-type]

    monkeypatch.setattr(file_lock, "try_lock", beaten)
    with held_lock(path, seconds=5) as lock:
        assert lock is not None
        assert is_in_place(lock)
        with path.open("a") as other:
            assert not try_lock(other)
        path.unlink()
        assert not is_in_place(lock)
    assert len(tried) == 2
