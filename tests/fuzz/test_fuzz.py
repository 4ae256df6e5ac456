"""A short, always equal piece of `python -m tests.fuzz`, and what the long one found, each held down."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmark.data_manifest import open_manifest
from benchmark.image_files import DamagedImage
from benchmark.packed import UnusablePack, read_manifest
from protocols.errors import HarnessError
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import TARGETS, Target, sealed
from tests.fuzz.running import Run
from tests.fuzz.zips import restored

# So many that each reader takes some tenths of a second.
INPUTS = {"plan": 3, "protocol": 6, "setting": 5, "bundle": 6, "cluster file": 15, "token store's files": 10}
BY_NAME = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_reader_reads_or_refuses_whatever_it_is_given(target: Target, tmp_path: Path) -> None:
    run = Run(target, tmp_path, seed=0)
    seeds = target.seeds()
    assert all(run.feed(whole) is None for whole in seeds)
    assert run.refused < len(seeds), "what is good is read"

    @settings(
        max_examples=INPUTS.get(target.name, 25), derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def fed(random: Random) -> None:
        finding = run.feed(mutated(random, random.choice(seeds), seeds, structured=target.structured))
        assert finding is None, finding.what if finding else ""

    fed()


def test_the_run_sees_what_no_reader_may_do(tmp_path: Path) -> None:
    """A fuzzer that finds nothing may be one that sees nothing."""

    def writes(folder: Path, _: bytes) -> None:
        (folder.parent.parent / "elsewhere").write_text("x")

    def runs(*_: object) -> None:
        import os

        os.system("true")

    def breaks(*_: object) -> None:
        raise KeyError("x")

    def colours(*_: object) -> None:
        error = HarnessError("")
        error.args = ("\x1b[31m",)
        raise error

    (tmp_path / "scratch").mkdir()
    misdeeds: dict[str, Callable[[Path, bytes], object]] = {
        "AssertionError": writes, "KeyError": breaks, "the character": colours,
    }  # fmt: skip
    for what, read in misdeeds.items():
        target = Target(name="x", group="x", seeds=tuple, read=read)
        finding = Run(target, tmp_path / "scratch", seed=0).feed(b"")
        assert finding is not None
        assert what in finding.what
    finding = Run(
        Target(name="x", group="x", seeds=tuple, read=runs), tmp_path / "scratch", seed=0
    ).feed(b"")  # fmt: skip
    assert finding is not None
    assert "os.system" in finding.what


# Found by the long run --------------------------------------------------------------------------------


def _npz_with(header: bytes) -> bytes:
    whole = BY_NAME["predictions"].seeds()[1]
    return restored(whole, lambda name, one: header if name == "labels.npy" else one)


def _npy(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _unsupported(content: bytes) -> bytes:
    """With a method of compression that nobody has, in every entry of the archive's list."""
    changed = bytearray(content)
    for entry in re.finditer(rb"PK\x01\x02", content):
        changed[entry.start() + 10 : entry.start() + 12] = b"\x63\x00"
    return bytes(changed)


@pytest.mark.parametrize(
    "content",
    [
        _npz_with(_npy("{'descr': '<i8', 'fortran_order': False, 'shape': (")),
        _npz_with(_npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775808,)}")),
        _npz_with(_npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846975,)}")),
        _npz_with(_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"cos\nsystem\n"),
        BY_NAME["predictions"].seeds()[0].replace(b"labels.npy", b"labels.npx"),
        BY_NAME["predictions"].seeds()[0][:60] + b"\xff" * 40 + BY_NAME["predictions"].seeds()[0][100:],
        _unsupported(BY_NAME["predictions"].seeds()[0]),
    ],
    ids=["unclosed", "beyond int64", "an exabyte", "objects", "no labels", "no deflate", "no such method"],
)
def test_predictions_that_are_no_arrays_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="cannot be read as predictions") as told:
        BY_NAME["predictions"].read(tmp_path, content)
    assert len(str(told.value)) < 600


def test_nesting_that_no_reader_of_json_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.gz").write_bytes(gzip.compress(b"[" * 4000 + b"\n"))
    with pytest.raises(HarnessError, match="its first line is no manifest's"):
        open_manifest(tmp_path / "deep.gz")
    with pytest.raises(HarnessError, match=r"manifest\.json"):
        BY_NAME["token store"].read(tmp_path, b'{"schema_version": ' + b"[" * 100_000)


def test_a_pack_that_names_half_a_character_is_refused(tmp_path: Path) -> None:
    values = json.loads(BY_NAME["pack"].seeds()[0]) | {"data_set": "\ud800"}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UnusablePack, match="damaged"):
        read_manifest(tmp_path)


