"""The token store: what is written comes back by image id, and nothing damaged or unfinished is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer
from tokenizers.card import tokenizer_card
from tokenizers.store import IDS_NAME, MANIFEST_NAME, TOKENS_NAME, open_store, write_store, write_tokens

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
    for name in (TOKENS_NAME, IDS_NAME, MANIFEST_NAME):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert open_store(again).digest == open_store(folder).digest


def cut_short(folder: Path) -> None:
    path = folder / TOKENS_NAME
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_bit(folder: Path) -> None:
    path = folder / TOKENS_NAME
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def swap_ids(folder: Path) -> None:
    path = folder / IDS_NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")


def edit_codebook(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["tokenizer"]["codebook_size"] = 9
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def add_a_field(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest | {"note": "mine"}))


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def lose_the_ids(folder: Path) -> None:
    (folder / IDS_NAME).unlink()


HEX = "[0-9a-f]{64}"


@pytest.mark.parametrize(
    ("damage", "message", "seen_unverified"),
    [
        (cut_short, "tokens.npy: damaged or cut short", True),
        (flip_a_bit, f"SHA-256 is {HEX}, the manifest states {HEX}", False),
        (swap_ids, f"image_ids.txt: its SHA-256 is {HEX}, the manifest states {HEX}", True),
        (edit_codebook, f"manifest.json: its digest is {HEX}, the manifest states {HEX}", True),
        (add_a_field, "note: Extra inputs are not permitted", True),
        (lose_the_manifest, "not a finished token store", True),
        (lose_the_ids, "image_ids.txt: missing", True),
    ],
)
def test_damage_is_detected(
    folder: Path, damage: Callable[[Path], None], message: str, seen_unverified: bool
) -> None:
    open_store(folder)
    damage(folder)
    with pytest.raises(HarnessError, match=message):
        open_store(folder)
    if seen_unverified:
        with pytest.raises(HarnessError, match=message):
            open_store(folder, verify=False)
    else:
        open_store(folder, verify=False)


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
