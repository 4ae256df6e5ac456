"""Files made to run something, to fill the memory, to hang, or to be written elsewhere: refused, shortly."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from benchmark import image_files, pickled_file
from benchmark.checkpoint import load_newest, load_weights
from benchmark.classifier_file import read_classifier
from benchmark.cli import main
from benchmark.cluster_file import load_cluster_file
from benchmark.image_files import DamagedImage, decoded
from leaderboard import predictions
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.load import MAX_FILE_BYTES
from tests.error_settings import TINY
from tests.fuzz.readers import TARGETS, restored
from tests.untrusted.poison import acting
from tests.untrusted.watching import nothing_escapes

READ = {target.name: target.read for target in TARGETS}
SEED = {target.name: target.seeds for target in TARGETS}
MOST_SECONDS, MOST_MB = 30.0, 500  # of a loaded machine; the bombs would take minutes, or tens of gigabytes


@contextmanager
def refused_shortly(
    folder: Path, match: str | None = None, error: type[Exception] = HarnessError
) -> Iterator[None]:
    """Within it a HarnessError of a few plain lines, soon, in little memory, and nothing done elsewhere."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with nothing_escapes(folder), pytest.raises(error, match=match) as told:
        yield
    assert time.monotonic() - started < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB
    text = str(told.value)
    assert len(text) <= 600 and text.count("\n") < 6 and not acting(text) and "Traceback" not in text


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
        with refused_shortly(tmp_path):
            read(tmp_path, STRANGE_YAML[kind])


ABSURD = {
    "pretraining.epochs": "1000000000000000000000000000000", "pretraining.global_batch": "1000000000000000000",
    "data.image_size": "7000000000", "trunks.vit-tiny-test.width": "1000000000000",
    "trunks.vit-tiny-test.depth": "100000000", "trunks.vit-tiny-test.heads": "1000000000",
    "data.pretraining.count": "1000000000000000", "data.test.start": "10000000000000000000000",
    "tokenizers.k-pixel.codebook_size": "1000000000000", "evaluations.finetune.epochs": "100000000000",
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
    ("merge", "{fifo}"),
    ("merge", "/dev/zero"),
    ("merge", "{sparse}"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:40].replace("\x1b", ""))
