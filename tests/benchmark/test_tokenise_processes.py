"""Several processes at one tokenising cell: the same bytes, damage told once, and nobody waits in vain."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from benchmark import encoding, tokenise
from benchmark.encoding import DamagedImages
from benchmark.peers import CellEnded, Peers
from benchmark.stage import CellContext
from protocols.errors import HarnessError
from tests.benchmark.imagenet_folder import make_imagenet
from tests.benchmark.test_tokenise_shards import (
    SHARD,
    context_of,
    damage_keeping_sizes,
    shard_files,
    stored,
    together,
    write_vqkd,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tokenizers.shards.SHARD_IMAGES", SHARD)
    make_imagenet(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(
    root: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenise.run(context_of(root, "alone"))
    written: dict[int, set[int]] = {rank: set() for rank in range(processes)}
    write = encoding.TokenShards.write

    def watched(self: Any, shard: int, *args: Any, **kwargs: Any) -> None:
        written[int(threading.current_thread().name)].add(shard)
        write(self, shard, *args, **kwargs)

    monkeypatch.setattr(encoding.TokenShards, "write", watched)
    assert not together(root, "many", processes)
    assert stored(root, "alone") == stored(root, "many")
    assert written == {rank: set(range(rank, 5, processes)) for rank in range(processes)}


def test_every_process_hears_of_damage_that_another_met(root: Path) -> None:
    weights = write_vqkd(root)
    damage_keeping_sizes(root, 12)  # of shard 1, which is the second process's
    ((rank, error),) = together(root, "runs", 2, tokenizers=weights).items()
    assert rank == 0  # whose record says so
    assert isinstance(error, DamagedImages)
    assert "1 of 48 images cannot be read: train/n01440764/" in str(error)


def test_peers_meet_pass_texts_and_learn_of_failure_and_end() -> None:
    store = dist.HashStore()
    first, second = (Peers(rank, 2, store).of_cell("cell") for rank in range(2))
    assert not second.has_begun()
    first.begin()
    assert second.has_begun()
    second.store.set("names/1", '["b"]')
    assert first.gather("names", ["a"]) == ["a", "b"]
    second.fail("out of memory")
    with pytest.raises(HarnessError, match="another process of this cell failed: rank 1: out of memory"):
        first.wait_for_all("never")
    other = [Peers(rank, 2, store).of_cell("other") for rank in range(2)]
    other[0].end()
    with pytest.raises(CellEnded):
        other[1].wait_for_all("never")
    assert Peers().gather("alone", ["a"]) == ["a"]


def test_processes_that_want_other_bytes_do_not_work_together(root: Path) -> None:
    store = dist.HashStore()
    sources = {**context_of(root).sources, "tokenizer:k-pixel": "0" * 64}
    first, second = (context_of(root, peers=Peers(rank, 2, store)) for rank in range(2))
    raised: list[BaseException] = []

    def work(context: CellContext) -> None:
        try:
            tokenise.fit(context)
        except Exception as error:
            raised.append(error)
            context.peers.fail(str(error))

    contexts = (first, replace(second, sources=sources))
    threads = [threading.Thread(target=work, args=(context,), daemon=True) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert "is prepared by a process with other code, images, device or libraries" in str(raised[0])
    assert "another process of this cell failed: rank 1:" in str(raised[1])


def test_a_process_whose_cell_has_ended_stops_at_its_next_shard(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_vqkd(root)
    context = context_of(root, tokenizers=weights, peers=Peers(0, 1, dist.HashStore()))
    write = encoding.TokenShards.write

    def ending(self: Any, shard: int, *args: Any, **options: Any) -> None:
        write(self, shard, *args, **options)
        context.peers.end()

    monkeypatch.setattr(encoding.TokenShards, "write", ending)
    with pytest.raises(CellEnded):
        tokenise.run(context)
    assert [path.name for path in shard_files(context)] == ["00000.npy"]
