"""Bundles: what goes in, the same bytes for the same records, and what reading refuses of damaged ones."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard import bundle as format
from leaderboard.bundle import MANIFEST, PROTOCOL
from leaderboard.bundle_cells import names_a_folder
from leaderboard.record import PREDICTIONS_NAME, RECORD_NAME
from protocols.errors import HarnessError
from tests.benchmark.made_records import (
    Lab,
    contents_of,
    outcomes,
    refused,
)

BLOCK = 512


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A work dir that no test changes."""
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of one probe: three cells."""
    out = tmp_path_factory.mktemp("bundle") / "whole.tar"
    lab.bundle(out, [lab.id("linear-probe")])
    return out


def test_a_bundle_holds_a_cell_and_all_that_it_was_made_from(lab: Lab, whole: Path) -> None:
    ids = {lab.id("linear-probe"), lab.id("pretrain"), lab.id("tokenise")}
    with tarfile.open(whole) as archive:
        names = archive.getnames()
    assert names[0] == MANIFEST
    assert names[1:] == sorted(names[1:])
    assert {name.split("/")[1] for name in names if name.startswith("cells/")} == ids
    assert {name.rpartition("/")[2] for name in names} == {
        MANIFEST, PROTOCOL, "record.json", "metrics.jsonl", "card.md", PREDICTIONS_NAME,
    }  # fmt: skip
    manifest, files = contents_of(whole)
    assert {one.cell_id for one in manifest.cells} == ids
    record = f"cells/{lab.id('pretrain')}/{RECORD_NAME}"
    assert files[record] == (lab.folder("pretrain") / RECORD_NAME).read_bytes()
    assert manifest.protocol.digest == lab.protocol.digest
    assert outcomes(whole) == dict.fromkeys(ids, ("merged", ""))


def test_the_same_records_give_the_same_bytes_whoever_writes_them(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    other = Lab(tmp_path / "elsewhere")
    for path in other.work_dir.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    other.bundle(tmp_path / "other.tar", [other.id("linear-probe")])
    assert (tmp_path / "other.tar").read_bytes() == whole.read_bytes()
    with tarfile.open(whole) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_no_bundle_is_written_over_a_file_and_none_without_cells(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match="exists already"):
        lab.bundle(whole)
    with pytest.raises(HarnessError, match="no cell was chosen"):
        lab.bundle(tmp_path / "none.tar", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("linear-probe", {"seed": 0}, ""),
        ("linear-probe", {"artefacts": {}}, "does not name it"),
        ("pretrain", {"error": "no room in /scratch/alice/runs", "status": "failed"}, "/scratch/alice/runs"),
        ("pretrain", {"seed": 3}, "-s3-"),
        ("tokenise", {"artefacts": {"../../x": "a" * 64}}, "leads out of the cell"),
        ("tokenise", {"artefacts": {"x": "a"}}, "no SHA-256"),
        ("pretrain", {"status": "skipped"}, "skipped"),
    ],
    ids=["fine", "unnamed predictions", "a folder's name", "an id", "a path", "a digest", "skipped"],
)
def test_what_merge_would_refuse_is_left_out_with_its_descendants(
    name: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "runs")
    lab.finish(lab.cell(name), **changes)
    written = lab.bundle(tmp_path / "out.tar")
    if not why:
        assert written.left_out == {}
        return
    assert why in written.left_out[lab.id(name)]
    order = ["tokenise", "pretrain", "linear-probe"]
    for child in order[order.index(name) + 1 :]:
        assert "its parent" in written.left_out[lab.id(child)]
        assert lab.id(child) not in written.cells
    assert lab.id("finetune", "scratch") in written.cells
    assert not refused(tmp_path / "out.tar")


def test_a_cell_made_from_an_earlier_version_of_its_parent_is_left_out(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "runs")
    lab.finish(lab.cell("pretrain"), artefacts={"checkpoints/backbone.safetensors": "b" * 64})
    written = lab.bundle(tmp_path / "out.tar")
    assert set(written.left_out) == {lab.id("linear-probe"), lab.id("finetune")}
    assert "made from another" in written.left_out[lab.id("finetune")]


def test_rates_and_addresses_are_no_folders_and_folders_are() -> None:
    for text in (b"images/s", b"https://arxiv.org/abs/2306.07346", b"mim/k-pixel/vit-t", b"1/2/3", b"//"):
        assert names_a_folder(text) == ""
    for text in (b"in /home/alice/x", b'"/tmp/a"', b"(/scratch/p-1/runs/)"):
        assert names_a_folder(text).startswith("/")


def test_every_damaged_byte_is_noticed_and_spares_the_other_cells(whole: Path, tmp_path: Path) -> None:
    """One byte of each block, in turn: of headers, contents, the zeros between them and at the end."""
    content, copy = whole.read_bytes(), tmp_path / "copy.tar"
    owners = _owners(whole)
    rng = np.random.default_rng(0)
    for block in range(len(content) // BLOCK):
        at = block * BLOCK + int(rng.integers(BLOCK))
        _damage(content, at, copy)
        if owners[block] == MANIFEST:
            with pytest.raises(HarnessError, match=r"manifest|does not begin"):
                outcomes(copy)
            continue
        found = refused(copy)
        assert found, f"byte {at} of {owners[block]}"
        cell = owners[block].split("/")[1] if owners[block].startswith("cells/") else ""
        if cell:
            assert cell in found, f"byte {at} of {owners[block]}"
        # A probe falls with its parents, and nothing falls with a probe.
        assert all(
            one == cell or "its parent" in why for one, why in found.items() if one in _cells(whole)
        ), found


def test_every_field_of_a_header_counts(whole: Path, tmp_path: Path) -> None:
    """Also where the checksum was set right again."""
    content, owners = whole.read_bytes(), _owners(whole)
    block = next(number for number, owner in enumerate(owners) if owner.endswith(RECORD_NAME))
    cell = owners[block].split("/")[1]
    fields = {"name": 3, "mode": 102, "uid": 110, "gid": 118, "size": 134, "mtime": 140, "type": 156,
              "link": 160, "magic": 258, "user": 266, "group": 300, "device": 331, "prefix": 346}  # fmt: skip
    for field, offset in fields.items():
        for is_sealed in (False, True):
            header = bytearray(content[block * BLOCK : (block + 1) * BLOCK])
            header[offset] = ord("1") if header[offset] != ord("1") else ord("2")
            if is_sealed:
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
            changed = content[: block * BLOCK] + bytes(header) + content[(block + 1) * BLOCK :]
            (tmp_path / "copy.tar").write_bytes(changed)
            assert cell in refused(tmp_path / "copy.tar"), (field, is_sealed)


def test_a_bundle_that_is_cut_short_anywhere_is_never_taken_for_whole(whole: Path, tmp_path: Path) -> None:
    content, copy = whole.read_bytes(), tmp_path / "copy.tar"
    merged = 0
    owners = _owners(whole)
    last_of_manifest = BLOCK * (len(owners) - owners[::-1].index(MANIFEST) - 1)
    for size in range(0, len(content), BLOCK):
        copy.write_bytes(content[:size])
        if size <= last_of_manifest:
            with pytest.raises(HarnessError, match="manifest"):
                outcomes(copy)
            continue
        found = outcomes(copy)
        assert any(result == "refused" for result, _ in found.values()), size
        merged = max(merged, sum(result == "merged" for result, _ in found.values()))
    assert merged == 3, "what is whole of it is taken"
    copy.write_bytes(content + bytes(BLOCK))
    assert "goes on past its end" in "".join(refused(copy).values())


def test_a_manifest_that_still_reads_well_is_not_believed(whole: Path, tmp_path: Path) -> None:
    """Another commit, another version: values that could stand there, and did not."""
    content = whole.read_bytes()
    for old, new in ((b'"commit": "0123', b'"commit": "1123'), (b'"dirty": false', b'"dirty": true ')):
        assert old in content[: 8 * BLOCK]
        (tmp_path / "copy.tar").write_bytes(content.replace(old, new, 1))
        with pytest.raises(HarnessError, match="its digest is not that of its fields"):
            outcomes(tmp_path / "copy.tar")


def _member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"evil", link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = len(content) if kind == tarfile.REGTYPE else 0
    data = content + bytes(-len(content) % BLOCK) if kind == tarfile.REGTYPE else b""
    return member.tobuf(tarfile.GNU_FORMAT) + data


FOREIGN = {
    "an absolute path": (_member("/etc/cron.d/evil"), "leads out of the bundle"),
    "a path upwards": (_member("cells/../../../evil"), "leads out of the bundle"),
    "a symbolic link": (_member("cells/link", tarfile.SYMTYPE, link="/etc"), "a symbolic link"),
    "a link": (_member("cells/link", tarfile.LNKTYPE, link=MANIFEST), "a link"),
    "a device": (_member("null", tarfile.CHRTYPE), "a device"),
    "a pipe": (_member("pipe", tarfile.FIFOTYPE), "a pipe"),
    "a folder": (_member("cells", tarfile.DIRTYPE), "a folder"),
    "a name that nobody stated": (_member("cells/x/weights.pt"), "is not in the manifest"),
    "a second manifest": (_member(MANIFEST), "is not in the manifest"),
    "a name of many bytes": (_member("x" * 3000), "is not in the manifest"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("is_last", [True, False], ids=["at the end", "before all"])
def test_foreign_members_are_refused_and_the_others_taken(
    name: str, is_last: bool, whole: Path, tmp_path: Path
) -> None:
    member, why = FOREIGN[name]
    content, owners = whole.read_bytes(), _owners(whole)
    at = BLOCK * (
        owners.index("") if is_last else next(n for n, owner in enumerate(owners) if owner != MANIFEST)
    )
    changed = content[:at] + member + content[at:].rstrip(b"\0")
    changed += bytes(-len(changed) % BLOCK)
    (tmp_path / "copy.tar").write_bytes(changed + format.ending(len(changed)))
    found = outcomes(tmp_path / "copy.tar")
    assert sum(result == "merged" for result, _ in found.values()) == 3, found
    assert [reason for result, reason in found.values() if result == "refused" and why in reason]


def test_a_member_that_stands_twice_is_taken_in_neither_form(whole: Path, tmp_path: Path) -> None:
    content, owners = whole.read_bytes(), _owners(whole)
    path = next(owner for owner in owners if owner.endswith(PREDICTIONS_NAME))
    start, end = owners.index(path), len(owners) - owners[::-1].index(path)
    body = content[: owners.index("") * BLOCK]
    changed = body + content[start * BLOCK : end * BLOCK]
    (tmp_path / "copy.tar").write_bytes(changed + format.ending(len(changed)))
    found = refused(tmp_path / "copy.tar")
    assert "stands twice" in found[path.split("/")[1]]
    assert len(found) == 1


def test_what_is_no_bundle_says_so(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.tar"
    for content, why in (
        (b"", "is no bundle"),
        (b"x" * 2000, "is no bundle"),
        (gzip.compress(whole.read_bytes(), mtime=0), "is compressed"),
        (_member("readme") + bytes(1024), "does not begin with manifest.json"),
        (_member(MANIFEST, content=b"{}") + bytes(1024), "manifest is damaged"),
        (_member(MANIFEST, content=b"\xff\xfe") + bytes(1024), "manifest is damaged"),
    ):
        copy.write_bytes(content)
        with pytest.raises(HarnessError, match=why):
            outcomes(copy)
    with pytest.raises(HarnessError, match="is no file"):
        outcomes(tmp_path)
    with pytest.raises(HarnessError, match="cannot be read"):
        outcomes(tmp_path / "none.tar")
    monkeypatch.setattr(format, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(HarnessError, match="too large for a bundle"):
        outcomes(whole)


def test_sizes_are_limited_member_by_member(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "MAX_MEMBER_BYTES", 1500)
    assert any("at most" in why for why in refused(whole).values())
    monkeypatch.setattr(format, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(HarnessError, match="too large"):
        outcomes(whole)


def _owners(path: Path) -> list[str]:
    """The member of each block of 512 bytes, headers and padding included; empty for the end's zeros."""
    owners: list[str] = []
    with tarfile.open(path) as archive:
        for member in archive:
            owners += [member.name] * (1 + -(-member.size // BLOCK))
    return owners + [""] * (path.stat().st_size // BLOCK - len(owners))


def _cells(path: Path) -> set[str]:
    return {one.cell_id for one in contents_of(path)[0].cells}


def _damage(content: bytes, at: int, out: Path) -> None:
    changed = bytearray(content)
    changed[at] ^= 1 << (at % 8)
    out.write_bytes(changed)


def test_the_writer_refuses_a_file_that_changes_under_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leaderboard import bundle_writer

    monkeypatch.setattr(bundle_writer, "sha256_of_file", lambda path: "a" * 64)
    with pytest.raises(HarnessError, match="changed while it was bundled"):
        lab.bundle(tmp_path / "out.tar")
    assert not list(tmp_path.iterdir()), "no half of a bundle is left"
