"""The tokenising stage on image files: shards, processes, kills, damage; the bytes are always the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmark import encoding, fitting, tokenise
from benchmark.checkpoint import clear_checkpoints
from benchmark.data import open_part
from benchmark.encoding import DamagedImages
from benchmark.layout import CHECKPOINTS_NAME, ENCODING_NAME, has_progress
from benchmark.peers import Peers
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext, StageResult
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Part
from tests.benchmark.imagenet_folder import COUNT, imagenet_protocol, make_imagenet
from tests.tokenizers.reference_weights import VQKD_SIZES, build, random_reference
from tokenizers.shards import Shards
from tokenizers.store import open_store

K_PIXEL = """\
  k-pixel:
    image_size: {value: 28, source: test}
    patch_size: {value: 7, source: test}
    codebook_size: {value: 16, source: test}
    iterations: {value: 3, source: test}
    max_points_per_centroid: {value: 64, source: test}
"""
SHARD = 10  # 48 images: four shards and a shorter one


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenizers.shards.SHARD_IMAGES", SHARD)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_imagenet(tmp_path / "data")
    return tmp_path


def context_of(
    root: Path, work_dir: str = "runs", *, tokenizers: str = K_PIXEL, **changed: Any
) -> CellContext:
    """The tokenising cell of the pre-training images."""
    protocol = load_protocol(str(imagenet_protocol(root, tokenizers=tokenizers)))
    cells = [cell for cell in make_plan(protocol, select(protocol)) if cell.stage == "tokenise"]
    context = CellContext(
        cell=cells[0],
        protocol=protocol,
        runtime=Runtime(device="cpu", jobs=1, threads=1),
        work_dir=root / work_dir,
        data_root=root / "data",
    )
    context.folder.mkdir(parents=True, exist_ok=True)
    return replace(context, **changed)


def recorded(context: CellContext, result: StageResult) -> StageResult:
    write_cell_record(
        context.cell, context.protocol, context.runtime, context.work_dir, status="done", result=result
    )
    clear_checkpoints(context.folder / CHECKPOINTS_NAME)
    return result


def stored(root: Path, work_dir: str = "runs") -> dict[str, bytes]:
    """Every file under the token folder."""
    tokens = root / work_dir / "tokens"
    return {
        str(path.relative_to(tokens)): path.read_bytes()
        for path in sorted(tokens.rglob("*"))
        if path.is_file()
    }


def shard_files(context: CellContext) -> list[Path]:
    return sorted((context.folder / CHECKPOINTS_NAME / ENCODING_NAME).glob("tokens/*.npy"))


@pytest.fixture
def unspooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit and encode in two passes, as sets do whose features would take too much disk."""
    monkeypatch.setattr(fitting, "MOST_SPOOLED_BYTES", 0)


def test_ids_are_the_tokenizers_own_and_found_by_image_id(root: Path) -> None:
    recorded(context_of(root), tokenise.run(context := context_of(root)))
    (manifest,) = (root / "runs" / "tokens").rglob("manifest.json")
    store = open_store(manifest.parent)
    images = open_part(
        "imagenet-1k", "pretraining", Part(split="train", count=COUNT), data_root=root / "data"
    )
    from tokenizers import build_tokenizer

    tokenizer = build_tokenizer("k-pixel", **dict(context.cell.hyperparameters))
    tokenizer.load(manifest.parent.parent)
    chosen = [40, 0, 17]
    pixels = torch.stack([tokenizer.transform(images.image(position)) for position in chosen])
    tokens = store.tokens(store.rows([images.image_ids[position] for position in chosen]))
    assert np.array_equal(tokens, tokenizer.encode(pixels).numpy())
    assert store.labels(store.rows(images.image_ids)).tolist() == images.labels.tolist()
    assert len(np.unique(store.tokens(range(COUNT)))) > 8


def test_one_pass_and_two_give_the_same_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenise.run(context_of(root, "one"))
    monkeypatch.setattr(fitting, "MOST_SPOOLED_BYTES", 0)
    tokenise.run(context_of(root, "two"))
    assert stored(root, "one") == stored(root, "two")


