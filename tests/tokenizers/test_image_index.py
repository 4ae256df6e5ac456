"""Image ids of a store: found exactly, whatever their text, their hashes and the order of asking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protocols.errors import HarnessError
from tests.tokenizers.made_stores import MadeIds, write_made
from tokenizers import image_index
from tokenizers.image_index import INDEX_NAME, OFFSETS_NAME
from tokenizers.store import TokenStore, open_store

# What `printf %s ID | b2sum -l 64` says.
B2SUM = {
    "train/n01440764/n01440764_6.JPEG": "3e39cb842048d5c0",
    "train/n01440764/n01440764_43.JPEG": "ca61364c27eea2d3",
}


def opened(folder: Path, image_ids: list[str]) -> TokenStore:
    write_made(folder, image_ids)
    return open_store(folder)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are handled by sevens, so that a few hundred make many blocks."""
    monkeypatch.setattr(image_index, "_BLOCK", 7)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("count", [1, 6, 7, 8, 300])
def test_every_id_is_found_in_any_order(tmp_path: Path, count: int) -> None:
    ids = list(MadeIds(count))
    store = opened(tmp_path / "s", ids)
    assert store.rows(ids).tolist() == list(range(count))
    assert store.rows(iter(ids[::-1])).tolist() == list(range(count))[::-1]
    order = np.random.default_rng(1).integers(count, size=2 * count)
    rows = store.rows([ids[row] for row in order])
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, order)
    without_some = [row for row in range(count) if row % 5 != 3]
    assert store.rows([ids[row] for row in without_some]).tolist() == without_some
    assert store.rows([]).shape == (0,)


@pytest.mark.usefixtures("_small_blocks")
def test_the_first_unknown_id_is_named(tmp_path: Path) -> None:
    ids = list(MadeIds(50))
    store = opened(tmp_path / "s", ids)
    for unknown in (
        "val/7.png",
        "",
        ids[3] + "\n",
        f"{ids[3]}\n{ids[4]}",
        ids[3][:-1],
        ids[3] + "x",
        "\udcff",
    ):
        with pytest.raises(HarnessError) as caught:
            store.rows([*ids[:30], unknown, *ids[30:], "later"])
        assert f"the token store of made by stand-in holds no image {unknown!r}; " in str(caught.value)
        assert unknown not in store.image_ids
    with pytest.raises(HarnessError, match="holds no image"):
        store.rows([*ids, ids[0] + "0"])


def test_image_ids_are_a_sequence_that_is_read_when_asked(tmp_path: Path) -> None:
    ids = list(MadeIds(300))
    store = opened(tmp_path / "s", ids)
    assert len(store.image_ids) == len(store) == 300
    assert list(store.image_ids) == ids
    assert (store.image_ids[0], store.image_ids[299], store.image_ids[-1]) == (ids[0], ids[299], ids[-1])
    assert store.image_id(17) == ids[17]
    for part in (slice(None), slice(10, 20), slice(290, 999), slice(5, 5), slice(None, None, -7)):
        assert store.image_ids[part] == ids[part]
    assert ids[123] in store.image_ids
    assert 123 not in store.image_ids
    for outside in (300, -301):
        with pytest.raises(IndexError):
            store.image_id(outside)


def test_ids_of_any_script_are_found(tmp_path: Path) -> None:
    ids = [
        "Straße/ä.png",
        "猫/犬.jpg",
        "🙂 a b.png",
        "a\u0301",
        "á",
        " ",
        "x" * 5000,
        "-1",
        "\x00",
        "naïve\ttab",
    ]
    store = opened(tmp_path / "s", ids)
    assert list(store.image_ids) == ids
    for order in (ids, ids[::-1]):
        assert [store.image_id(row) for row in store.rows(order)] == order
    assert (tmp_path / "s" / "image_ids.txt").read_bytes().decode() == "".join(f"{one}\n" for one in ids)


@pytest.mark.parametrize("hashes", [1, 2, 3])
def test_ids_of_equal_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: int
) -> None:
    monkeypatch.setattr(image_index, "_hash", lambda text: (len(text) % hashes).to_bytes(8, "little"))
    ids = ["a", "bb", "ccc", "dd", "e", "ff", "ggg"] + [f"{row:03d}" for row in range(40)]
    store = opened(tmp_path / "s", ids)
    index = np.load(tmp_path / "s" / INDEX_NAME)
    assert len(set(index[0].tolist())) == hashes, "the hashes do collide"
    assert store.rows(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    for unknown in ("b", "zz", "hhh", "999", "aaaa"):
        with pytest.raises(HarnessError, match=f"holds no image '{unknown}'"):
            store.rows([ids[0], unknown])
    with pytest.raises(HarnessError, match="image id 'bb' is given twice"):
        write_made(tmp_path / "twice", [*ids, "bb"])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("first", [0, 3, 6, 7, 40])
@pytest.mark.parametrize("again", [41, 55, 98])
def test_an_id_given_twice_is_refused_wherever_it_stands(tmp_path: Path, first: int, again: int) -> None:
    ids = list(MadeIds(99))
    ids[again] = ids[first]
    with pytest.raises(HarnessError, match=f"image id '{ids[first]}' is given twice; ids must be distinct"):
        write_made(tmp_path / "s", ids)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["", "a\n", "a\nb", "a\r", "a\u2028b", "\n"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_id_that_is_no_line_is_refused(tmp_path: Path, fault: str, position: int) -> None:
    ids = ["p", "q"]
    ids.insert(position, fault)
    with pytest.raises(HarnessError) as caught:
        write_made(tmp_path / "s", ids)
    assert f"image id {fault!r} is empty or longer than a line" in str(caught.value)


def test_the_index_is_what_its_description_says(tmp_path: Path) -> None:
    ids = list(MadeIds(30))
    store = opened(tmp_path / "s", ids)
    hashes, rows = np.load(tmp_path / "s" / INDEX_NAME)
    offsets = np.load(tmp_path / "s" / OFFSETS_NAME)
    assert hashes.dtype == offsets.dtype == np.dtype("<u8")
    assert (np.diff(hashes.astype(object)) > 0).all()
    assert sorted(rows.tolist()) == list(range(30))
    text = (tmp_path / "s" / "image_ids.txt").read_bytes()
    assert [
        text[start:stop].decode() for start, stop in zip(offsets[:-1], offsets[1:] - 1, strict=True)
    ] == ids
    of_row = dict(zip(rows.tolist(), hashes.tolist(), strict=True))
    for image_id, hexadecimal in B2SUM.items():
        row = ids.index(image_id)
        assert of_row[row] == int.from_bytes(bytes.fromhex(hexadecimal), "little")
        assert store.rows([image_id]).tolist() == [row]
