"""A gallery sheet of one token store: which codes and patches, cut out of the images, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.code_patches import (
    MOST_SAMPLED,
    Pair,
    Patch,
    check_codes,
    code_counts,
    draw_codes,
    draw_patches,
    farthest,
    nearest_of,
    nearest_pairs,
)
from benchmark.image_part import ImagePart
from benchmark.patch_tiles import patch_tile
from benchmark.stage import CellContext
from benchmark.verification import load_tokenizer
from leaderboard.gallery import Row, Sheet, Strip, Tile
from leaderboard.record import Record
from protocols.errors import HarnessError
from tokenizers.base import Tokenizer
from tokenizers.store import MANIFEST_NAME, TokenStore

TITLES = {"random": "random codes", "nearest": "nearest codes", "farthest": "farthest patches"}
BATCH = 16
# On another kind of device a patch that lies as near to a second code may change sides; not many do.
MOST_DIFFERING = 0.05
_AT_RANDOM = "patches drawn at random among all that carry it"
_SPACE = "Distances are Euclidean, in the space in which tokens are chosen."


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to show: a rule of TITLES, `count` codes (or pairs) unless `codes` names them."""

    rule: str
    codes: tuple[int, ...] | None
    count: int
    patches: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open store beside the images that it was made from, and the record that names it."""

    context: CellContext
    record: Record
    store: TokenStore
    images: ImagePart

    @property
    def name(self) -> str:
        """The tokenizer's."""
        return self.store.manifest.tokenizer.name

    def tokenizer(self) -> Tokenizer:
        """The fitted tokenizer that made the store, from the folder that the record names."""
        (path,) = [path for path in self.record.artefacts if path.endswith(f"/{MANIFEST_NAME}")]
        return load_tokenizer(
            self.store,
            (self.context.work_dir / path).parent,
            data_root=self.context.data_root,
            device=self.context.runtime.device,
        )

    def positions(self, rows: Sequence[int]) -> dict[int, int]:
        """Row of the store -> position among the images, found by image id."""
        row_of = {self.store.image_ids[row]: row for row in rows}
        positions = {
            row_of[image_id]: position
            for position, image_id in enumerate(self.images.image_ids)
            if image_id in row_of
        }
        for image_id, row in row_of.items():
            if row not in positions:
                raise HarnessError(
                    f"the token store of {self.name} holds image {image_id!r}, which data set "
                    f"{self.images.data_set} does not; give the --data-root that was tokenised"
                )
        return positions


def make_sheet(source: Source, request: Request) -> Sheet:
    """The sheet that `request` asks for: the same for the same store and request.

    Raises HarnessError for a code that is not in use, for rules that need a codebook where there is none,
    and if the images or the tokenizer are not those of the store.
    """
    counts = code_counts(source.store)
    chosen = None
    if request.codes is not None:
        chosen = check_codes(request.codes, counts, tokenizer=source.name)
    return Sheet(
        tokenizer=source.name,
        title="chosen codes" if chosen and request.rule == "random" else TITLES[request.rule],
        rule_in_words=rule_in_words(request.rule, is_chosen=chosen is not None),
        seed=request.seed,
        images=len(source.store),
        store_digest=source.store.digest,
        rows=_MAKERS[request.rule](source, request, counts, chosen),
    )


def rule_in_words(rule: str, *, is_chosen: bool) -> str:
    """How the codes and patches of a sheet were chosen. `is_chosen`: the codes were named, not drawn."""
    drawn = "Codes chosen by hand" if is_chosen else "Codes drawn at random among those in use"
    if rule == "random":
        return f"{drawn}; of each, {_AT_RANDOM}."
    if rule == "nearest":
        which = (
            "The pairs of codes in use whose rows in the codebook lie nearest to each other, nearest first"
        )
        if is_chosen:
            which = "Codes chosen by hand, each beside the code in use whose row in the codebook lies nearest"
        return f"{which}; of each code, {_AT_RANDOM}. {_SPACE}"
    return (
        f"{drawn}; of each, the patches farthest from its row in the codebook, farthest first, among at most "
        f"{MOST_SAMPLED} drawn at random of those that carry it, and that get it again when encoded. {_SPACE}"
    )


