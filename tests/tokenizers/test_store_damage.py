"""Nothing damaged, swapped, edited or of another layout is opened as a token store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import HarnessError
from tests.tokenizers.made_stores import MadeIds, write_made
from tokenizers.store import (
    FILE_NAMES,
    IDS_NAME,
    INDEX_NAME,
    LABELS_NAME,
    MANIFEST_NAME,
    OFFSETS_NAME,
    TOKENS_NAME,
    TokenStore,
    open_store,
)

HEX = "[0-9a-f]{64}"
OTHER = "other"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store; beside it, under OTHER, one of as many other images, so that its files have equal sizes."""
    ids = MadeIds(1300)
    write_made(tmp_path / "store", ids[:20], labels=range(20))
    other = [image_id.replace("n014", "n015") for image_id in ids[:20]]
    write_made(tmp_path / OTHER, other, labels=range(1, 21), tokens=[np.arange(80).reshape(20, 4)])
    return tmp_path / "store"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def refused(folder: Path, message: str, *, unverified_too: bool) -> None:
    with pytest.raises(HarnessError, match=message):
        open_store(folder)
    if unverified_too:
        with pytest.raises(HarnessError, match=message):
            open_store(folder, verify=False)
    else:
        open_store(folder, verify=False)


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_flipped_bit_is_seen(folder: Path, name: str, share: float) -> None:
    path = folder / name
    flip(path, int(share * (path.stat().st_size - 1)))
    message = f"{name}: its SHA-256 is {HEX}, the manifest states {HEX}; delete the store and tokenise again"
    if name in (IDS_NAME,) or share == 1.0:
        refused(folder, message, unverified_too=False)
    else:
        with pytest.raises(HarnessError, match=message):
            open_store(folder)


@pytest.mark.parametrize("name", FILE_NAMES)
def test_another_stores_file_is_seen(folder: Path, name: str) -> None:
    other = folder.with_name(OTHER)
    if name == OFFSETS_NAME:  # ids of equal lengths have equal offsets
        np.save(other / name, np.load(other / name)[::-1])
    assert (other / name).stat().st_size == (folder / name).stat().st_size
    shutil.copy(other / name, folder / name)
    refused(folder, f"{name}: its SHA-256 is {HEX}, the manifest states {HEX}", unverified_too=False)


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("change", [-1, 1, -(10**9)])
def test_another_size_is_seen_without_reading(folder: Path, name: str, change: int) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content + b"\n" if change > 0 else content[: max(len(content) + change, 0)])
    message = f"{name}: damaged or cut short: it has {path.stat().st_size} bytes, the manifest states"
    refused(folder, message, unverified_too=True)


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_missing_file_is_seen(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name}: missing; delete the store and tokenise again", unverified_too=True)


@pytest.mark.parametrize("name", [name for name in FILE_NAMES if name != IDS_NAME])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(b"NUMPY", b"NUMPX", "damaged"), (b"'descr': '<", b"'descr': '>", "but the manifest says")],
)
def test_another_header_is_seen_without_reading(
    folder: Path, name: str, old: bytes, new: bytes, message: str
) -> None:
    content = (folder / name).read_bytes()
    assert content.count(old) == 1
    (folder / name).write_bytes(content.replace(old, new))
    with pytest.raises(HarnessError, match=f"{name}: .*{message}"):
        open_store(folder, verify=False)
    with pytest.raises(HarnessError, match=f"{name}: its SHA-256"):
        open_store(folder)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        change(manifest)
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest))

    return edit


OWN_DIGEST = f"manifest.json: its digest is {HEX}, the manifest states {HEX}"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited(lambda manifest: manifest["tokenizer"].update(codebook_size=9)), OWN_DIGEST),
        (edited(lambda manifest: manifest.update(images=19)), OWN_DIGEST),
        (edited(lambda manifest: manifest["files"][TOKENS_NAME].update(sha256="0" * 64)), OWN_DIGEST),
        (edited(lambda manifest: manifest["card"].update(dead_codes=0)), OWN_DIGEST),
        (edited(lambda manifest: manifest.update(note="mine")), "note: Extra inputs are not permitted"),
        (edited(lambda manifest: manifest["files"].pop(LABELS_NAME)), "files: .*must name .*labels.npy"),
        (
            edited(lambda manifest: manifest["files"].update(more=manifest["files"][IDS_NAME])),
            "files: .*more",
        ),
        (lambda folder: (folder / MANIFEST_NAME).unlink(), "not a finished token store: it has no manifest"),
        (lambda folder: (folder / MANIFEST_NAME).write_text(""), "manifest.json: .*Invalid JSON"),
        (lambda folder: (folder / MANIFEST_NAME).write_text("[]"), "manifest.json: "),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\xff"), "manifest.json: "),
        (
            lambda folder: (folder / MANIFEST_NAME).write_bytes(b" " * (2**20 + 1)),
            "is too large for a manifest",
        ),
        (lambda folder: shutil.copy(folder.with_name(OTHER) / MANIFEST_NAME, folder), None),
    ],
)
def test_a_damaged_manifest_is_seen(
    folder: Path, damage: Callable[[Path], None], message: str | None
) -> None:
    damage(folder)
    # Another store's manifest is whole, and of equal sizes here: only the other files' bytes tell.
    refused(folder, message or f"its SHA-256 is {HEX}", unverified_too=message is not None)


@pytest.mark.parametrize("version", [1, 3, "2"])
def test_another_layout_is_named(folder: Path, version: object) -> None:
    edited(lambda manifest: manifest.update(schema_version=version))(folder)
    message = f"schema_version {version!r}: another version of this harness .* delete the store and tokenise"
    refused(folder, message, unverified_too=True)


@pytest.mark.parametrize("name", [INDEX_NAME, OFFSETS_NAME])
def test_a_damaged_index_never_gives_a_wrong_row(folder: Path, name: str) -> None:
    """Unverified, a flipped bit of the index may lose an id, or be refused; it finds no other row."""
    ids = list(open_store(folder).image_ids)
    path = folder / name
    before = path.read_bytes()
    outcomes = set()
    for position in range(128, len(before), 3):  # behind the header
        flip(path, position)
        store = open_store(folder, verify=False)
        outcomes |= {outcome(store, image_id, row) for row, image_id in enumerate(ids)}
        path.write_bytes(before)
    assert outcomes == {"found", "not held", "damaged"} - ({"damaged"} if name == OFFSETS_NAME else set())


def outcome(store: TokenStore, image_id: str, row: int) -> str:
    try:
        found = store.rows([image_id]).tolist()
    except HarnessError as error:
        return "not held" if "holds no image" in str(error) else "damaged" if "damaged" in str(error) else "?"
    return "found" if found == [row] else f"another row: {found}"


def test_damaged_ids_are_not_read_as_others(folder: Path) -> None:
    store = open_store(folder)
    ids, content = list(store.image_ids), (folder / IDS_NAME).read_bytes()
    (folder / IDS_NAME).write_bytes(content.replace(b"\n", b"\xff", 1))
    with pytest.raises(HarnessError, match=r"image_ids\.txt: damaged: not UTF-8"):
        list(open_store(folder, verify=False).image_ids)
    (folder / IDS_NAME).write_bytes(content.replace(b"\n", b"x", 1))
    with pytest.raises(HarnessError, match=r"image_ids\.txt: damaged: rows 0 to 20 hold 19 ids"):
        list(open_store(folder, verify=False).image_ids)
    with pytest.raises(HarnessError, match="holds no image"):
        open_store(folder, verify=False).rows([ids[0]])
