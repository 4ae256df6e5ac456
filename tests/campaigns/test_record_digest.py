"""A record's digest: what was written is what is read, and what was edited or damaged says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.cli import main
from leaderboard.record import (
    RECORD_NAME,
    Metric,
    Record,
    content_digest,
    digest_fault,
    read_record,
    read_records,
    write_record,
)
from protocols.errors import HarnessError
from tests.benchmark.made_records import Lab, changed_record, contents_of, forge, refused
from tests.error_settings import TINY

CHOICE = ("--protocol", str(TINY), "--methods", "scratch", "mim", "--evaluations", "linear-probe", "finetune")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | FINITE | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab") / "runs")


@pytest.fixture
def own(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "runs")


def _any_record(lab: Lab) -> Record:
    return lab.records[lab.id("linear-probe")]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(value=FINITE, whole=st.integers(-(2**53), 2**53), given_=VALUES, text=st.text(max_size=20))
def test_whatever_a_record_holds_it_is_read_as_it_was_written(
    value: float, whole: int, given_: Any, text: str, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Minus zero, 1e22 and 1e-320, whole numbers where fractions may stand, any text but half characters."""
    folder = tmp_path_factory.getbasetemp() / "any"
    metrics = {
        "top1_percent": Metric(value=value, n=1, unit=text),
        "whole": Metric.model_validate({"value": whole, "n": 1, "unit": ""}),
        "minus zero": Metric(value=-0.0, n=1, unit=""),
        "large": Metric(value=1e22, n=1, unit=""),
        "tiny": Metric(value=5e-324, n=1, unit=""),
    }
    record = _any_record(lab).model_copy(
        update={"metrics": metrics, "runtime": {"given": given_}, "error": text, "digest": ""}
    )
    written = write_record(folder, record)
    read = read_record(folder)
    assert read == written
    assert read is not None
    assert math.copysign(1, read.metrics["minus zero"].value) == -1
    assert read.metrics["top1_percent"].value == value
    # Written again it has the same bytes: what a later version reads, it may write.
    before = (folder / RECORD_NAME).read_bytes()
    assert write_record(folder, read) == written
    assert (folder / RECORD_NAME).read_bytes() == before


@pytest.mark.parametrize("field", sorted(set(Record.model_fields) - {"schema_version", "digest"}))
def test_an_edit_by_hand_is_named(field: str, own: Lab) -> None:
    """Any field, to another value that a record may hold."""
    folder = own.folder("linear-probe")
    path = folder / RECORD_NAME
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {field: _another(field, values[field])}, indent=1, sort_keys=True))
    with pytest.raises(HarnessError) as raised:
        read_record(folder)
    said = str(raised.value)
    assert said.startswith(f"{path} was edited or damaged: its digest is {values['digest']}, its content's ")
    assert said.endswith(f"; restore it, or delete the folder {folder} and run again")


def _another(field: str, value: Any) -> Any:
    others = {
        "cost": lambda: value | {"wall_seconds": value["wall_seconds"] + 0.001},
        "metrics": lambda: {"top1_percent": value["top1_percent"] | {"value": 25.000000000000004}},
        "compliance": lambda: value | {"deviations": ["x"]},
        "attempts": lambda: [],
        "status": lambda: "failed",
        "seed": lambda: value + 1,
        "error": lambda: "x",
        "tokenizer": lambda: None,
        "method": lambda: value | {"name": "beit"},
        "protocol": lambda: value | {"version": 9},
        "data_set": lambda: value | {"n": value["n"] + 1},
        "git": lambda: value | {"dirty": not value["dirty"]},
        "resolved": lambda: {},
    }
    if field in others:
        return others[field]()
    return {**value, "x": "y"} if isinstance(value, dict) else value + "x"


def test_how_it_is_laid_out_does_not_matter(own: Lab) -> None:
    path = own.folder("linear-probe") / RECORD_NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_record(path.parent) == _any_record(own)


def test_a_record_of_an_older_version_is_read_and_counted(own: Lab) -> None:
    for cell_id in sorted(own.records)[:2]:
        path = own.cells / cell_id / RECORD_NAME
        values = json.loads(path.read_text())
        del values["digest"]
        path.write_text(json.dumps(values))
        record = read_record(path.parent)
        assert record is not None
        assert record.digest == ""
    notes = _notes(own)
    assert "2 of 6 records were written by a version that kept no digest of them" in notes
    assert "kept no digest" not in _notes(Lab(own.work_dir.parent / "other"))


def _notes(lab: Lab) -> str:
    from leaderboard.report import read_board

    return " ".join(read_board(lab.work_dir, lab.protocol).notes)


def test_a_field_of_a_later_version_breaks_no_older_records_digest() -> None:
    """The digest is of what stands in the file, not of what this version makes of it."""
    values = {"cell_id": "a", "seed": 1}
    assert content_digest(values) == content_digest({**values, "digest": "x"})
    assert content_digest(values) != content_digest({**values, "new": ""})


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", '{"a": NaN}'])
def test_what_no_record_holds_is_damage(text: str, lab: Lab) -> None:
    assert "was edited or damaged: it holds what no record holds" in digest_fault(
        _any_record(lab), text.encode()
    )


def _damage(lab: Lab) -> list[Path]:
    """One record edited, one cut short."""
    edited, cut = (lab.folder(name) / RECORD_NAME for name in ("finetune", "linear-probe"))
    edited.write_text(edited.read_text().replace('"value": 25.0', '"value": 26.0'))
    cut.write_text(cut.read_text()[:300])
    return [edited, cut]


def test_all_damaged_records_are_named_at_once(own: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = _damage(own)
    words = ("--work-dir", str(own.work_dir))
    with pytest.raises(HarnessError) as raised:
        read_records(own.work_dir, "tiny")
    assert all(str(path) in str(raised.value) for path in damaged)
    for command in (("report", "--protocol", str(TINY)), (*CHOICE, "--device", "cpu")):
        assert main([*command, *words]) == 2
        said = capsys.readouterr().err
        assert "2 records cannot be used" in said
        assert all(str(path) in said for path in damaged)
    assert main(["status", *CHOICE, *words]) == 0
    said = capsys.readouterr().out
    assert "damaged (see each remedy)" in said
    assert "edited or damaged: its digest" in " ".join(said.split())
    assert main(["status", *CHOICE, *words, "--json"]) == 0
    reasons = [" ".join(one["reasons"]) for one in json.loads(capsys.readouterr().out)["cells"]]
    assert [sum(str(path) in reason for reason in reasons) for path in damaged] == [1, 1]


def test_a_bundled_record_that_was_edited_is_refused_by_name(own: Lab, tmp_path: Path) -> None:
    """As it is made and as it is merged; the manifest agrees with it, as a forger's does."""
    probe = own.id("linear-probe")
    out = tmp_path / "lab.tar"
    own.bundle(out)
    manifest, files = contents_of(out)
    path = f"cells/{probe}/{RECORD_NAME}"
    slower = json.loads(files[path])
    slower["cost"]["wall_seconds"] = 1e9
    forge(out, manifest, {**files, path: json.dumps(slower).encode()})
    found = refused(out)
    assert set(found) == {probe}
    assert "was edited or damaged: its digest is" in found[probe]
    forge(out, manifest, {**files, path: changed_record(files[path])})
    assert refused(out) == {}, "as an older version wrote it"
    record = own.cells / probe / RECORD_NAME
    record.write_text(json.dumps(slower))
    left_out = own.bundle(tmp_path / "edited.tar").left_out
    assert set(left_out) == {probe}
    assert "edited or damaged" in left_out[probe]