Counts = NDArray[np.int64]
Chosen = tuple[int, ...] | None


def _random(source: Source, request: Request, counts: Counts, chosen: Chosen) -> tuple[Row, ...]:
    codes = chosen or draw_codes(counts, count=request.count, seed=request.seed)
    patches = draw_patches(source.store, counts, codes, most=request.patches, seed=request.seed)
    strips = _strips(source, counts, patches, {})
    return tuple(Row(strips=(strips[code],)) for code in codes)


def _nearest(source: Source, request: Request, counts: Counts, chosen: Chosen) -> tuple[Row, ...]:
    rows_KC = source.tokenizer().codebook_rows().numpy()
    used = np.flatnonzero(counts)
    pairs: list[Pair] = (
        nearest_pairs(rows_KC, used, count=request.count)
        if chosen is None
        else nearest_of(rows_KC, used, chosen)
    )
    codes = sorted({code for pair in pairs for code in (pair.first, pair.second)})
    patches = draw_patches(source.store, counts, codes, most=request.patches, seed=request.seed)
    strips = _strips(source, counts, patches, {})
    return tuple(
        Row(strips=(strips[pair.first], strips[pair.second]), distance=pair.distance) for pair in pairs
    )


def _farthest(source: Source, request: Request, counts: Counts, chosen: Chosen) -> tuple[Row, ...]:
    codes = chosen or draw_codes(counts, count=request.count, seed=request.seed)
    tokenizer = source.tokenizer()
    tokenizer.codebook_rows()  # before an image is read: one without them has no distances either
    sampled = draw_patches(source.store, counts, codes, most=MOST_SAMPLED, seed=request.seed)
    positions = source.positions(_rows_of(sampled))
    shown: dict[int, tuple[Patch, ...]] = {}
    distances: dict[Patch, float] = {}
    for code in codes:
        measured = _distances(source, tokenizer, code, sampled[code], positions)
        ordered = farthest(measured, most=request.patches)
        shown[code] = tuple(patch for patch, _ in ordered)
        distances |= dict(ordered)
    strips = _strips(source, counts, shown, distances)
    return tuple(Row(strips=(strips[code],)) for code in codes)


_MAKERS = {"random": _random, "nearest": _nearest, "farthest": _farthest}


def _distances(
    source: Source, tokenizer: Tokenizer, code: int, patches: Sequence[Patch], positions: Mapping[int, int]
) -> dict[Patch, float]:
    """Each patch's distance to the row of `code`; HarnessError if it is no longer the token of many."""
    distances: dict[Patch, float] = {}
    of_row: dict[int, list[Patch]] = {}
    for patch in patches:
        of_row.setdefault(patch.row, []).append(patch)
    rows = list(of_row)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        images = torch.stack([tokenizer.transform(source.images.image(positions[row])) for row in some])
        distances_BN, tokens_BN = tokenizer.distances(images), tokenizer.encode(images)
        for place, row in enumerate(some):
            for patch in of_row[row]:
                if int(tokens_BN[place, patch.position]) == code:
                    distances[patch] = float(distances_BN[place, patch.position])
    if len(distances) < (1 - MOST_DIFFERING) * len(patches):
        raise HarnessError(
            f"{len(patches) - len(distances)} of {len(patches)} patches that carry code {code} in the token "
            f"store of {source.name} get another token now: its images have changed; tokenise them again"
        )
    return distances


def _strips(
    source: Source,
    counts: Counts,
    patches: Mapping[int, Sequence[Patch]],
    distances: Mapping[Patch, float],
) -> dict[int, Strip]:
    """The strip of each code; only the images of these patches are read."""
    positions = source.positions(_rows_of(patches))

    def tile(patch: Patch) -> Tile:
        image = source.images.image(positions[patch.row])
        pixels = patch_tile(image, grid=source.store.grid, position=patch.position)
        return Tile(pixels=pixels, distance=distances.get(patch))

    return {
        code: Strip(code=code, carriers=int(counts[code]), tiles=tuple(map(tile, carrying)))
        for code, carrying in patches.items()
    }


def _rows_of(patches: Mapping[int, Sequence[Patch]]) -> list[int]:
    return sorted({patch.row for carrying in patches.values() for patch in carrying})
