"""Pictures of the objectives on disk: written by `patterns` with the facts beside them, read for the page.

A picture was made from the code and the protocol of its day. It stands on a page only as long as the parts of
the protocol that it shows, and the code of its methods, are what they were. Of the two files of a picture the
page takes the PNG: a drawing that was read from disk could hold anything, and PNG shows nothing but pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from leaderboard.grids import clean
from leaderboard.picture_files import inlined_png, read_facts
from leaderboard.sections import Figure
from leaderboard.sheets import Sha256, Text
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, Name, NonNegativeInt, PositiveInt
from protocols.schema import Protocol

PATTERNS_NAME = "patterns"
Kind = Literal["objectives", "attention"]
KINDS = get_args(Kind)  # in the order of the page; also the stems of the files


class PatternFacts(Frozen):
    """What a picture shows, and what it was made from.

    `slices` are the parts of the protocol that it depends on, name -> digest; `sources` the methods' code.
    """

    schema_version: Literal[1] = 1
    kind: Kind
    protocol: Name
    protocol_version: PositiveInt
    protocol_digest: Sha256
    slices: dict[str, Sha256]
    sources: dict[Name, Sha256]
    trunk: Name
    data_set: Text
    image_id: Text
    sample_id: NonNegativeInt
    epoch: NonNegativeInt
    seed: NonNegativeInt
    picture_sha256: Sha256
    alt_text: Text
    caption: Text

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it shows."""
        return tuple(self.sources)


@dataclass(frozen=True, kw_only=True)
class PatternSheet:
    """A picture that the page shows; `source` is a data address of the whole of it."""

    facts: PatternFacts
    source: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class PatternSheets:
    """The pictures of a protocol, and a line for each that is left out."""

    sheets: tuple[PatternSheet, ...] = ()
    left_out: tuple[str, ...] = ()


def shown_slices(protocol: Protocol, methods: Sequence[str], trunk: str) -> tuple[str, ...]:
    """The slices of `protocol` that a picture of `methods` on `trunk` depends on."""
    return ("data", f"trunk:{trunk}", *(f"method:{protocol.method_key(name, trunk)}" for name in methods))


def write_pattern(folder: Path, facts: PatternFacts, figure: Figure) -> tuple[Path, ...]:
    """Put SVG, PNG and facts into `folder`, in the place of earlier ones of that kind; the paths."""
    path = folder / f"{facts.kind}.json"
    # The facts last: without them a picture is none of the page's.
    path.unlink(missing_ok=True)
    write_atomically(path.with_suffix(".svg"), figure.svg)
    write_atomically(path.with_suffix(".png"), figure.png)
    write_atomically(path, facts.model_dump_json(indent=1) + "\n")
    return (path.with_suffix(".png"), path.with_suffix(".svg"), path)


def read_patterns(
    folder: Path, protocol: Protocol, sources: Mapping[str, str] | None = None
) -> PatternSheets:
    """The pictures in `folder` that still show `protocol` and the present code, in the order of KINDS.

    `sources` maps `method:NAME` to the digest of its present code; what it lacks is not judged.
    Raises HarnessError for facts or a picture that is damaged, too large, or not the other's.
    """
    sheets, left_out = [], []
    for kind in KINDS:
        path = folder / f"{kind}.json"
        if not path.exists():
            continue
        facts = _read_facts(path, kind)
        reason = _why_stale(facts, protocol, sources or {})
        if reason:
            left_out.append(
                f"{kind}.png is left out: {reason}; python run_benchmark.py patterns --protocol "
                f"{protocol.name} draws it again."
            )
        else:
            sheets.append(_shown(path, facts))
    return PatternSheets(sheets=tuple(sheets), left_out=tuple(left_out))


def _why_stale(facts: PatternFacts, protocol: Protocol, sources: Mapping[str, str]) -> str:
    """Empty if the picture is still true."""
    if facts.trunk not in protocol.trunks:
        return f"the protocol has no trunk {clean(facts.trunk)} any more"
    gone = [name for name in facts.methods if name not in protocol.names("methods")]
    if gone:
        return f"the protocol has no method {clean(gone[0])} any more"
    present = protocol.slices
    wanted = shown_slices(protocol, facts.methods, facts.trunk)
    changed = sorted(name for name in {*wanted, *facts.slices} if facts.slices.get(name) != present.get(name))
    if changed:
        return f"{', '.join(map(clean, changed))} of the protocol changed since"
    rewritten = [
        name
        for name, digest in facts.sources.items()
        if sources.get(f"method:{name}") and sources[f"method:{name}"] != digest
    ]
    return f"the code of {', '.join(map(clean, rewritten))} changed since" if rewritten else ""


def _remedy(path: Path) -> str:
    return f"draw it again with python run_benchmark.py patterns, or delete {path}"


def _read_facts(path: Path, kind: str) -> PatternFacts:
    facts = read_facts(path, PatternFacts, what="a picture", remedy=_remedy(path))
    if facts.kind != kind:
        raise HarnessError(f"{path} holds the facts of {facts.kind}; {_remedy(path)}")
    return facts


def _shown(facts_path: Path, facts: PatternFacts) -> PatternSheet:
    source, width, height = inlined_png(
        facts_path.with_suffix(".png"),
        facts_path=facts_path,
        sha256=facts.picture_sha256,
        remedy=_remedy(facts_path),
    )
    return PatternSheet(facts=facts, source=source, width=width, height=height)
