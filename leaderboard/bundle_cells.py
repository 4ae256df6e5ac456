"""What must hold of a bundled cell: the same checks before it is written and before it is merged."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib import format as npy
from pydantic import ValidationError

from leaderboard.bundle import MAX_MEMBER_BYTES, METRICS_NAME, WEIGHTS_NAME
from leaderboard.cards import CARD_NAME
from leaderboard.origins import record_digest
from leaderboard.predictions import predictions_of
from leaderboard.record import MAX_RECORD_BYTES, PREDICTIONS_NAME, RECORD_NAME, Record, digest_fault
from protocols.errors import HarnessError
from protocols.frozen import digest_of

# None: what the id is a hash of is not all in the record, and nothing is said.
IdsOf = Callable[[Record], Collection[str] | None]
MOST_UNPACKED_BYTES = 16 * MAX_MEMBER_BYTES
_CHUNK = 1024**2
# Two parts or more, so that a rate (images/s) is none; of an address the scheme's slashes are none either.
_ABSOLUTE_PATH = re.compile(rb"(?<![\w.:/-])/(?:[\w.@+-]+/)+[\w.@+-]*")


def check_cell(
    cell_id: str,
    *,
    protocol: str,
    names: Collection[str],
    read: Callable[[str], bytes],
    sha256_of: Callable[[str], str],
    ids_of: IdsOf,
) -> Record:
    """The record of the cell whose files `names` are, once all of them agree.

    `read` gives a file's bytes by its name, and `sha256_of` the digest that its bytes have, or must have to
    be taken; `ids_of` the ids that the cell of a record may have. Raises HarnessError with what does not
    match.
    """
    if RECORD_NAME not in names:
        raise HarnessError(f"it has no {RECORD_NAME}")
    content = read(RECORD_NAME)
    if len(content) > MAX_RECORD_BYTES:
        raise HarnessError(f"{RECORD_NAME}: {len(content):,} bytes is too large for a record")
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise HarnessError(f"{RECORD_NAME}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if record.cell_id != cell_id:
        raise HarnessError(f"{RECORD_NAME} is that of {record.cell_id!r}")
    if record.protocol.name != protocol:
        raise HarnessError(f"{RECORD_NAME} is of protocol {record.protocol.name!r}, not {protocol!r}")
    if record.status == "skipped":
        raise HarnessError(f"{RECORD_NAME}: the cell was skipped, and holds nothing")
    try:
        _check_values(record, ids_of)
        record_digest(content)  # values of any kind may not be numbers that JSON has
    except HarnessError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise HarnessError(f"{RECORD_NAME} holds values that no protocol can hold ({error})") from None
    fault = digest_fault(record, content)
    if fault:
        raise HarnessError(f"{RECORD_NAME} {fault}")
    _check_artefacts(record)
    if (PREDICTIONS_NAME in record.artefacts) != (PREDICTIONS_NAME in names):
        raise HarnessError(
            f"{RECORD_NAME} names {PREDICTIONS_NAME}, which is not there"
            if PREDICTIONS_NAME in record.artefacts
            else f"{PREDICTIONS_NAME} is there, and {RECORD_NAME} does not name it"
        )
    if PREDICTIONS_NAME in names:
        predictions = read(PREDICTIONS_NAME)
        _check_archive(predictions)
        predictions_of(predictions, record, path=Path(PREDICTIONS_NAME), remedy="it cannot be used")
    elif "top1_percent" in record.metrics:
        raise HarnessError(f"{RECORD_NAME} states an accuracy without the predictions that it comes from")
    for name in {METRICS_NAME, CARD_NAME}.intersection(names):
        try:
            read(name).decode()
        except UnicodeDecodeError as error:
            raise HarnessError(f"{name} is no text: {error}") from None
    if WEIGHTS_NAME in names and record.artefacts.get(WEIGHTS_NAME) != sha256_of(WEIGHTS_NAME):
        raise HarnessError(
            f"{WEIGHTS_NAME}: SHA-256 {sha256_of(WEIGHTS_NAME)}, {RECORD_NAME} names "
            f"{record.artefacts.get(WEIGHTS_NAME, 'no such file')}"
        )
    return record


def check_parents(record: Record, parent: Callable[[str], Record | None]) -> None:
    """HarnessError unless each parent of `record` is done, with the very files that it was made from."""
    for cell_id, digest in sorted(record.parents.items()):
        known = parent(cell_id)
        if known is None:
            raise HarnessError(f"its parent {cell_id} is not there, or was refused")
        if known.status != "done" or known.artefact_digest != digest:
            raise HarnessError(
                f"it was made from another {cell_id}: digest {digest}, and the one here has "
                + (known.artefact_digest if known.status == "done" else f"none, for it {known.status}")
            )


def names_a_folder(content: bytes) -> str:
    """The first absolute path in a text, which would tell of somebody's machine; empty if there is none."""
    found = _ABSOLUTE_PATH.search(content)
    return found.group().decode(errors="replace") if found else ""


def _check_values(record: Record, ids_of: IdsOf) -> None:
    """Each slice's digest is that of its values, and the cell's id that of all that moves its numbers."""
    for name, digest in sorted(record.protocol.slices.items()):
        if name not in record.resolved:
            raise HarnessError(f"{RECORD_NAME}: resolved lacks the values of its slice {name!r}")
        found = digest_of(record.resolved[name])
        if found != digest:
            raise HarnessError(
                f"{RECORD_NAME}: the values of slice {name!r} have digest {found}, it names {digest}"
            )
    ids = ids_of(record)
    if ids is not None and record.cell_id not in ids:
        raise HarnessError(
            f"{RECORD_NAME}: its values are those of {' or '.join(sorted(ids))}, as this harness names cells;"
            " use the commit that the record names, or ask for the record as it was"
        )


def _check_artefacts(record: Record) -> None:
    for name, digest in record.artefacts.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not name:
            raise HarnessError(f"{RECORD_NAME}: artefact {name!r} leads out of the cell")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise HarnessError(f"{RECORD_NAME}: {digest!r} of artefact {name!r} is no SHA-256")


def _check_archive(content: bytes) -> None:
    """HarnessError unless the arrays of an .npz are as large as they say, and not too large to read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > MOST_UNPACKED_BYTES or len({one.filename for one in members}) != len(members):
                raise HarnessError(
                    f"{PREDICTIONS_NAME} holds {total:,} bytes in {len(members)} arrays: too much, or one "
                    "of them twice"
                )
            for member in members:
                with archive.open(member) as stream:
                    shape, dtype = _npy_header(stream)
                    stated = stream.tell() + prod(shape) * dtype.itemsize
                    while stream.read(_CHUNK):
                        pass  # a damaged one does not decompress, or not to its own checksum
                if dtype.hasobject or stated != member.file_size:
                    raise HarnessError(f"{PREDICTIONS_NAME}: {member.filename!r} is not as long as it says")
    except HarnessError:
        raise
    except Exception as error:
        # Whatever a reader of damaged bytes raises: zipfile and numpy promise no one kind of error.
        raise HarnessError(f"{PREDICTIONS_NAME} cannot be read ({error})") from None


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that follows; the stream stands at its first byte then."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = readers[npy.read_magic(stream)](stream)
    return shape, dtype