def together(root: Path, work_dir: str, processes: int, *, tokenizers: str = K_PIXEL) -> dict[int, Exception]:
    """Run the cell in as many threads, each a process to the stage; what each of them raised."""
    store, raised = dist.HashStore(), dict[int, Exception]()
    contexts = [
        context_of(
            root,
            work_dir,
            tokenizers=tokenizers,
            peers=Peers(rank, processes, store),
            runtime=Runtime(device="cpu", jobs=1, threads=1, processes=processes),
        )
        for rank in range(processes)
    ]

    def work(rank: int) -> None:
        try:
            (tokenise.assist if rank else tokenise.run)(contexts[rank])
        except Exception as error:
            raised[rank] = error
            contexts[rank].peers.end()

    threads = [
        threading.Thread(target=work, args=(rank,), name=str(rank), daemon=True) for rank in range(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return raised


def damage(root: Path, *positions: int) -> dict[Path, bytes]:
    """Cut the files at these positions of the training order in half; their old bytes."""
    part = Part(split="train", count=COUNT)
    images = open_part("imagenet-1k", "pretraining", part, data_root=root / "data")
    paths = [root / "data" / "imagenet-1k" / images.image_ids[position] for position in positions]
    before = {path: path.read_bytes() for path in paths}
    for path, content in before.items():
        path.write_bytes(content[: len(content) // 2])
    return before


def test_damaged_files_are_all_named_at_the_end_and_no_store_is_made(root: Path, unspooled: None) -> None:
    tokenise.run(context_of(root, "whole"))
    expected = stored(root, "whole")
    before = damage(root, 12, 13, 47)
    names = [str(path.relative_to(root / "data" / "imagenet-1k")) for path in before]
    context = context_of(root)
    with pytest.raises(DamagedImages, match="3 of 48 images cannot be read: ") as caught:
        tokenise.run(context)
    assert all(name in str(caught.value) for name in names)
    listing = context.folder / "damaged.txt"
    lines = [line.split("\t") for line in listing.read_text().splitlines()]
    assert [name for name, _ in lines] == sorted(names)
    assert all(reason for _, reason in lines)
    assert str(listing) in str(caught.value)
    assert not (root / "runs" / "tokens").exists()
    for path, content in before.items():
        path.write_bytes(content)
    tokenise.run(context_of(root))
    assert stored(root) == expected
    assert not listing.exists()


def test_ids_of_the_undamaged_shards_are_kept_and_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights need no fit: damage is met while encoding, and only its shard stays open."""
    weights = write_vqkd(root)
    tokenise.run(context_of(root, "whole", tokenizers=weights))
    expected = stored(root, "whole")
    (before,) = (path for path in damage_keeping_sizes(root, 12).items())
    context = context_of(root, tokenizers=weights)
    with pytest.raises(DamagedImages, match="1 of 48 images"):
        tokenise.run(context)
    kept = {path: (path.stat().st_ino, path.read_bytes()) for path in shard_files(context)}
    assert [path.name for path in kept] == ["00000.npy", "00002.npy", "00003.npy", "00004.npy"]
    (manifest,) = (root / "whole" / "tokens").rglob("manifest.json")
    whole = open_store(manifest.parent).tokens(range(COUNT))
    for path in kept:
        shard = int(path.stem)
        assert np.array_equal(np.load(path), whole[shard * SHARD : (shard + 1) * SHARD])
    path, content = before
    path.write_bytes(content)
    inodes = []
    monkeypatch.setattr(tokenise, "_store", lambda work, started: inodes.extend(
        (path, path.stat().st_ino) for path in shard_files(context)
    ))  # fmt: skip
    tokenise.run(context_of(root, tokenizers=weights))
    assert len(inodes) == 5
    assert all(path not in kept or kept[path][0] == inode for path, inode in inodes)
    monkeypatch.undo()
    monkeypatch.setattr("tokenizers.shards.SHARD_IMAGES", SHARD)
    tokenise.run(context_of(root, tokenizers=weights))
    assert stored(root) == expected


def damage_keeping_sizes(root: Path, position: int) -> dict[Path, bytes]:
    """Zero the second half of a file: the same size, and an image that cannot be decoded whole."""
    part = Part(split="train", count=COUNT)
    images = open_part("imagenet-1k", "pretraining", part, data_root=root / "data")
    path = root / "data" / "imagenet-1k" / images.image_ids[position]
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    return {path: content}


def write_vqkd(root: Path) -> str:
    """A small VQ-KD file of random weights; the YAML that names it by its SHA-256."""
    import hashlib

    path = root / "data" / "tokenizers" / "own.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": random_reference(build("vq-kd"))}, path)
    weights = f"own@{hashlib.sha256(path.read_bytes()).hexdigest()}"
    values = {"weights": weights, **VQKD_SIZES}
    return "  vq-kd:\n" + "".join(
        f"    {name}: {{value: {value}, source: test}}\n" for name, value in values.items()
    )


@pytest.mark.parametrize(
    "moment", ["codebook/tokenizer.safetensors", "tokens/00002.npy", "tokens/done/00004.json"]
)
def test_killed_at_any_moment_the_same_bytes_come_out(root: Path, moment: str, unspooled: None) -> None:
    tokenise.run(context_of(root, "whole"))
    context = context_of(root)
    child = os.fork()
    if child == 0:
        try:
            tokenise.run(slowed(context))
        finally:
            os._exit(0)
    awaited = context.folder / CHECKPOINTS_NAME / ENCODING_NAME / moment
    deadline = time.monotonic() + 60
    while not awaited.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"
    assert awaited.exists()
    assert not (root / "runs" / "tokens").exists() or not list(
        (root / "runs" / "tokens").rglob("manifest.json")
    )
    tokenise.run(context_of(root))
    assert stored(root) == stored(root, "whole")


def slowed(context: CellContext) -> CellContext:
    """Every atomic write is followed by a pause in which a kill can come."""
    write = encoding.write_atomically

    def slow(path: Path, content: Any) -> None:
        write(path, content)
        time.sleep(0.15)

    encoding.write_atomically = slow
    import tokenizers.base
    import tokenizers.shards

    tokenizers.base.write_atomically = tokenizers.shards.write_atomically = slow
    return context


def test_work_of_other_images_is_dropped_and_altered_shards_are_made_again(
    root: Path, caplog: pytest.LogCaptureFixture, unspooled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_vqkd(root)
    context = context_of(root, tokenizers=weights)
    monkeypatch.setattr(tokenise, "_store", lambda work, started: None)
    tokenise.run(context)
    assert has_progress(context.folder)
    first = {path.name: path.read_bytes() for path in shard_files(context)}
    altered = shard_files(context)[1]
    altered.write_bytes(altered.read_bytes()[:-1] + b"\1")
    tokenise.run(context_of(root, tokenizers=weights))
    assert {path.name: path.read_bytes() for path in shard_files(context)} == first
    extra = root / "data" / "imagenet-1k" / "train" / "n01440764" / "a.JPEG"
    extra.write_bytes((extra.parent / "n01440764_0.JPEG").read_bytes())
    with caplog.at_level("INFO"):
        tokenise.run(context_of(root, tokenizers=weights))
    assert "unfinished work of another kind is dropped" in caplog.text
    assert {path.name: path.read_bytes() for path in shard_files(context)} != first


def test_a_part_is_encoded_with_the_parents_tokenizer(root: Path) -> None:
    make_imagenet(root / "data", split="val", seed=5)
    context = context_of(root)
    fitted = recorded(context, tokenise.run(context))
    parts = Cell(
        stage="tokenise", part="test", tokenizer="k-pixel", slices=context.cell.slices,
        hyperparameters=context.cell.hyperparameters, parents=(context.cell.id,),
    )  # fmt: skip
    protocol = context.protocol.model_copy(
        update={"data": context.protocol.data.model_copy(update={"test": Part(split="test", count=30)})}
    )
    result = tokenise.run(replace(context, cell=parts, protocol=protocol))
    assert result.tokenizer is not None
    assert fitted.tokenizer is not None
    assert result.tokenizer.digest == fitted.tokenizer.digest
    assert len(result.data) == 30
    weights = next(path for path in fitted.artefacts if path.endswith("tokenizer.safetensors"))
    (root / "runs" / weights).write_bytes(b"other")
    with pytest.raises(HarnessError, match="is not the one that was recorded"):
        tokenise.run(replace(context, cell=parts, protocol=protocol))


@pytest.fixture(autouse=True)
def _quiet_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_a_damaged_codebook_is_fitted_again_and_leftovers_of_a_kill_go(
    root: Path, unspooled: None, caplog: pytest.LogCaptureFixture
) -> None:
    tokenise.run(context_of(root, "whole"))
    context = context_of(root)
    path = tokenise.fit(context)
    path.write_bytes(path.read_bytes()[:-3])
    (store,) = [file.parent for file in (root / "whole" / "tokens").rglob("manifest.json")]
    beside = root / "runs" / store.parent.relative_to(root / "whole")
    left = beside / f"..{store.name}.{context.cell.id}.unfinished-0123"
    left.mkdir(parents=True)
    (left / "tokens.npy").write_bytes(b"x")
    tokenise.run(context_of(root))
    assert "fitted again" in caplog.text
    assert stored(root) == stored(root, "whole")
    assert not left.exists()


def test_markers_of_other_work_do_not_count(root: Path, tmp_path: Path) -> None:
    """A process of an earlier run may write its last shard after the folder was begun anew."""
    old = Shards(tmp_path / "work", images=30, identity={"code": "old"})
    new = Shards(tmp_path / "work", images=30, identity={"code": "new"})
    old.prepare()
    new.prepare()
    old.mark_done(1)
    new.mark_done(2)
    assert new.open_shards() == [0, 1]


def test_a_grid_that_fits_no_trunk_is_refused_before_an_image_is_read(root: Path) -> None:
    finer = K_PIXEL.replace("patch_size: {value: 7", "patch_size: {value: 4")
    damage(root, 0)
    with pytest.raises(HarnessError, match=r"gives 49 tokens an image, and no trunk .*\(vit-tiny-test: 16\)"):
        tokenise.run(context_of(root, tokenizers=finer))