def test_strange_names_and_files_end_a_command_with_a_sentence(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with (tmp_path / "sparse.yaml").open("wb") as stream:
        stream.truncate(2**30)
    named = {name: tmp_path / f"{name}.yaml" for name in ("fifo", "folder", "sparse")}
    given = [word.format(**named) if word.startswith("{") else word for word in words]
    with nothing_escapes(tmp_path):
        code = main([*given, "--work-dir", str(tmp_path / "work")])
    text = capsys.readouterr().err
    # `merge` goes on to other bundles, and says with 1 that one was refused.
    assert code == (1 if words[0] == "merge" else 2) or "no command" in text
    assert text.startswith("error: ") and len(text) < 1000 and not acting(text)


def test_a_pipe_and_a_device_are_no_cluster_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
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
        code += b"0h%c" % level + b"h%c\x86q%c" % (level, level + 1)
    return code + b"K\x01s."


SWOLLEN = b"h\x00" * 200_000
BOMBS = {
    "os.system": _called("posix", "system", "touch evil"),
    "eval": _called("builtins", "eval", "__import__('os').system('touch evil')"),
    "getattr": _called("builtins", "getattr", "x", "y"),
    "torch.hub": _called("torch.hub", "load", "evil/evil", "evil"),
    "torch.load": _called("torch", "load", "evil"),
    "numpy": _called("numpy", "load", "evil"),
    "a program's bytes": _called("torch._C", "_import_ir_module", "evil"),
    "bytearray": _called("builtins", "bytearray", 20_000_000_000),
    "a tensor out of nothing": _called("torch", "FloatTensor", 8_000_000_000),
    "a storage out of nothing": _called("torch.storage", "UntypedStorage", 32_000_000_000),
    "doubled bytes": _called("_codecs", "encode", "ab", "hex"),
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
    assert state is not None and len(state["optimiser"]["state"]) == 120
    weighed = pickled_file._Weighed(pickled_file._CALLABLE)
    with zipfile.ZipFile(tmp_path / "step-1.pt") as archive:
        (name,) = [one for one in archive.namelist() if one.endswith("data.pkl")]
        weighed.check(io.BytesIO(archive.read(name)))


SAFETENSORS = {
    "a header of exabytes": b"\xff" * 8 + b"{}",
    "a header beyond the file": (10**9).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"evil",
    "overlapping": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
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
    monkeypatch.setattr(predictions, "MOST_UNPACKED_BYTES", 10_000_000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in predictions.ROWS:
            archive.writestr(f"{name}.npy", bytes(10_000_000))
    SEED["record"]()  # made once, in a folder of its own
    with refused_shortly(tmp_path, match="its rows take"):
        READ["predictions"](tmp_path, stream.getvalue())


# Images -------------------------------------------------------------------------------------------------


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + made


def _swollen(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind, **options)
    return stream.getvalue()


def _jpeg_of(width: int, height: int) -> bytes:
    whole = bytearray(_saved("JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


IMAGES: dict[str, Callable[[], bytes]] = {
    "a PNG of 3.6 gigapixels": lambda: _png(60_000, 60_000),
    "a PNG of 100 megapixels": lambda: _png(10_000, 10_000),
    "a JPEG of 4 gigapixels": lambda: _jpeg_of(65_500, 65_500),
    "a GIF of 4 gigapixels": lambda: b"GIF89a" + b"\xff\xff" * 2 + b"\x80\x00\x00" + bytes(6) + b";",
    "a BMP of gigapixels": lambda: _saved("BMP").replace(
        struct.pack("<ii", 8, 8), struct.pack("<ii", 90_000, 90_000)
    ),
    "a swollen profile": lambda: _png(4, 4, (b"iCCP", b"x\0\0" + _swollen(20_000_000))),
    "swollen text": lambda: _png(4, 4, *[(b"zTXt", b"x\0\0" + _swollen(900_000))] * 200),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(evil) (w) file\n%%EOF\n",
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a Photoshop file": lambda: b"8BPS\0\1" + bytes(100),
    "cut short": lambda: _saved("PNG")[:-30],
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", IMAGES)
def test_strange_images_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(IMAGES[kind]())
    for source in (path, io.BytesIO(path.read_bytes())):  # a folder's file, and a tar's member
        with refused_shortly(
            tmp_path, match=r"train/a/odd\.jpg cannot be read as an image", error=DamagedImage
        ):
            decoded(source, image_id="train/a/odd.jpg")


def test_no_picture_calls_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has it run EPS, which is a program, whatever the file is called."""
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: asked.append(given))
    Image.init()
    path = tmp_path / "evil.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with Image.open(path) as opened:
        assert opened.format == "EPS", "Pillow itself would take it"
    with refused_shortly(tmp_path, error=DamagedImage):
        decoded(path, image_id="evil.jpg")
    assert not asked


def test_frames_beyond_the_first_are_left_alone(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in range(200)]
    for kind in ("GIF", "TIFF"):
        frames[0].save(tmp_path / "many.tif", kind, save_all=True, append_images=frames[1:])
        with nothing_escapes(tmp_path):
            assert decoded(tmp_path / "many.tif", image_id="many.tif").size == (8, 8)


def test_the_largest_image_that_is_read_is_one_that_pillow_does_not_warn_of() -> None:
    assert image_files.MOST_PIXELS == Image.MAX_IMAGE_PIXELS


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    for misdeed in (
        lambda: os.system("true"),
        lambda: (tmp_path / "beside").write_text("x"),
        lambda: os.symlink("x", tmp_path / "link"),
        lambda: builtins.open(tmp_path / "opened", "wb").close(),
    ):
        with pytest.raises(AssertionError), nothing_escapes(tmp_path / "inside"):
            misdeed()
