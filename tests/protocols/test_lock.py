"""The lock: what was released stays as it was released, and damage to the lock itself is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError, ProtocolViolation
from protocols.frozen import canonical_json, digest_of
from protocols.lock import LOCK, add_to_lock, differences, read_lock, unlocked_slices

Written = Callable[..., Path]

LR = ('  peak_lr: {value: 4e-3, assumed: "best, or', '  peak_lr: {value: 5e-3, assumed: "best, or')
DEPTH = ("depth: {value: 4,", "depth: {value: 6,")
METHOD = ("  scratch: {}\n", "  scratch: {}\n  other:\n    size: {value: 1, source: test}\n")


def test_every_built_in_protocol_is_wholly_locked() -> None:
    released = read_lock()
    for name in list_protocols():
        protocol = load_protocol(name)
        assert unlocked_slices(protocol) == []
        locked = {one: digest_of(values) for one, values in released[name, protocol.version].items()}
        assert locked == protocol.slices


def test_minis_digest_is_the_one_that_its_results_were_made_under() -> None:
    """But for the slices that were added since, which moved none of them."""
    added = {"transfer_set:digits", "evaluation:digits", "evaluation:knn"}
    added |= {"method:splitmask", "method:maskfeat", "method:beit-v2"}
    slices = load_protocol("mini").slices
    assert added < set(slices)
    then = {name: digest for name, digest in slices.items() if name not in added}
    assert digest_of(then).startswith("38a834625611")


def test_a_changed_slice_is_refused_with_each_value_was_and_is(written: Written) -> None:
    path = written(
        "mini", LR, DEPTH, ("codebook_size: {value: 256, assumed", "codebook_size: {value: 64, assumed")
    )
    with pytest.raises(ProtocolViolation) as caught:
        load_protocol(str(path))
    assert caught.value.exit_code == 3
    told = str(caught.value).splitlines()
    assert told[0].startswith(f"{path} is not protocol mini, version 1, as it was released")
    assert told[1:4] == [
        "  pretraining: peak_lr was 0.004, is 0.005",
        "  trunk:vit-mini: depth was 4, is 6",
        "  tokenizer:k-pixel: codebook_size was 256, is 64",
    ]
    assert f"  python run_benchmark.py fork {path} NEW_NAME" in told
    assert any("--set SLICE.FIELD=VALUE" in line for line in told)


def test_values_within_groups_and_fields_that_come_or_go_are_named() -> None:
    before = {"a": 1, "part": {"start": 0, "count": 5}, "gone": None}
    assert differences(before, {"a": 1.0, "part": {"start": 0, "count": 6}, "new": [1]}) == [
        "a was 1, is 1.0",
        "gone was null, is not set",
        "new was not set, is [1]",
        "part.count was 5, is 6",
    ]
    assert differences(before, None) == ["the slice is gone"]


def test_a_removed_slice_is_refused(written: Written) -> None:
    path = written(
        "mini", ("  pim:\n", ""),
        ('    cutting_point: {value: 25, assumed: "class token and 24 patches are context, 25 are predicted: '
         'as many as mim", alternatives: [13, 31]}\n', ""),
    )  # fmt: skip
    named = path.read_text(encoding="utf-8").replace("pim, ", "").replace("[pim]", "[mapet]")
    path.write_text(named.replace("epochs: [7]", "epochs: [5]"), encoding="utf-8")
    with pytest.raises(ProtocolViolation, match=r"\n  method:pim: the slice is gone\n"):
        load_protocol(str(path))


def test_an_optional_field_that_is_given_later_is_another_slice(written: Written) -> None:
    path = written(
        "mini",
        (
            "    whiten: {value: true",
            "    features: {value: patch-mean, source: test}\n    whiten: {value: true",
        ),
    )
    with pytest.raises(ProtocolViolation, match=r'linear-probe: features was not set, is "patch-mean"'):
        load_protocol(str(path))


def test_an_added_slice_is_allowed_and_reported(written: Written) -> None:
    protocol = load_protocol(str(written("mini", METHOD)))
    assert unlocked_slices(protocol) == ["method:other"]


def test_a_new_version_and_a_new_name_are_other_protocols(written: Written) -> None:
    for change in (("version: 1", "version: 2"), ("name: mini", "name: my-mini")):
        protocol = load_protocol(str(written("mini", change, LR)))
        assert protocol.pretraining.peak_lr == 5e-3
        assert unlocked_slices(protocol) == list(protocol.slices)


def test_the_same_values_elsewhere_are_the_same_protocol(written: Written) -> None:
    copy = load_protocol(str(written("mini", ("whole line in minutes.", "same line."), file="mine.yaml")))
    assert copy.digest == load_protocol("mini").digest


def test_set_does_not_trip_the_lock_but_a_changed_file_does(written: Written) -> None:
    assert load_protocol("mini", overrides=["pretraining.epochs=3"]).pretraining.epochs == 3
    path = str(written("mini", LR))
    with pytest.raises(ProtocolViolation):  # setting the released value back does not hide the change
        load_protocol(path, overrides=["pretraining.peak_lr=4e-3"])
    assert load_protocol(path, locked=False).pretraining.peak_lr == 5e-3


VALUES = {"a": 1}
GOOD = f"p 1 data {digest_of(VALUES)} {canonical_json(VALUES)}"


def line_of(values: str, slice_name: str = "data") -> str:
    return f"p 1 {slice_name} {digest_of(json.loads(values))} {values}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("1}", "2}"), "the line is damaged"),
        (GOOD.replace(digest_of(VALUES), "0" * 64), "the line is damaged"),
        (GOOD[:-1], "the line is damaged"),
        (GOOD.replace("p 1", "p one"), "the line is damaged"),
        ("p 1 data", "the line is damaged"),
        ("<<<<<<< HEAD", "the line is damaged"),
        (GOOD.replace('{"a":1}', '{"a":NaN}'), "the line is damaged"),
        (line_of("3"), "the line is damaged"),
        (line_of("null"), "the line is damaged"),
        (GOOD, "p 1 data is locked twice"),
    ],
)
def test_a_damaged_lock_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    lock = tmp_path / "digests.lock"
    lock.write_text(f"# header\n{GOOD}\n\n{line}\n")
    with pytest.raises(HarnessError, match=rf"^digests\.lock:4: {re.escape(message)}.*git checkout"):
        read_lock(lock)


def test_a_lock_that_is_no_text_or_is_missing(tmp_path: Path) -> None:
    lock = tmp_path / "digests.lock"
    with pytest.raises(HarnessError, match=r"digests\.lock is missing from the checkout; restore it|missing"):
        read_lock(lock)
    lock.write_bytes(GOOD.encode() + b"\n\xff\xfe\n")
    with pytest.raises(HarnessError, match=r"^digests\.lock:2: the line is damaged"):
        read_lock(lock)


def test_locking_adds_lines_and_never_changes_one(tmp_path: Path, written: Written) -> None:
    lock = tmp_path / "own.lock"
    mini = load_protocol("mini")
    assert add_to_lock(mini, path=lock) == list(mini.slices)
    first = lock.read_bytes()
    assert first.startswith(b"# protocol version slice sha256")
    assert add_to_lock(mini, path=lock) == []
    assert lock.read_bytes() == first

    changed = load_protocol(str(written("mini", METHOD, LR)), locked=False)
    assert add_to_lock(changed, path=lock) == ["method:other"]
    assert lock.read_bytes().startswith(first)
    held = read_lock(lock)["mini", 1]
    assert held["pretraining"]["peak_lr"] == 4e-3
    assert held["method:other"] == {"size": 1}


def test_locking_after_an_editor_took_the_last_line_end(tmp_path: Path) -> None:
    lock = tmp_path / "own.lock"
    lock.write_text(GOOD)
    add_to_lock(load_protocol("mini"), path=lock)
    assert set(read_lock(lock)) == {("p", 1), ("mini", 1)}


def test_texts_with_odd_line_ends_survive_the_lock(tmp_path: Path, written: Written) -> None:
    """U+2028 ends a line for str.splitlines and stands in JSON as it is."""
    change = ("model: {value: tf_efficientnet_lite0,", 'model: {value: "a\\u2028b\\x85c",')
    protocol = load_protocol(str(written("mini", ("name: mini", "name: odd"), change)))
    lock = tmp_path / "own.lock"
    add_to_lock(protocol, path=lock)
    assert read_lock(lock)["odd", 1]["tokenizer:k-feature"]["model"] == "a\u2028b\x85c"


def test_the_lock_in_the_checkout_is_what_locking_writes(tmp_path: Path) -> None:
    lock = tmp_path / "own.lock"
    for name in ("mini", "fair300", "cifar"):
        add_to_lock(load_protocol(name), path=lock)
    assert sorted(lock.read_text().splitlines()) == sorted(LOCK.read_text(encoding="utf-8").splitlines())
