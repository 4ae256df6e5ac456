"""The surroundings in which errors happen: protocol files with one fault, work dirs, locks, machines.

Each setting is a context manager that takes an empty folder, which is then the current one, and puts
everything outside the folder back when it ends. `tests.error_cases` says what goes wrong in them.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from benchmark import data
from benchmark.cli import main
from leaderboard import report
from protocols import lock

ROOT = Path(__file__).parent.parent
MINI = ROOT / "protocols" / "mini.yaml"
TINY = ROOT / "tests" / "tiny.yaml"
# One objective and one evaluation of the tests' protocol, on one processor: seconds.
SMALL = ("--methods", "mim", "--evaluations", "linear-probe", "--device", "cpu", "--jobs", "1")
Setting = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def empty(folder: Path) -> Iterator[None]:
    """Nothing but the checkout."""
    yield


@dataclass(frozen=True)
class CopyOfMini:
    """The file `file`: mini with each of `changes`, (old, new), made at its first place."""

    file: str
    changes: tuple[tuple[str, str], ...]

    @property
    def described(self) -> str:
        """What is wrong in the file, for the page."""
        lines = "` and `".join(line.strip() for line in self.changes[-1][1].splitlines())
        return f"`{self.file}` is a copy of mini with `{lines}` in it."

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        text = MINI.read_text()
        for old, new in self.changes:
            assert old in text, f"{old!r} no longer stands in mini"
            text = text.replace(old, new, 1)
        (folder / self.file).write_text(text)
        yield


def mine(old: str, new: str) -> CopyOfMini:
    """`mine.yaml`: a copy of mini under the name `mine`, with a change."""
    return CopyOfMini("mine.yaml", (("name: mini\n", "name: mine\n"), (old, new)))


def edited_release(old: str, new: str) -> CopyOfMini:
    """`edited.yaml`: mini under its own name and version, but with another value."""
    return CopyOfMini("edited.yaml", ((old, new),))


def file_of(name: str, content: str) -> Setting:
    """A file called `name`; folders above it are made."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        yield

    return setting


def folder_of(name: str) -> Setting:
    """An empty folder called `name`."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        (folder / name).mkdir(parents=True)
        yield

    return setting


def launched(**environment: str) -> Setting:
    """Environment variables, as a launcher or a user sets them."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        with mock.patch.dict(os.environ, environment):
            yield

    return setting


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """The folder `shared`, which others own: said by os.access alone, for root may write anywhere."""
    (folder / "shared").mkdir()
    allowed = os.access

    def access(path: os.PathLike[str] | str, mode: int) -> bool:
        return Path(path).name != "shared" and allowed(path, mode)

    with mock.patch.object(os, "access", access):
        yield


@contextmanager
def locked_work_dir(folder: Path) -> Iterator[None]:
    """`runs` as another run of mini holds it."""
    (folder / "runs" / "mini").mkdir(parents=True)
    with (folder / "runs" / "mini" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextmanager
def damaged_lock(folder: Path) -> Iterator[None]:
    """A lock in which one digit of a released value was changed by hand."""
    copy = folder / lock.LOCK.name
    copy.write_text(lock.LOCK.read_text().replace('"image_size":28,"mean"', '"image_size":29,"mean"', 1))
    with lock_at(copy):
        yield


@contextmanager
def lock_at(path: Path) -> Iterator[None]:
    """The lock of the harness is the file `path`."""
    with mock.patch.object(lock, "LOCK", path):
        yield


@contextmanager
def tampered_images(folder: Path) -> Iterator[None]:
    """A checkout whose embedded images are not the ones that were embedded."""
    shutil.copy(data.EMBEDDED / "fashion_mnist_12k.npz", folder)
    with (folder / "fashion_mnist_12k.npz").open("ab") as stream:
        stream.write(b"one byte more is enough"[:1])
    with _images_in(folder):
        yield


@contextmanager
def no_images(folder: Path) -> Iterator[None]:
    """A checkout without the embedded images."""
    with _images_in(folder):
        yield


@contextmanager
def _images_in(folder: Path) -> Iterator[None]:
    data._embedded_file.cache_clear()
    try:
        with mock.patch.object(data, "EMBEDDED", folder):
            yield
    finally:
        data._embedded_file.cache_clear()


@cache
def _finished() -> tempfile.TemporaryDirectory[str]:
    """A finished run of SMALL, made once in a process; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="finished-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    _quietly("--protocol", str(TINY), "--work-dir", f"{folder.name}/runs", *SMALL)
    return folder


def _quietly(*arguments: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    assert code == 0, said.getvalue()


def finished_run(harm: Callable[[Path], None]) -> Setting:
    """`tiny.yaml` and `runs`, a finished run of it, to which `harm` is then done."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        shutil.copy(TINY, folder)
        shutil.copytree(f"{_finished().name}/runs", folder / "runs")
        harm(folder / "runs")
        yield

    return setting


def only(work_dir: Path, pattern: str) -> Path:
    """The one path under `work_dir` that fits `pattern`."""
    (found,) = work_dir.glob(pattern)
    return found


def cut_tokens(work_dir: Path) -> None:
    """The token store loses its second half."""
    path = only(work_dir, "tokens/*/*/tokens.npy")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change_tokens(work_dir: Path) -> None:
    """One bit of the token store flips."""
    path = only(work_dir, "tokens/*/*/tokens.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def delete_tokens(work_dir: Path) -> None:
    """Somebody makes room."""
    shutil.rmtree(work_dir / "tokens")


def delete_backbone(work_dir: Path) -> None:
    """The pre-trained trunk is gone."""
    only(work_dir, "tiny/cells/pretrain-*/checkpoints/backbone.safetensors").unlink()


def delete_predictions(work_dir: Path) -> None:
    """The random trunk is probed too, for a gain; then a probe loses the file of what it predicted."""
    _quietly("--protocol", str(TINY), "--work-dir", str(work_dir), *SMALL, "--methods", "scratch")
    only(work_dir, "tiny/cells/linear-probe-mim-*/predictions.npz").unlink()


def replace_record(work_dir: Path) -> None:
    """A folder stands where a record was."""
    path = only(work_dir, "tiny/cells/pretrain-*/record.json")
    path.unlink()
    path.mkdir()


def write_notes(work_dir: Path) -> None:
    """A file called `notes` beside the work dir."""
    (work_dir.parent / "notes").write_text("dear diary")


@contextmanager
def no_permission_to_write(folder: Path) -> Iterator[None]:
    """A finished run; others own the board's folder: said by the writer, for root may write anywhere."""

    def refuse(path: Path, content: bytes | str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with finished_run(write_notes)(folder), mock.patch.object(report, "write_atomically", refuse):
        yield


def corrupt_record(work_dir: Path) -> None:
    """The disk filled up, or an editor slipped: half of a record is left."""
    path = only(work_dir, "tiny/cells/pretrain-*/record.json")
    path.write_text(path.read_text()[:500])


def edit_record(work_dir: Path) -> None:
    """A record says something that no record can say."""
    path = only(work_dir, "tiny/cells/pretrain-*/record.json")
    path.write_text(path.read_text().replace('"status": "done"', '"status": "great"'))


def begin_with_other_code(work_dir: Path) -> None:
    """The pre-training was interrupted, and the method's code edited since."""
    folder = only(work_dir, "tiny/cells/pretrain-*")
    (folder / "record.json").unlink()
    (folder / "checkpoints" / "step-000000008.sha256").write_text("of a checkpoint that is never read")
    (folder / "checkpoints" / "begun.json").write_text(json.dumps({"method:mim": "0" * 64}))
