"""Bundles whose digests all agree, and whose records, predictions or manifest were made up."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard import bundle_cells
from leaderboard.bundle import MANIFEST, PROTOCOL, member_header, open_bundle
from leaderboard.record import PREDICTIONS_NAME, RECORD_NAME
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from tests.benchmark.made_records import (
    IMAGES,
    Lab,
    cells_of,
    changed_record,
    contents_of,
    forge,
    outcomes,
    predictions_file,
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


def test_a_manifest_of_another_format_or_with_a_strange_path_is_refused(whole: Path, tmp_path: Path) -> None:
    manifest, files = contents_of(whole)
    forge(tmp_path / "newer.tar", manifest, files, format_version=3)
    with pytest.raises(HarnessError, match="of a newer harness: format_version"):
        outcomes(tmp_path / "newer.tar")
    # An origin of any length would be too long to be read again, and stop every board.
    far = tuple(one.model_copy(update={"passed_through": ("a" * 64,) * 101}) for one in manifest.cells)
    forge(tmp_path / "far.tar", manifest, files, cells=far)
    with pytest.raises(HarnessError, match="passed_through: Tuple should have at most 100 items"):
        outcomes(tmp_path / "far.tar")
    forge(tmp_path / "fewer.tar", manifest, files, cells=manifest.cells[1:])
    with pytest.raises(HarnessError, match="of no cell"):
        outcomes(tmp_path / "fewer.tar")
    forge(tmp_path / "twice.tar", manifest, files, cells=(*manifest.cells, manifest.cells[0]))
    with pytest.raises(HarnessError, match="twice, or out of order"):
        outcomes(tmp_path / "twice.tar")
    for path in ("cells/a/../../evil", "/etc/passwd", "cells/a/run.sh", "cells/.ssh/record.json"):
        text = contents_of(whole)[0].text().decode().replace(max(files), path)
        (tmp_path / "strange.tar").write_bytes(member_header(MANIFEST, len(text)) + text.encode())
        with pytest.raises(HarnessError, match="path: String should match"):
            outcomes(tmp_path / "strange.tar")


def test_forged_records_are_refused_though_every_digest_of_the_manifest_agrees(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    """Who writes the manifest can make it agree with anything; the record must agree with itself."""
    manifest, files = contents_of(whole)
    probe = lab.id("linear-probe")
    path = f"cells/{probe}/{RECORD_NAME}"
    record = lab.records[probe].model_dump(mode="json")
    resolved = {name: dict(values) for name, values in record["resolved"].items()}
    resolved["data"]["image_size"] = 56
    slices = record["protocol"]["slices"] | {"data": digest_of(resolved["data"])}
    better = {"top1_percent": {"value": 99.0, "n": IMAGES, "unit": "%"}}
    more = {"top1_percent": {"value": 25.0, "n": 50_000, "unit": "%"}}
    forgeries: list[tuple[dict[str, Any], str]] = [
        ({"metrics": better}, "the record states 99"),
        ({"metrics": more}, "of 50000"),
        ({"resolved": resolved}, "values of slice 'data'"),
        ({"resolved": {}}, "lacks the values"),
        (
            {"resolved": resolved, "protocol": record["protocol"] | {"slices": slices}},
            "its values are those of",
        ),
        ({"seed": 1}, "its values are those of"),
        ({"stage": "finetune"}, "its values are those of"),
        ({"cell_id": "other"}, "is that of 'other'"),
        ({"protocol": record["protocol"] | {"name": "mini"}}, "of protocol 'mini'"),
        ({"parents": {lab.id("pretrain"): "a" * 64}}, "made from another"),
        ({"artefacts": {PREDICTIONS_NAME: "a" * 64}}, "damaged or was replaced"),
        ({"artefacts": {}}, "does not name it"),
        ({"status": "great"}, "status"),
        ({"status": "failed"}, "says failed"),
        ({"surprise": 1}, "surprise"),
        ({"runtime": {"precision": float("nan")}}, "values that no protocol can hold"),
        ({"schema_version": 2}, "schema_version"),
    ]
    for changes, why in forgeries:
        forged = {**files, path: changed_record(files[path], **changes)}
        forge(tmp_path / "forged.tar", manifest, forged)
        found = refused(tmp_path / "forged.tar")
        assert set(found) == {probe}, changes
        assert why in found[probe]
    forge(tmp_path / "forged.tar", manifest, {**files, path: b'{"a":' * 500})
    assert set(refused(tmp_path / "forged.tar")) == {probe}


def test_predictions_that_would_fill_the_memory_or_are_none_are_refused(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, files = contents_of(whole)
    probe = lab.id("linear-probe")
    path = f"cells/{probe}/{PREDICTIONS_NAME}"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    archives = {
        "a huge shape": _zip({"labels.npy": header.getvalue()}),
        "objects": _zip({"labels.npy": objects.getvalue()}),
        "no array": _zip({"labels.npy": b"no array"}),
        "nothing": _zip({}),
        "no archive": b"PK" + bytes(100),
        "a damaged stream": bytes(predictions_file(10)[:60]) + b"\xff" * 8 + predictions_file(10)[68:],
    }
    for name, content in archives.items():
        forge(tmp_path / "forged.tar", manifest, _with_predictions(files, path, content))
        assert set(refused(tmp_path / "forged.tar")) == {probe}, name
    monkeypatch.setattr(bundle_cells, "MOST_UNPACKED_BYTES", 100)
    assert "too much" in refused(whole)[probe]


def test_children_of_refused_cells_are_refused_and_say_why(lab: Lab, whole: Path, tmp_path: Path) -> None:
    manifest, files = contents_of(whole)
    tokens = lab.id("tokenise")
    kept = {path: content for path, content in files.items() if tokens not in path}
    ids = [one.cell_id for one in manifest.cells if one.cell_id != tokens]
    forge(tmp_path / "fewer.tar", manifest, kept, cells=cells_of(*ids))
    found = refused(tmp_path / "fewer.tar")
    assert found == {
        lab.id("pretrain"): f"its parent {tokens} is not there, or was refused",
        lab.id("linear-probe"): f"its parent {lab.id('pretrain')} is not there, or was refused",
    }


def test_a_slice_file_that_was_changed_is_named(whole: Path, tmp_path: Path) -> None:
    manifest, files = contents_of(whole)
    for content in (b"{}", b"no json", b'{"slices": {}}', b'{"slices": 3}'):
        forge(tmp_path / "forged.tar", manifest, {**files, PROTOCOL: content})
        with open_bundle(tmp_path / "forged.tar") as bundle, pytest.raises(HarnessError, match=PROTOCOL):
            bundle.protocol_slices()


def _with_predictions(files: dict[str, bytes], path: str, content: bytes) -> dict[str, bytes]:
    """With the record's own digest of them brought into line, as a forger would."""
    record = path.replace(PREDICTIONS_NAME, RECORD_NAME)
    artefacts = {PREDICTIONS_NAME: hashlib.sha256(content).hexdigest()}
    return {**files, path: content, record: changed_record(files[record], artefacts=artefacts)}


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