def test_a_count_of_a_thousand_digits_is_refused_shortly(tmp_path: Path) -> None:
    text = BY_NAME["data set's manifest"].seeds()[0].replace(b'"images": 2', b'"images": ' + b"9" * 1000)
    (tmp_path / "many.gz").write_bytes(gzip.compress(text))
    with pytest.raises(HarnessError) as told:
        list(open_manifest(tmp_path / "many.gz").entries())
    assert len(str(told.value)) < 600


def test_a_tokenizer_without_a_codebook_size_is_planned_with_its_own(tmp_path: Path) -> None:
    whole = BY_NAME["plan"].seeds()[0]
    without = b"\n".join(line for line in whole.split(b"\n") if b"codebook_size" not in line)
    assert without != whole
    assert BY_NAME["plan"].read(tmp_path, without)


def test_a_zip_that_begins_before_its_beginning_is_refused(tmp_path: Path) -> None:
    whole = bytearray(BY_NAME["checkpoint"].seeds()[0])
    at = whole.rindex(b"PK\x06\x06")
    whole[at + 48 : at + 56] = (2**31).to_bytes(8, "little")  # where the list of members begins
    with pytest.raises(HarnessError, match="cannot be read"):
        BY_NAME["checkpoint"].read(tmp_path, bytes(whole))


# A TIFF of which a strip lies before the file's beginning.
TIFF = (
    "SUkqAAgAAAAKAAABBAABAAAACgAAAAEBBAABAAAADAAAAAIBAwADAAAAhgAAAAMBAwABAAAAAQAAAAYBAwABAAAAAgAAABEBBgAB"
    "AAAAjAAAABUBAwABAAAAAwAAABYBBAABAAAADAAAABcBBAABAAAAaAEAABwBAwABAAAAAQAAAAAAAAAIAAgACABfgsLZz+sPoyHX"
    "2YL4vRBFuOjNTqk9fQod8EITtic7BDtR3ix4ejLQThxApnlZqul/su2AcXtMm0WagvhfScC6v3/coecBK4vtv1aPB+hg70w3AEdN"
    "x9vQsJC+q2h4swDw9eZkv9h+2x+V541zEJkIedPPwwezyrqmJ7nYScT3LA5/2xY6S/ncLnmoBdkznYo4EpUUIOu5TPHWJnvP8J+S"
    "qaM6Zz31Pwdoyl4BYAfRH6jrHgKpCq6ru+KOhjo2rqUxZt5B8OCJnWUamcMzsThiGvX+dX0mSf8/xRPOVgYY+y1xKGHzrX+vPsY5"
    "88Z/hKa8pR7XgAs+sK9pObS8WpBjujsK4D6vlSIVBDOUuXWzuDtqcdjxnn2GGE4bYPUCbE8YDUdswbRffEOzBLiGebXjkqasEtJ5"
    "He+cIAaITHeYW9GlMC41rGvHT5Lt3i1BTAhmUqPWMbj5CySYQpQhgZ5ZgVa8krrCjyRBZA=="
)


def test_an_image_that_begins_before_its_beginning_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=r"image\.jpg cannot be read"):
        BY_NAME["image"].read(tmp_path, base64.b64decode(TIFF))


def test_a_codebook_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    text = re.sub(rb"(codebook_size: .value: )[0-9]+", rb'\1"<b>"', BY_NAME["plan"].seeds()[0])
    with pytest.raises(HarnessError, match="codebook_size must be"):
        BY_NAME["plan"].read(tmp_path, text)


def test_a_header_of_ten_thousand_letters_is_quoted_shortly(tmp_path: Path) -> None:
    header = _npy("{'descr': '<u2', 'fortran_order': False, 'shape': " + "9" * 9000 + "}")
    with pytest.raises(HarnessError) as told:
        BY_NAME["token store's files"].read(tmp_path, header)
    assert len(str(told.value)) < 800


def test_a_seal_is_that_of_what_was_changed() -> None:
    """The mischief reaches the reader behind the digest."""
    changed = sealed(json.dumps({"a": 1, "digest": "x"}).encode())
    assert json.loads(changed)["digest"] not in ("x", "")
    with zipfile.ZipFile(io.BytesIO(_npz_with(b"x"))) as archive:
        assert archive.testzip() is None
