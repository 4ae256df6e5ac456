"""Every file that is read again, damaged in every way: an error that names it and the remedy, or what was
there before it, or the very same content. Never a traceback, and never something else."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from benchmark.checkpoint import load_newest, load_weights, save_checkpoint, save_weights
from benchmark.encoding import TokenShards
from benchmark.kept_features import _read, _write
from benchmark.metrics import newest_metrics
from benchmark.record_cell import note_attempt, read_attempts
from benchmark.step_costs import read_kept, write_kept
from benchmark.survey import changed_since_begun
from leaderboard.predictions import read_predictions
from leaderboard.record import PREDICTIONS_NAME, RECORD_NAME, read_record
from protocols.errors import HarnessError
from protocols.files import append_line, write_atomically
from tests.benchmark.made_records import Lab
from tests.tokenizers.made_stores import MadeIds, write_made
from tokenizers import build_tokenizer
from tokenizers.shards import Shards
from tokenizers.store import FILE_NAMES, MANIFEST_NAME, open_store

SEED = 8
WEIGHTS = {"weight": torch.arange(300.0)}
LINE = {"step": 1, "steps": 9, "seconds": 1.0, "images_per_second": 2.0, "loss": 3.0}


def damages(size: int) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """What may become of the content of a file of that size, by name."""
    draw = random.Random(SEED)
    noise, tail = draw.randbytes(size), draw.randbytes(7)
    yield "empty", lambda content: b""
    yield "cut in its header", lambda content: content[: min(10, size // 2)]
    yield "cut in the middle", lambda content: content[: size // 2]
    yield "without its last byte", lambda content: content[:-1]
    yield "garbage", lambda content: noise
    yield "a longer tail", lambda content: content + tail
    for at in sorted({0, 5, size // 2, size - 1, *(draw.randrange(size) for _ in range(12))}):
        mask = (1 << 8 * (size - 1 - at)) << draw.randrange(8)
        yield (
            f"a flipped bit in byte {at} of {size}",
            lambda content, mask=mask: (int.from_bytes(content) ^ mask).to_bytes(size),
        )


def damaged(whole: Path, path: Path, copy: Path) -> Iterator[str]:
    """A copy of the folder `whole` for each damage to its file `path`; gives the damage's name."""
    place = copy / path.relative_to(whole)
    for name, change in damages(path.stat().st_size):
        shutil.copytree(whole, copy)
        place.write_bytes(change(path.read_bytes()))
        yield name
        shutil.rmtree(copy)
    for name in ("gone", "a dangling link", "a folder"):
        shutil.copytree(whole, copy)
        place.unlink()
        if name == "a dangling link":
            place.symlink_to("nowhere")
        elif name == "a folder":
            place.mkdir()
        yield name
        shutil.rmtree(copy)


