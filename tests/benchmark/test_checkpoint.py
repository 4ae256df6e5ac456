"""Checkpoints survive kills and damage; weights files are exact and checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmark.checkpoint import clear_checkpoints, load_newest, load_weights, save_checkpoint, save_weights
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically


def state(value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((50,), value)}}


def test_the_newest_whole_one_is_read_and_two_are_kept(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, state(step))
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest["step"] == 30
    assert newest["model"]["weight"][0] == 30
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-000000020.pt", "step-000000030.pt"]
    clear_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no digest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, state(step))
    path = tmp_path / "step-000000020.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        content = content[:-100]
    elif damage == "empty":
        content = bytearray()
    else:
        path.with_suffix(".sha256").unlink()  # killed between the file and its digest
    path.write_bytes(content)
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest["step"] == 10


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, state(1))
    (tmp_path / "step-000000010.pt").write_bytes(b"")
    with pytest.raises(HarnessError, match=r"step-000000010\.pt damaged; restore one, or delete"):
        load_newest(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(Bomb.folder),))

    folder: Path


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    Bomb.folder = tmp_path / "ran"
    path = tmp_path / "step-000000010.pt"
    torch.save({"step": 10, "model": Bomb()}, path)
    path.with_suffix(".sha256").write_text(sha256_of_file(path))
    with pytest.raises(HarnessError, match=r"it names \w+\.mkdir; delete"):
        load_newest(tmp_path)
    assert not Bomb.folder.exists()


def test_weights_are_the_same_bytes_for_the_same_weights(tmp_path: Path) -> None:
    weights = {"b": torch.arange(4.0), "a": torch.eye(3).T}
    digests = {save_weights(tmp_path / name, dict(order)) for name, order in
               (("x", weights.items()), ("y", reversed(weights.items())))}  # fmt: skip
    (digest,) = digests
    loaded = load_weights(tmp_path / "x", digest=digest)
    assert torch.equal(loaded["a"], weights["a"])
    with pytest.raises(HarnessError, match="the record says"):
        load_weights(tmp_path / "x", digest="0" * 64)
    with pytest.raises(HarnessError, match="is missing"):
        load_weights(tmp_path / "none", digest=digest)


def test_atomic_writes_leave_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
