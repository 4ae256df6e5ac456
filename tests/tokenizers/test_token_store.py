"""The token store: what is written comes back by image id, and nothing damaged or unfinished is read."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tests.tokenizers.made_stores import StandIn, made_tokens, write_made
from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer
from tokenizers.card import tokenizer_card
from tokenizers.store import FILE_NAMES, MANIFEST_NAME, open_store, write_store, write_tokens

IDS = [f"train/{index:03d}.png" for index in range(20)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer(images: Tensor) -> Tokenizer:
    built = build_tokenizer("k-pixel", image_size=8, patch_size=4, codebook_size=8, iterations=3)
    built.fit([images])
    return built


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer, images: Tensor) -> Path:
    path = tmp_path / "stores" / "tiny"
    write(path, tokenizer, [images[:13], images[13:]])
    return path


def write(path: Path, tokenizer: Tokenizer, batches: list[Tensor] | Iterator[Tensor]) -> None:
    write_store(path, tokenizer=tokenizer, data_name="tiny", data_digest="d1", image_ids=IDS, images=batches)


def write_ids(path: Path, tokenizer: Tokenizer, tokens: Tensor, image_ids: list[str]) -> None:
    write_tokens(
        path, tokenizer=tokenizer, data_name="t", data_digest="d", image_ids=image_ids, tokens=[tokens]
    )


def test_tokens_come_back_by_image_id(folder: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    store = open_store(folder)
    rows = store.rows([IDS[17], IDS[2], IDS[17]])
    assert rows.tolist() == [17, 2, 17]
    tokens = store.tokens(rows)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, tokenizer.encode(images)[[17, 2, 17]].numpy())
    assert (store.codebook_size, store.grid, len(store)) == (8, 2, 20)
    stated = store.manifest.tokenizer
    assert (stated.name, stated.digest) == ("k-pixel", tokenizer.digest)
    assert (stated.config, stated.teacher) == (tokenizer.config, "none (pixels)")
    assert store.manifest.card == tokenizer_card(tokenizer.encode(images).numpy(), 8)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny"]


def test_an_unknown_image_id_is_named(folder: Path) -> None:
    with pytest.raises(HarnessError, match=r"holds no image 'val/7\.png'"):
        open_store(folder).rows([IDS[0], "val/7.png"])


def test_equal_stores_have_equal_bytes(folder: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    again = folder.parent / "again"
    write(again, tokenizer, list(images.split(3)))
    assert {path.name for path in again.iterdir()} == {*FILE_NAMES, MANIFEST_NAME}
    for name in (*FILE_NAMES, MANIFEST_NAME):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert open_store(again).digest == open_store(folder).digest


def test_the_bytes_follow_tokens_ids_labels_and_data_alone(tmp_path: Path) -> None:
    ids, tokens = ["a", "b", "c"], np.arange(12).reshape(3, 4)
    write_made(tmp_path / "first", ids, tokens=[tokens], labels=[0, 1, -1])
    write_made(
        tmp_path / "second", tuple(ids), tokens=list(tokens.reshape(3, 1, 4)), labels=np.array([0, 1, -1])
    )
    for name in (*FILE_NAMES, MANIFEST_NAME):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    digests = {open_store(tmp_path / "first").digest}
    for number, (other_ids, other_tokens, labels, data) in enumerate(
        (
            (["a", "c", "b"], tokens, [0, 1, -1], "made"),
            (ids, tokens + 1, [0, 1, -1], "made"),
            (ids, tokens, [0, 1, 2], "made"),
            (ids, tokens, [0, 1, -1], "other"),
        )
    ):
        folder = tmp_path / str(number)
        write_made(folder, other_ids, tokens=[other_tokens], labels=labels, data_name=data)
        digests.add(open_store(folder).digest)
    assert len(digests) == 5


def test_labels_come_back_by_image_id(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    assert store.labels(np.arange(20)).tolist() == [-1] * 20, "nobody gave any"
    write_made(tmp_path / "labelled", ["x", "y", "z"], labels=np.array([7, -1, 65536], dtype=np.int32))
    store = open_store(tmp_path / "labelled")
    labels = store.labels(store.rows(["z", "x", "z"]))
    assert (labels.tolist(), labels.dtype) == ([65536, 7, 65536], np.int64)
    assert store.labels([1]).tolist() == [-1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels are int64 \(2,\); give one integer for each of 3 images, -1"),
        ([[0], [1], [2]], r"labels are int64 \(3, 1\)"),
        ([0.0, 1.0, 2.0], r"labels are float64 \(3,\)"),
        ([0, -2, 1], "labels run from -2 to 1: a label is 0 or more, -1 where it is unknown"),
        (np.array([0, 2**63, 1], dtype=np.uint64), "from 0 to 9223372036854775808: .* of at most 63 bits"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_encoded(
    tmp_path: Path, labels: list[int], message: str
) -> None:
    def encoded() -> Iterator[np.ndarray]:
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(HarnessError, match=message):
        write_made(tmp_path / "s", ["a", "b", "c"], labels=labels, tokens=encoded())
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_sent_a_name_and_no_tokens(tmp_path: Path) -> None:
    write_made(tmp_path / "s", [f"{row}.png" for row in range(5000)])
    store = open_store(tmp_path / "s")
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert received.image_id(4999) == "4999.png"
    np.testing.assert_array_equal(received.tokens([3, 4999]), store.tokens([3, 4999]))
    shutil.rmtree(tmp_path / "s")
    write_made(tmp_path / "s", ["a"])
    with pytest.raises(HarnessError, match="was replaced by another store while it was in use"):
        pickle.loads(sent)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, ">u2"])
def test_arrays_and_tensors_of_any_integers_give_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    # More rows than are written together, in an order of memory that is not the file's.
    tokens = np.concatenate(list(made_tokens(5000, patches=4, codes=65536)))
    assert tokens.max() > 2**15
    ids = [f"{row}.png" for row in range(5000)]
    by = StandIn(codebook_size=65536)
    write_made(tmp_path / "array", ids, tokenizer=by, tokens=[np.asfortranarray(tokens.astype(dtype))])
    write_made(
        tmp_path / "tensor", ids, tokenizer=by, tokens=torch.from_numpy(tokens.astype(np.int64)).split(700)
    )  # type: ignore[arg-type]
    store = open_store(tmp_path / "array")
    np.testing.assert_array_equal(store.tokens(np.arange(5000)), tokens)
    assert store.digest == open_store(tmp_path / "tensor").digest
    assert store.manifest.card == tokenizer_card(tokens, 65536)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    def interrupted() -> Iterator[Tensor]:
        yield images[:5]
        (unfinished,) = tmp_path.iterdir()
        with pytest.raises(HarnessError, match="not a finished token store"):
            open_store(unfinished)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tiny", tokenizer, interrupted())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HarnessError, match="not a finished token store"):
        open_store(tmp_path / "tiny")


@pytest.mark.parametrize("count", [19, 21])
def test_a_wrong_count_is_refused(tmp_path: Path, tokenizer: Tokenizer, images: Tensor, count: int) -> None:
    given = torch.cat([images, images])[:count]
    with pytest.raises(HarnessError, match=rf"20 image ids were given, but tokens of .*{count} images"):
        write(tmp_path / "tiny", tokenizer, [given])
    assert list(tmp_path.iterdir()) == []


def test_wrong_tokens_and_ids_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tiny"
    good = torch.zeros(2, 4, dtype=torch.int64)
    for tokens, image_ids, message in (
        (good + 8, ["a", "b"], "ids from 8 to 8, outside its codebook of 8"),
        (good - 1, ["a", "b"], "ids from -1 to -1"),
        (good[:, :3], ["a", "b"], r"not integers \(B, 4\)"),
        (good.float(), ["a", "b"], "gave float32 tokens"),
        (good, ["a", "a"], "image id 'a' is given twice"),
        (good, ["a", "b\n"], r"image id 'b\\n' is empty or longer"),
        (good, [], "at least one image id"),
        (good, ["a", "b\udcff.png"], "is no valid text"),
    ):
        with pytest.raises(HarnessError, match=message):
            write_ids(path, tokenizer, tokens, image_ids)
    assert list(tmp_path.iterdir()) == []


def test_a_codebook_beyond_16_bits_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "codebook_size", 65537)
    with pytest.raises(HarnessError, match=r"65537 codes; .* at most 65536"):
        write_ids(tmp_path / "tiny", tokenizer, torch.zeros(1, 4, dtype=torch.int64), ["a"])


def test_a_finished_store_is_never_overwritten(folder: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    before = open_store(folder).digest
    with pytest.raises(HarnessError, match="exists already"):
        write(folder, tokenizer, [images])
    assert open_store(folder).digest == before


def test_the_card_of_hand_made_tokens() -> None:
    tokens = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=np.uint16)
    card = tokenizer_card(tokens, 200)
    assert card["used_share"] == pytest.approx(2 / 200)
    assert card["dead_codes"] == 198
    assert card["perplexity"] == pytest.approx(2.0)
    assert card["commonest_1_percent"] == pytest.approx(1.0)
    card = tokenizer_card(np.array([3, 3, 3, 0, 1, 2, 2, 0]), 5)
    assert card["commonest_1_percent"] == pytest.approx(3 / 8)
    assert card["dead_codes"] == 1
    assert card["patches"] == 8


def test_the_card_refuses_ids_outside_the_codebook() -> None:
    with pytest.raises(HarnessError, match="from 0 to 4, outside the codebook of 4"):
        tokenizer_card(np.array([0, 4]), 4)
    with pytest.raises(HarnessError, match="at least one token"):
        tokenizer_card(np.array([], dtype=np.uint16), 4)