@dataclass(frozen=True)
class Subject:
    """`make` writes files into a folder and names the one to damage; `read` gives what the harness makes of
    it. `before` are contents that may stand for the damaged one; errors end in `remedy`."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    remedy: str = ""
    before: tuple[Any, ...] = ()


def two_checkpoints(name: str, *, steps: tuple[int, ...] = (10, 20)) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for step in steps:
            save_checkpoint(folder, step, {"weights": WEIGHTS})
        return folder / name

    return make


def step_of(folder: Path) -> Any:
    state = load_newest(folder)
    return None if state is None else state["step"]


def weights(folder: Path) -> Path:
    save_weights(folder / "cell" / "checkpoints" / "backbone.safetensors", WEIGHTS)
    return folder / "cell" / "checkpoints" / "backbone.safetensors"


def weights_read(folder: Path) -> Any:
    path = folder / "cell" / "checkpoints" / "backbone.safetensors"
    return load_weights(path, digest=hashlib.sha256(save(WEIGHTS)).hexdigest())["weight"].tolist()


def record(folder: Path) -> Path:
    lab = Lab(folder, methods=["mim"])
    return lab.folder("linear-probe") / RECORD_NAME


def cell_of(folder: Path) -> Path:
    (found,) = (folder / "tiny" / "cells").glob("linear-probe-*")
    return found


def predictions(folder: Path) -> Path:
    return record(folder).with_name(PREDICTIONS_NAME)


def predictions_read(folder: Path) -> Any:
    cell = cell_of(folder)
    known = read_record(cell)
    assert known is not None
    found = read_predictions(cell.parent, known)
    assert found is not None
    return found.predicted.tolist()


def file_of_store(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_made(folder / "store", MadeIds(30)[:20])
        return folder / "store" / name

    return make


def store_read(folder: Path) -> Any:
    store = open_store(folder / "store")
    return store.digest, store.tokens(range(20)).tolist(), list(store.image_ids)


def shards_of(folder: Path) -> TokenShards:
    return TokenShards(Shards(folder / "tokens", images=30, identity={"a": 1}, size=10), patches=4)


def file_of_shards(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tokens = shards_of(folder)
        tokens.shards.prepare()
        for shard in range(3):
            tokens.write(shard, np.full((10, 4), shard, dtype=np.uint16), seconds=1.0)
        return folder / "tokens" / name

    return make


def shards_read(folder: Path) -> Any:
    """As a run goes on: what is damaged is opened again, and all that is left is right."""
    tokens = shards_of(folder)
    if not tokens.shards.is_prepared():
        return "begun again"
    tokens.drop_damaged()
    still_open = tokens.shards.open_shards()
    if not still_open:
        return [int(rows.sum()) for rows in tokens.read()]
    return "encoded again", still_open


def pixel_tokenizer() -> Any:
    sizes = {"image_size": 4, "patch_size": 2, "codebook_size": 4, "max_points_per_centroid": 64}
    return build_tokenizer("k-pixel", **sizes, iterations=2, restarts=1, whitening_epsilon=0.01, seed=1)


def codebook(folder: Path) -> Path:
    tokenizer = pixel_tokenizer()
    tokenizer.fit([torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))])
    tokenizer.save(folder)
    return folder / "tokenizer.safetensors"


def codebook_read(folder: Path) -> Any:
    tokenizer = pixel_tokenizer()
    tokenizer.load(folder)
    return tokenizer.digest


def features(folder: Path) -> Path:
    _write(folder / "kept.safetensors", "identity", torch.arange(12.0).reshape(3, 4))
    return folder / "kept.safetensors"


def features_read(folder: Path) -> Any:
    found = _read(folder / "kept.safetensors", "identity")
    return None if found is None else found.tolist()


def begun(folder: Path) -> Path:
    save_checkpoint(folder / "checkpoints", 10, {})
    path = folder / "checkpoints" / "begun.json"
    write_atomically(path, json.dumps({"method:mim": "1" * 64}, indent=1) + "\n")
    return path


def begun_read(folder: Path) -> Any:
    """Whether a training goes on with the code that it was begun with, and with other code."""
    said = [changed_since_begun(folder, {"method:mim": digit * 64}) for digit in "12"]
    return ["goes on" if one is None else "refused" for one in said]


def metrics(folder: Path) -> Path:
    append_line(folder / "metrics.jsonl", json.dumps(LINE))
    return folder / "metrics.jsonl"


def attempts(folder: Path) -> Path:
    note_attempt(folder, event="start", pid="1")
    note_attempt(folder, event="interrupted")
    return folder / "attempts.jsonl"


def costs(folder: Path) -> Path:
    write_kept(folder / "step-costs.json", ())
    return folder / "step-costs.json"


NO_CHECKPOINT = "restore one, or delete the folder and run again with --redo-failed"
STORE = "delete the store and tokenise again"
CELL = "and run again"
OPENED = tuple(("encoded again", [shard]) for shard in range(3))
SUBJECTS = [
    Subject("a checkpoint", two_checkpoints("step-000000020.pt"), step_of, before=(10,)),
    Subject("its digest", two_checkpoints("step-000000020.sha256"), step_of, before=(10,)),
    Subject("the only checkpoint", two_checkpoints("step-000000010.pt", steps=(10,)), step_of, NO_CHECKPOINT),
    # Without its digest it was never finished.
    Subject(
        "the only digest",
        two_checkpoints("step-000000010.sha256", steps=(10,)),
        step_of,
        NO_CHECKPOINT,
        before=(None,),
    ),
    Subject("weights", weights, weights_read, "run again with --redo-failed"),
    # Without a record the cell is to do.
    Subject("a record", record, lambda folder: read_record(cell_of(folder)), CELL, before=(None,)),
    Subject("predictions", predictions, predictions_read, CELL),
    *(Subject(f"a store's {name}", file_of_store(name), store_read, STORE) for name in FILE_NAMES),
    Subject("a store's manifest", file_of_store(MANIFEST_NAME), store_read, "tokenise"),
    Subject("a shard", file_of_shards("00001.npy"), shards_read, before=OPENED[1:2]),
    Subject("a shard's mark", file_of_shards("done/00001.json"), shards_read, before=OPENED[1:2]),
    Subject("an encoding's identity", file_of_shards("identity.json"), shards_read, before=("begun again",)),
    Subject("a codebook", codebook, codebook_read, "fit"),
    Subject("kept features", features, features_read, before=(None,)),
    Subject("begun.json", begun, begun_read, before=(["refused", "refused"],)),
]
WATCHED = [
    (metrics, newest_metrics),
    (attempts, lambda folder: read_attempts(folder, ending="done")),
    (costs, lambda folder: read_kept(folder / "step-costs.json")),
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.name.replace(" ", "-"))
def test_damage_is_never_taken_for_the_whole(subject: Subject, tmp_path: Path) -> None:
    folder, copy = tmp_path / "whole", tmp_path / "copy"
    path = subject.make(folder)
    whole = subject.read(folder)
    faults = []
    for damage in damaged(folder, path, copy):
        try:
            found = subject.read(copy)
        except HarnessError as error:
            said = str(error)
            if not subject.remedy or subject.remedy not in said or path.stem not in said:
                faults.append(f"{damage}: {said}")
        except Exception as error:
            faults.append(f"{damage}: {type(error).__name__}: {error}")
        else:
            if found != whole and found not in subject.before:
                faults.append(f"{damage}: taken for {str(found)[:100]}")
    assert not faults


@pytest.mark.parametrize(("make", "read"), WATCHED, ids=["metrics", "attempts", "costs"])
def test_what_only_informs_is_read_or_passed_over(
    make: Callable[[Path], Path], read: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder, copy = tmp_path / "whole", tmp_path / "copy"
    folder.mkdir()
    path = make(folder)
    assert read(folder) is not None
    faults = []
    for damage in damaged(folder, path, copy):
        try:
            read(copy)
        except HarnessError as error:
            if path.name not in str(error) or "delete it" not in str(error):
                faults.append(f"{damage}: {error}")
        except Exception as error:
            faults.append(f"{damage}: {type(error).__name__}: {error}")
    assert not faults
