"""Mischief inside containers: zip archives, the pickles and arrays in them, and the header of safetensors."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations import BYTES, json_values


def restored(content: bytes, changed: Callable[[str, bytes], bytes] = lambda _, one: one) -> bytes:
    """A zip archive written anew, nothing compressed and every checksum right, its members `changed`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, changed(member.filename, old.read(member)))
    return stream.getvalue()


def zip_members(random: Random, content: bytes) -> bytes:
    """A zip archive with one member changed and its checksums right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
        chosen = random.choice([*names, *[name for name in names if name.endswith("data.pkl")] * 6])
        mutate = pickle_codes if chosen.endswith(".pkl") else random.choice(BYTES)
        return restored(content, lambda name, one: mutate(random, one) if name == chosen else one)
    except Exception:  # whatever a damaged archive raises: it is left as it is
        return content


def pickle_codes(random: Random, content: bytes) -> bytes:
    """Instructions put into a pickle, or its bytes changed."""
    if random.random() < 0.4:
        return random.choice(BYTES)(random, content)
    at = random.randrange(2, max(3, len(content)))
    return content[:at] + random.choice(_CODES) + content[at:]


_CODES = (
    b"R", b"b", b"Q", b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"]", b"}", b")", b"N", b"\x81", b"\x85",
    b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"h\x00", b"h\x01", b"q\x00", b"q\x05", b"K\xff",
    b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", b"X\x01\x00\x00\x00x", b"X\xff\xff\xff\x7f",
    b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01", b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"cbuiltins\nbytearray\n", b"ctorch\nTensor\n", b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch\ndevice\n", b"c_codecs\nencode\n",
    b"cbuiltins\nset\n", b"c__main__\nx\n", b"\x93", b"G" + struct.pack(">d", 1e308), b".", b"\x80\x04",
    b"\x95" + b"\xff" * 8, b"\x94", b"I9" + b"9" * 50 + b"\n",
)  # fmt: skip


def npz_bytes(random: Random, content: bytes) -> bytes:
    """An .npz with one array's header or bytes changed."""
    if random.random() < 0.2:
        return random.choice(BYTES)(random, content)
    return zip_members(random, content)


def safetensors_header(random: Random, content: bytes) -> bytes:
    """The header of safetensors with one value changed, and its length right."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content):
        return content
    header = json_values(random, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
