"""Files made to run something, to fill the memory, to hang, or to be written elsewhere: refused, shortly."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import pickled_file
from benchmark.checkpoint import load_newest, load_weights
from benchmark.classifier_file import read_classifier
from benchmark.cli import main
from benchmark.cluster_file import load_cluster_file
from leaderboard import predictions
from protocols import load_protocol
from protocols.files import sha256_of_file
from protocols.load import MAX_FILE_BYTES
from tests.error_settings import TINY
from tests.fuzz.readers import TARGETS
from tests.fuzz.zips import restored
from tests.untrusted.poison import acting
from tests.untrusted.watching import nothing_escapes, refused_shortly

READ = {target.name: target.read for target in TARGETS}
SEED = {target.name: target.seeds for target in TARGETS}


# Protocols, cluster files and names ---------------------------------------------------------------------

LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + n, 97 + n, b", ".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)
)
STRANGE_YAML = {
    "a call": b"name: !!python/object/apply:os.system [touch evil]\n",
    "a name": b"name: !!python/name:os.system\n",
    "a module": b"? !!python/module:antigravity\n: x\n",
    "a billion laughs": LAUGHS,
    "itself": b"name: &a [*a]\n",
    "merged keys": b"name: {<<: &a {x: 1}}\n<<: *a\n",
    "brackets": b"name: " + b"[" * 100_000,
    "braces": b"{a: " * 100_000,
    "a digit too many": b"version: " + b"9" * 100_000 + b"\n",
    "infinity": b"version: 1e999\n",
    "not a number": b"version: .nan\n",
    "twice": b"name: a\nname: b\n",
    "zero bytes": b"name: a\x00b\n",
    "UTF-16": "name: tiny\n".encode("utf-16") + b"x",
    "half a character": b"name: \xed\xa0\x80\n",
    "binary": b"name: !!binary aGVsbG8=\n",
    "an escape sequence": b'name: tiny\nsummary: "\\x1b]0;owned\\x07"\n',
    "a long line": b"name: " + b"x" * 900_000,
    "a comment without end": b"#" * (MAX_FILE_BYTES + 1),
    "documents": b"name: a\n---\nname: b\n",
}


@pytest.mark.parametrize("kind", STRANGE_YAML)
def test_strange_yaml_is_refused(tmp_path: Path, kind: str) -> None:
    for read in (READ["plan"], READ["cluster file"]):
        with refused_shortly(tmp_path, most_lines=12):  # a line for each thing that is wrong
            read(tmp_path, STRANGE_YAML[kind])


ABSURD = {
    "pretraining.epochs": "1000000000000000000000000000000",
    "pretraining.global_batch": "1000000000000000000", "data.image_size": "7000000000",
    "trunks.vit-tiny-test.width": "1000000000000", "trunks.vit-tiny-test.depth": "100000000",
    "trunks.vit-tiny-test.heads": "1000000000", "data.pretraining.count": "1000000000000000",
    "data.test.start": "10000000000000000000000", "tokenizers.k-pixel.codebook_size": "1000000000000",
    "evaluations.finetune.epochs": "100000000000",
}  # fmt: skip


@pytest.mark.parametrize("path", ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_made(tmp_path: Path, path: str) -> None:
    from benchmark.plan import make_plan
    from benchmark.selection import select

    with refused_shortly(tmp_path, match=r"must be|at most"):
        protocol = load_protocol(str(TINY), overrides=[f"{path}={ABSURD[path]}"])
        make_plan(protocol, select(protocol))


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "..", "a/b", "tokens", "evil\\x1b[31m", "Evil", ""]
)
def test_a_protocols_name_becomes_a_folder_and_no_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "named.yaml"
    path.write_text(TINY.read_text().replace("name: tiny", f'name: "{name}"', 1))
    with refused_shortly(tmp_path, match="name"):
        load_protocol(str(path))


COMMANDS = (
    ("cell", "../../evil", "--protocol", str(TINY)),
    ("plan", "--protocol", "../../evil"),
    ("plan", "--protocol", "/dev/zero"),
    ("plan", "--protocol", "{fifo}"),
    ("plan", "--protocol", "{sparse}"),
    ("plan", "--protocol", "{folder}"),
    ("plan", "--protocol", str(TINY), "--methods", "../../evil\x1b[31m"),
    ("plan", "--protocol", str(TINY), "--tokenizers", "../../evil"),
    ("plan", "--protocol", str(TINY), "--trunks", "$(touch evil)"),
    ("plan", "--protocol", str(TINY), "--set", "pretraining.epochs=!!python/name:os.system"),
    ("plan", "--protocol", str(TINY), "--set", "pretraining.epochs=" + "[" * 5000),
    ("plan", "--protocol", str(TINY), "--set", "x" * 5000 + "=1"),
    ("merge", "{pipe}"),
    ("merge", "/dev/zero"),
    ("merge", "{holes}"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:40].replace("\x1b", ""))
def test_strange_names_and_files_end_a_command_with_a_sentence(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with (tmp_path / "sparse.yaml").open("wb") as stream:
        stream.truncate(2**30)
    os.mkfifo(tmp_path / "pipe.tar")
    os.link(tmp_path / "sparse.yaml", tmp_path / "holes.tar")
    named = {path.stem: path for path in tmp_path.iterdir()}
    given = [word.format(**named) if word.startswith("{") else word for word in words]
    with nothing_escapes(tmp_path):
        code = main([*given, "--work-dir", str(tmp_path / "work")])
    text = capsys.readouterr().err
    assert code == 2
    assert text.startswith("error: ")
    assert len(text) < 1200
    assert not acting(text)


def test_nesting_ends_before_the_file_does(tmp_path: Path) -> None:
    for read in (READ["plan"], READ["cluster file"]):
        with refused_shortly(tmp_path, match="nested more than 20 deep"):
            read(tmp_path, b"name: " + b"[" * 30 + b"]" * 30)


def test_a_device_is_no_cluster_file(tmp_path: Path) -> None:
    with refused_shortly(tmp_path, match="no file"):
        load_cluster_file(Path("/dev/zero"))


def test_a_pipe_and_a_folder_are_no_cluster_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with refused_shortly(tmp_path, match="no file"):
            load_cluster_file(path)


# Pickles and weights ------------------------------------------------------------------------------------


def _checkpoint_with(code: bytes) -> bytes:
    """A checkpoint whose pickle is `code`, in the very archive that torch writes."""
    return restored(SEED["checkpoint"]()[0], lambda name, one: code if name.endswith("data.pkl") else one)


def _called(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls module.name(*arguments)."""
    body = b"".join(pickle.dumps(one, protocol=2)[2:-1] for one in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR."


def _nested(levels: int) -> bytes:
    """{t: 1} with t = (s, s), s = (r, r) ...: some hundred bytes, and its hash takes 2 ** levels steps."""
    code = b"\x80\x02}K\x01q\x00"
    for level in range(levels):
        code += b"h%c\x86q%c" % (level, level + 1)
    return code + b"K\x01s."


BOMBS = {
    "os.system": _called("posix", "system", "touch evil"),
    "eval": _called("builtins", "eval", "__import__('os').system('touch evil')"),
    "getattr": _called("builtins", "getattr", "x", "y"),
    "torch.hub": _called("torch.hub", "load", "evil/evil", "evil"),
    "torch.load": _called("torch", "load", "evil"),
    "numpy": _called("numpy", "load", "evil"),
    "a program's bytes": _called("torch._C", "_import_ir_module", "evil"),
    "a name alone": b"\x80\x02cposix\nsystem\n.",
    "bytearray": _called("builtins", "bytearray", 1_500_000_000),
    "a tensor out of nothing": _called("torch", "FloatTensor", 400_000_000),
    "a storage out of nothing": _called("torch.storage", "UntypedStorage", 1_500_000_000),
    "bytes doubled": _called("_codecs", "encode", "ab", "hex"),
    "a hash without end": _nested(60),
    "an address": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("reader", ["checkpoint", "classifier"])
def test_a_pickle_runs_nothing_and_takes_no_room(tmp_path: Path, reader: str, kind: str) -> None:
    with refused_shortly(tmp_path):
        READ[reader](tmp_path, _checkpoint_with(BOMBS[kind]))


@pytest.mark.parametrize("kind", [kind for kind in BOMBS if kind != "nothing"])
def test_what_a_pickle_would_do_is_seen_before_anything_is_made(kind: str) -> None:
    with pytest.raises(pickled_file.RefusedPickle):
        pickled_file._Weighed(pickled_file._CALLABLE).check(io.BytesIO(BOMBS[kind]))


def test_a_pickle_that_nobody_looked_through_still_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guards, each of which is enough: torch's own is the second."""
    monkeypatch.setattr(pickled_file, "check_pickles", lambda *_, **__: None)
    with refused_shortly(tmp_path):
        READ["checkpoint"](tmp_path, _checkpoint_with(BOMBS["os.system"]))


def test_the_old_form_is_looked_through_as_well(tmp_path: Path) -> None:
    """Before version 1.6 a file was pickles one after another."""
    whole = SEED["classifier"]()[1]
    start = b"".join(pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    for kind in ("os.system", "bytearray", "a hash without end"):
        with refused_shortly(tmp_path):
            READ["classifier"](tmp_path, start + BOMBS[kind] + whole[-200:])


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pt"
    torch.save({"state_dict": {"head.weight": torch.ones(1).expand(10**12)}}, path)
    with refused_shortly(tmp_path, match="larger than the whole file"):
        read_classifier(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two readers of zip files may take different ones: what was looked through would not be what is read."""
    stream = io.BytesIO(SEED["checkpoint"]()[0])
    with zipfile.ZipFile(stream, "a") as archive:
        name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
        archive.writestr(name.upper(), BOMBS["os.system"])
    with refused_shortly(tmp_path, match="two of its members have one name"):
        READ["checkpoint"](tmp_path, stream.getvalue())


def test_a_checkpoint_that_swells_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(5_000_000))
    with refused_shortly(tmp_path, match="is compressed"):
        READ["checkpoint"](tmp_path, stream.getvalue())


def test_what_the_harness_writes_itself_is_light(tmp_path: Path) -> None:
    """The limit is far from anything that torch.save makes of weights and an optimiser's state."""
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(60)])
    moments = {at: {"step": torch.ones(()), "exp_avg": one} for at, one in enumerate(model.parameters())}
    optimiser = {
        "state": moments,
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": list(moments)}],
    }
    torch.save({"step": 1, "model": model.state_dict(), "optimiser": optimiser}, tmp_path / "step-1.pt")
    (tmp_path / "step-1.sha256").write_text(sha256_of_file(tmp_path / "step-1.pt"))
    state = load_newest(tmp_path)
    assert state is not None
    assert len(state["optimiser"]["state"]) == 120
    weighed = pickled_file._Weighed(pickled_file._CALLABLE)
    with zipfile.ZipFile(tmp_path / "step-1.pt") as archive:
        (name,) = [one for one in archive.namelist() if one.endswith("data.pkl")]
        weighed.check(io.BytesIO(archive.read(name)))


SAFETENSORS = {
    "a header of exabytes": b"\xff" * 8 + b"{}",
    "a header beyond the file": (10**9).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"evil",
    "overlapping": b'{"a":%s,"b":%s}' % ((b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',) * 2),
    "beyond the end": b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
    "more than its bytes": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}',
    "backwards": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
    "escape sequences": b'{"\\u001b[31m":{"dtype":"\\u001b[2J","shape":[2],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_strange_safetensors_are_refused(tmp_path: Path, kind: str) -> None:
    content = SAFETENSORS[kind]
    whole = len(content).to_bytes(8, "little") + content + bytes(8) if content.startswith(b"{") else content
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(whole)
    with refused_shortly(tmp_path, match="cannot be read as safetensors"):
        load_weights(path, digest=sha256_of_file(path))
    with refused_shortly(tmp_path, match="cannot be read as safetensors"):
        read_classifier(path)


def test_predictions_that_swell_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MOST_UNPACKED_BYTES", 1_000_000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in predictions.ROWS:
            archive.writestr(f"{name}.npy", bytes(1_000_000))
    SEED["record"]()  # made once, in a folder of its own
    with refused_shortly(tmp_path, match="its rows take"):
        READ["predictions"](tmp_path, stream.getvalue())


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    for misdeed in (
        lambda: os.system("true"),
        lambda: (tmp_path / "beside").write_text("x"),
        lambda: os.symlink("x", tmp_path / "link"),
        lambda: builtins.open(tmp_path / "opened", "wb").close(),
    ):
        with pytest.raises(AssertionError), nothing_escapes(tmp_path / "inside"):
            misdeed()
