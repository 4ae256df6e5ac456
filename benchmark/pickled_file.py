"""Pickles in files of weights, looked through before torch reads them: which names, and how much they grow.

torch's `weights_only` runs no code of a file. But among the names that it takes are some that make any number
of bytes out of a few (`bytearray(10**10)`), and a few hundred bytes of tuples in tuples, each twice, take
longer to hash than anybody waits. Both are seen here without making anything: the stack is gone through with
what each thing weighs in the place of the thing.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from protocols.errors import HarnessError

ZIP_START = b"PK\x03\x04"
# All that torch, pickle and zipfile raise on files that are cut, altered or made up.
UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Each thing once for every time that it is named: a checkpoint of a million tensors has a hundred times less.
MOST_WEIGHT = 10**7
_STORAGE = re.compile(r"torch\.(cuda\.)?\w+Storage|torch\.storage\.(Typed|Untyped)Storage")
_DTYPE = re.compile(r"torch\.(float|bfloat|int|uint|complex|bool)\w*")
# What torch.save names around tensors, and what of it a pickle may call.
_CALLABLE = frozenset({
    "_codecs.encode", "builtins.complex", "builtins.set", "collections.Counter", "collections.OrderedDict",
    "torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
})  # fmt: skip
_OLD_FORM_PICKLES = 5  # magic number, version, system, content, names of the bytes that follow


class RefusedPickle(pickle.UnpicklingError):
    """It names or does what no file of weights needs; the text says what, as `names X` or a fault."""

    def __init__(self, fault: str, *, names: str = "") -> None:
        super().__init__(fault)
        self.names = names


def load_pickled(stream: IO[bytes], *, path: Path, remedy: str) -> Any:
    """What torch.save put into a file, as a zip archive: containers, numbers, text and tensors, on the CPU.

    Raises HarnessError, which names `path` and ends in `remedy`, for anything else.
    """
    try:
        check_members(stream)
        check_pickles(stream)
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        # An archive may ask for a place before its beginning; all else of an OSError is the disk's fault.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HarnessError(f"{path} cannot be read: {said:.200}; {remedy}") from None


def check_members(stream: IO[bytes]) -> None:
    """BadZipFile for members that would take more memory than the file's size, as torch writes none."""
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
    for member in members:
        if member.filename.endswith("/constants.pkl"):
            raise zipfile.BadZipFile("a TorchScript program, not weights")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} is compressed")
    # Two readers of zip files may disagree on which of two is meant.
    if len({member.filename.casefold() for member in members}) != len(members):
        raise zipfile.BadZipFile("two of its members have one name")
    # Members that overlap each other could be many times the file.
    if sum(member.file_size for member in members) > stream.seek(0, os.SEEK_END):
        raise zipfile.BadZipFile("its members are larger than the file")


def check_pickles(stream: IO[bytes], *, placeholders: Collection[str] = ()) -> None:
    """RefusedPickle unless every pickle in a file names and does only what files of weights need.

    `placeholders` are further names that may stand in it. Other errors are among UNREADABLE.
    """
    known = _CALLABLE.union(placeholders)
    stream.seek(0)
    is_zip = stream.read(len(ZIP_START)) == ZIP_START
    if not is_zip:
        stream.seek(0)
        for _ in range(_OLD_FORM_PICKLES):
            _Weighed(known).check(stream)
        return
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.filename.casefold().endswith(".pkl"):
                _Weighed(known).check(io.BytesIO(archive.read(member)))


@dataclass
class _Item:
    """A thing on the stack: its weight, the text or name that it is, and the texts of a short tuple."""

    weight: int = 1
    text: str = ""
    name: str = ""
    texts: tuple[str, ...] = ()


class _Weighed:
    def __init__(self, known: Collection[str]) -> None:
        self.known = known
        self.stack: list[_Item | None] = []  # None: a mark
        self.memo: dict[int, _Item] = {}

    def check(self, stream: IO[bytes]) -> None:
        """Goes through one pickle; the stream stands behind it then."""
        for opcode, argument, _ in pickletools.genops(stream):
            self._step(opcode, argument)

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name == "MARK":
            self.stack.append(None)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self._top())
        elif name == "GLOBAL":
            self._push_name(".".join(argument.split(" ", 1)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self._pop(), self._pop()
            self._check_call(called, arguments)
            self._push(called, arguments)
        elif name in ("INST", "OBJ", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            raise RefusedPickle(f"it uses {name}, which torch.save does not")
        else:
            self._other(opcode, argument)

    def _other(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """What its description says that it takes off the stack weighs together what it puts there."""
        before = [one.name for one in opcode.stack_before]
        taken: list[_Item] = []
        if "mark" in before:
            while (item := self.stack.pop()) is not None:
                taken.append(item)
            before = before[: before.index("mark")]
        taken += [self._pop() for _ in before]
        if opcode.stack_after:
            if taken:
                self._push(*reversed(taken))
            else:
                self.stack.append(_Item(text=argument if isinstance(argument, str) else ""))

    def _push_name(self, name: str) -> None:
        if name not in self.known and not _STORAGE.fullmatch(name) and not _DTYPE.fullmatch(name):
            raise RefusedPickle(f"it names {name}", names=name)
        self.stack.append(_Item(name=name))

    def _check_call(self, called: _Item, arguments: _Item) -> None:
        if called.name not in self.known:
            raise RefusedPickle(f"it calls {called.name or 'what is no function'}", names=called.name)
        # numpy's bytes are made so; other encodings can be twice as long as what they encode.
        if called.name == "_codecs.encode" and arguments.texts[1:] not in (("latin1",), ("latin-1",)):
            raise RefusedPickle("it encodes bytes in another way than torch.save")

    def _push(self, *parts: _Item) -> None:
        weight = 1 + sum(part.weight for part in parts)
        if weight > MOST_WEIGHT:
            raise RefusedPickle("it holds the same things in each other, too many times over")
        self.stack.append(_Item(weight=weight, texts=tuple(part.text for part in parts[:3])))

    def _top(self) -> _Item:
        item = self.stack[-1]
        if item is None:
            raise pickle.UnpicklingError("it puts a mark away")
        return item

    def _pop(self) -> _Item:
        item = self.stack.pop()
        if item is None:
            raise pickle.UnpicklingError("it takes what is not there")
        return item
