"""Which cells were merged from a bundle: `origin.json` beside a record that was not made in this work dir."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from leaderboard.record import RECORD_NAME
from protocols.errors import HarnessError
from protocols.frozen import Frozen, digest_of

ORIGIN_NAME = "origin.json"
MAX_ORIGIN_BYTES = 64 * 1024
MOST_NAMED = 5
MOST_PASSED = 100
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PassedThrough = Annotated[tuple[Sha256, ...], Field(strict=False, max_length=MOST_PASSED)]


class Origin(Frozen):
    """Where a merged cell comes from.

    bundle, bundle_sha256   the bundle's file name and digest
    harness, commit         what wrote the bundle; `+changes` where its files differed from the commit
    merged                  when it was merged here, ISO 8601 UTC
    record_digest           of the record that it speaks of: one that was made here since has no origin
    passed_through          digests of bundles that the cell had come through before, first to last; of very
                            many the last
    """

    bundle: str
    bundle_sha256: Sha256
    harness: str
    commit: str
    merged: str
    record_digest: Sha256
    passed_through: PassedThrough = ()

    def text(self) -> bytes:
        """What stands in the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def record_digest(content: bytes) -> str:
    """Of a record's file, but for its compliance, which a run may set to clean (benchmark/execute.py).

    Nor of the record's own digest, which changes with it. ValueError if it is not JSON.
    """
    values = json.loads(content)
    return digest_of({name: one for name, one in values.items() if name not in ("compliance", "digest")})


def read_origin(cell_dir: Path) -> Origin | None:
    """Where the record in `cell_dir` comes from; None if it was made here.

    Raises HarnessError if the file is damaged.
    """
    path = cell_dir / ORIGIN_NAME
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_ORIGIN_BYTES + 1)
        record = (cell_dir / RECORD_NAME).read_bytes()
    except FileNotFoundError:
        return None
    try:
        origin = Origin.model_validate_json(content)
        return origin if record_digest(record) == origin.record_digest else None
    except (ValidationError, ValueError, AttributeError):
        raise HarnessError(
            f"{path} or the record beside it is damaged; delete the folder {cell_dir} and merge the bundle "
            "that it came from again"
        ) from None


def origins(work_dir: Path, protocol: str) -> dict[str, Origin]:
    """Cell id -> origin, of every cell under WORK_DIR/PROTOCOL/cells that was merged, by cell id.

    Raises HarnessError for a damaged one.
    """
    folders = sorted(path.parent for path in (work_dir / protocol / "cells").glob(f"*/{ORIGIN_NAME}"))
    found = {folder.name: read_origin(folder) for folder in folders}
    return {cell_id: origin for cell_id, origin in found.items() if origin is not None}


def origin_notes(merged: Mapping[str, Origin]) -> tuple[str, ...]:
    """One sentence for each bundle that cells were merged from, for a page's notes; it names a few cells."""
    bundles: dict[tuple[str, str, str], list[str]] = {}
    for cell_id, origin in merged.items():
        bundles.setdefault((origin.bundle, origin.bundle_sha256, origin.commit), []).append(cell_id)
    return tuple(
        f"Not made here but merged from {bundle} (SHA-256 {digest[:12]}..., written by commit "
        f"{commit[:12]}{'+changes' if commit.endswith('+changes') else ''}): {_named(cells)}"
        for (bundle, digest, commit), cells in sorted(bundles.items())
    )


def _named(cells: list[str]) -> str:
    shown = ", ".join(sorted(cells)[:MOST_NAMED])
    more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
    return f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, {shown}{more}"
