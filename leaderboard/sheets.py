"""Gallery sheets on disk: a picture and the facts beside it, written by `gallery`, read for the page.

A sheet was made from one token store. It stands on a board only where that store's manifest is one that
a done record of the board names, so the page goes on saying nothing that its records do not bear out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from leaderboard.grids import clean
from leaderboard.picture_files import inlined_png, read_facts
from leaderboard.tables import Board
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, Name, NonNegativeInt, PositiveInt

GALLERY_NAME = "gallery"

Rule = Literal["random", "nearest", "farthest"]
RULES = get_args(Rule)  # in the order of the page
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=4000)]


class SheetFacts(Frozen):
    """What a sheet shows. `manifest_sha256` is that of the store's manifest.json, as records name it."""

    schema_version: Literal[1] = 1
    tokenizer: Name
    rule: Rule
    rule_in_words: Text
    seed: NonNegativeInt
    codes: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]
    images: PositiveInt
    store_digest: Sha256
    manifest_sha256: Sha256
    picture_sha256: Sha256
    alt_text: Text

    @property
    def stem(self) -> str:
        """The file name of both files, less the endings."""
        return f"{self.tokenizer}-{self.rule}"


@dataclass(frozen=True, kw_only=True)
class ShownSheet:
    """A sheet that the page shows; `source` is a data address of the whole picture."""

    facts: SheetFacts
    source: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The sheets of a board, by tokenizer and rule, and a line for each that is left out."""

    sheets: tuple[ShownSheet, ...] = ()
    left_out: tuple[str, ...] = ()


def write_sheet(folder: Path, facts: SheetFacts, picture: bytes) -> Path:
    """Put both files into `folder`, replacing those of the same tokenizer and rule; the picture's path."""
    path = folder / f"{facts.stem}.png"
    # The facts last: without them a picture is no sheet, and old ones must not stand by a new picture.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_atomically(path, picture)
    write_atomically(path.with_suffix(".json"), facts.model_dump_json(indent=1) + "\n")
    return path


def read_gallery(folder: Path, stores: Mapping[str, str]) -> Gallery:
    """The sheets in `folder` of the stores of a board: SHA-256 of the manifest -> the record's standing.

    In the order of the stores, then of the rules.
    Raises HarnessError for facts or a picture that is damaged, too large, or not the other's.
    """
    sheets, left_out = [], []
    for path in sorted(folder.glob("*.json")):
        facts = _read_facts(path)
        name = path.with_suffix(".png").name
        standing = stores.get(facts.manifest_sha256)
        if standing == "board":
            sheets.append(_shown(path.with_suffix(".png"), facts))
        else:
            reason = "no done cell of this board made" if standing is None else f"is here {clean(standing)}"
            made = f"it was made from token store {facts.store_digest[:12]}, which "
            left_out.append(f"{name} is left out: {made}{reason}.")
    order = list(stores)
    sheets.sort(key=lambda one: (order.index(one.facts.manifest_sha256), RULES.index(one.facts.rule)))
    return Gallery(sheets=tuple(sheets), left_out=tuple(left_out))


def stores_of(board: Board) -> dict[str, str]:
    """SHA-256 of a token store's manifest -> where the record that names it stands: `board` if on it."""
    if not len(board.tokenizers):
        return {}
    stores = sorted(
        zip(board.tokenizers["store"], board.tokenizers["standing"], strict=True),
        # Of two records of one store, the one on the board counts.
        key=lambda one: one[1] == "board",
    )
    return {store: standing for store, standing in stores if store}


def _remedy(path: Path) -> str:
    return f"make the sheet again with python run_benchmark.py gallery, or delete {path}"


def _read_facts(path: Path) -> SheetFacts:
    facts = read_facts(path, SheetFacts, what="a sheet", remedy=_remedy(path))
    if path.stem != facts.stem:
        raise HarnessError(f"{path} holds the facts of {facts.stem}; {_remedy(path)}")
    return facts


def _shown(path: Path, facts: SheetFacts) -> ShownSheet:
    facts_path = path.with_suffix(".json")
    source, width, height = inlined_png(
        path, facts_path=facts_path, sha256=facts.picture_sha256, remedy=_remedy(facts_path)
    )
    return ShownSheet(facts=facts, source=source, width=width, height=height)
