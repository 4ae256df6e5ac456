"""Sheets of codes: the picture, the files beside each other, and which of them the page shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leaderboard.gallery import Row, Sheet, Strip, Tile, alt_text, draw_sheet
from leaderboard.report import write_report
from leaderboard.sheets import SheetFacts, write_sheet
from protocols.errors import HarnessError

MANIFEST, OTHER = "a" * 64, "b" * 64
SIDE = 120


def sheet(*, pairs: bool = False, patches: int = 8, distance: float | None = None, **more: Any) -> Sheet:
    """Three rows of single codes, or of pairs; every tile of one grey, rare codes with fewer tiles."""

    def strip(code: int, count: int) -> Strip:
        tiles = [
            Tile(pixels=np.full((SIDE, SIDE, 3), 20 * code + number, np.uint8), distance=distance)
            for number in range(count)
        ]
        return Strip(code=code, carriers=1000 * count, tiles=tuple(tiles))

    rows = [
        Row(strips=(strip(one, patches), strip(one + 1, 1)), distance=0.125)
        if pairs
        else Row(strips=(strip(one, patches if one else 1),))
        for one in (0, 2, 4)
    ]
    given = {
        "tokenizer": "k-pixel", "title": "random codes", "rule_in_words": "Codes drawn at random.", "seed": 3,
        "images": 6000, "store_digest": "0123456789abcdef" * 4, "rows": tuple(rows),
    }  # fmt: skip
    return Sheet(**(given | more))


def pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).copy()


class TestPicture:
    def test_it_is_as_wide_as_its_tiles_and_the_same_every_time(self) -> None:
        picture = draw_sheet(sheet())
        # Eight tiles with seven gaps of 8, and a margin of 24 on either side.
        assert pixels(picture).shape[1] == 8 * SIDE + 7 * 8 + 2 * 24
        assert draw_sheet(sheet()) == picture
        with Image.open(io.BytesIO(picture)) as image:
            assert not {"Software", "Creation Time", "Date"} & set(image.info)
        assert draw_sheet(sheet(seed=4)) != picture

    def test_a_row_more_makes_it_higher_by_a_row(self) -> None:
        three = sheet()
        two = sheet(rows=three.rows[:2])
        assert len(pixels(draw_sheet(three))) - len(pixels(draw_sheet(two))) == 24 + SIDE + 20
        captioned = sheet(distance=1.5)
        higher = len(pixels(draw_sheet(captioned))) - len(pixels(draw_sheet(three)))
        assert higher == 3 * 20

    def test_tiles_are_pasted_pixel_by_pixel_and_the_patch_is_framed(self) -> None:
        shown = pixels(draw_sheet(sheet()))
        top = len(shown) - 20 - SIDE + 10  # within the last row's first tile, of grey 80
        assert (shown[top, 24 : 24 + SIDE] == 80).all()
        assert (shown[top, 24 + SIDE + 8 : 24 + 2 * SIDE + 8] == 81).all()
        assert (shown[top, 24 + SIDE : 24 + SIDE + 8] == 255).all()
        middle = len(shown) - 20 - SIDE // 2
        row = shown[middle, 24 : 24 + SIDE].astype(int)
        coloured = np.flatnonzero(row[:, 0] - row[:, 2] > 60)
        assert len(coloured)
        assert all(min(abs(x - 40), abs(x - 80)) <= 2 for x in coloured)
        assert (row[45:75] == 80).all()

    def test_texts_stay_within_it(self) -> None:
        """The outermost pixels are white, whatever the texts: nothing was cut at the edge."""
        long = {
            "tokenizer": "k" * 64, "rule_in_words": "Patches that carry a code are shown as they are. " * 9,
            "images": 1_281_167, "distance": 123456.7,
        }  # fmt: skip
        for one in (sheet(patches=1, **long), sheet(pairs=True, patches=1, **long), sheet(**long)):
            shown = pixels(draw_sheet(one))
            for edge in (shown[:, :8], shown[:, -8:], shown[:8], shown[-8:]):
                assert (edge == 255).all()

    def test_text_is_drawn_as_it_is(self) -> None:
        odd = draw_sheet(sheet(rule_in_words="$x^2$ costs 5$ and_so_on \\frac"))
        assert odd != draw_sheet(sheet())

    def test_it_is_told_in_words(self) -> None:
        assert "codes: 0, 2, 4." in alt_text(sheet())
        assert "pairs of codes: 0 and 1, 2 and 3, 4 and 5." in alt_text(sheet(pairs=True))


@cache
def drawn() -> bytes:
    """One picture for all tests to which its content is all the same."""
    return draw_sheet(sheet())


def facts(picture: bytes, **more: Any) -> SheetFacts:
    given = {
        "tokenizer": "k-pixel", "rule": "random", "rule_in_words": "Codes drawn at random.", "seed": 3,
        "codes": (0, 2, 4), "images": 6000, "store_digest": "0123456789abcdef" * 4,
        "manifest_sha256": MANIFEST, "picture_sha256": hashlib.sha256(picture).hexdigest(),
        "alt_text": "Patches by code.",
    }  # fmt: skip
    return SheetFacts(**(given | more))


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


@pytest.fixture
def board(campaign: Any) -> Any:
    """One row on k-pixel, whose store has the manifest MANIFEST."""
    campaign.tokenizer("k-pixel", artefacts={"tokens/k-pixel-1/shapes-2/manifest.json": MANIFEST})
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    return campaign


def gallery_folder(campaign: Any) -> Path:
    folder: Path = campaign.work_dir / "tiny" / "leaderboard" / "gallery"
    return folder


def page_of(campaign: Any) -> str:
    return write_report(campaign.work_dir, campaign.protocol, width=80).paths["index.html"].read_text("utf-8")


def images_of(page: str) -> list[dict[str, str | None]]:
    parser = _Images()
    parser.feed(page)
    return parser.found


class TestPage:
    def test_a_board_without_sheets_is_as_before(self, board: Any) -> None:
        page = page_of(board)
        assert "What the codes stand for" not in page
        assert "img-src" not in page
        gallery_folder(board).mkdir()
        assert page_of(board) == page

    def test_a_sheet_of_the_boards_store_is_shown_whole(self, board: Any) -> None:
        picture = drawn()
        write_sheet(gallery_folder(board), facts(picture), picture)
        page = page_of(board)
        (image,) = images_of(page)
        kind, _, content = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == picture
        height, width = pixels(picture).shape[:2]
        assert (image["width"], image["height"], image["alt"]) == (
            str(width),
            str(height),
            "Patches by code.",
        )
        assert "img-src data:" in page
        caption = re.sub(r"<[^>]+>", "", page[page.index("<figcaption>k-pixel") :].split("</figcaption>")[0])
        for said in ("k-pixel: Codes drawn at random.", "Seed 3", "6,000 images", "token store 0123456789ab"):
            assert said in caption
        assert page_of(board) == page

    def test_sheets_of_other_stores_are_left_out_by_name(self, board: Any) -> None:
        picture = drawn()
        write_sheet(gallery_folder(board), facts(picture, manifest_sha256=OTHER), picture)
        page = page_of(board)
        assert images_of(page) == []
        left_out = "k-pixel-random.png is left out: it was made from token store 0123456789ab, which no"
        assert f"{left_out} done cell of this board made." in page

    def test_sheets_of_modified_stores_are_left_out(self, board: Any) -> None:
        board.tokenizer(
            "k-feature", artefacts={"tokens/a/b/manifest.json": OTHER}, deviations=("data.mean=0",)
        )
        picture = drawn()
        other = facts(picture, tokenizer="k-feature", manifest_sha256=OTHER)
        write_sheet(gallery_folder(board), other, picture)
        page = page_of(board)
        assert images_of(page) == []
        assert "k-feature-random.png is left out" in page
        assert "which is here modified." in page

    def test_a_failed_cells_store_is_none_of_the_boards(self, campaign: Any) -> None:
        campaign.tokenizer("k-pixel", artefacts={"tokens/a/b/manifest.json": MANIFEST}, status="failed")
        picture = drawn()
        write_sheet(gallery_folder(campaign), facts(picture), picture)
        assert images_of(page_of(campaign)) == []

    def test_sheets_stand_in_the_boards_order_then_by_rule(self, board: Any) -> None:
        board.tokenizer("k-feature", artefacts={"tokens/a/b/manifest.json": OTHER})
        for tokenizer, manifest in (("k-feature", OTHER), ("k-pixel", MANIFEST)):
            for rule in ("farthest", "nearest", "random"):
                picture = drawn()
                told = facts(picture, tokenizer=tokenizer, rule=rule, manifest_sha256=manifest,
                             alt_text=f"{tokenizer} {rule}")  # fmt: skip
                write_sheet(gallery_folder(board), told, picture)
        assert [image["alt"] for image in images_of(page_of(board))] == [
            f"{tokenizer} {rule}"
            for tokenizer in ("k-pixel", "k-feature")
            for rule in ("random", "nearest", "farthest")
        ]

    def test_its_texts_are_escaped(self, board: Any) -> None:
        picture = drawn()
        hostile = '"><script>alert(1)</script>'
        write_sheet(gallery_folder(board), facts(picture, alt_text=hostile, rule_in_words=hostile), picture)
        page = page_of(board)
        assert "<script" not in page.partition("</main>")[0]
        (image,) = images_of(page)
        assert image["alt"] == hostile

    def test_a_new_sheet_takes_the_place_of_the_old(self, board: Any) -> None:
        for seed, picture in ((3, draw_sheet(sheet(seed=2))), (4, drawn())):
            write_sheet(gallery_folder(board), facts(picture, seed=seed), picture)
        assert sorted(path.name for path in gallery_folder(board).iterdir()) == [
            "k-pixel-random.json", "k-pixel-random.png",
        ]  # fmt: skip
        assert "Seed 4" in page_of(board)


class TestDamage:
    @pytest.fixture
    def paths(self, board: Any) -> tuple[Any, Path, Path]:
        picture = drawn()
        path = write_sheet(gallery_folder(board), facts(picture), picture)
        return board, path, path.with_suffix(".json")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"rule": "best"}, "is damaged: field rule: "),
            ({"seed": "3"}, "is damaged: field seed: "),
            ({"extra": 1}, "is damaged: field extra: "),
            ({"manifest_sha256": "zz"}, "is damaged: field manifest_sha256: "),
            ({"schema_version": 9}, "is damaged: field schema_version: "),
            ({"tokenizer": "k-feature"}, "holds the facts of k-feature-random"),
            ({"picture_sha256": "c" * 64}, "is not what k-pixel-random.json tells of"),
        ],
    )
    def test_facts_are_read_strictly(
        self, paths: tuple[Any, Path, Path], change: dict[str, Any], said: str
    ) -> None:
        board, _, path = paths
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(HarnessError, match=said) as error:
            page_of(board)
        assert f"gallery, or delete {path}" in str(error.value)

    def test_what_is_no_json_or_too_large_is_refused(self, paths: tuple[Any, Path, Path]) -> None:
        board, _, path = paths
        path.write_text("{")
        with pytest.raises(HarnessError, match="is damaged: Invalid JSON"):
            page_of(board)
        path.write_text(" " * 300_000)
        with pytest.raises(HarnessError, match="300000 bytes is too large"):
            page_of(board)

    def test_a_picture_that_is_gone_or_other_is_refused(self, paths: tuple[Any, Path, Path]) -> None:
        board, picture, _ = paths
        picture.write_bytes(picture.read_bytes() + b"more")
        with pytest.raises(HarnessError, match=r"png is not what k-pixel-random\.json tells of"):
            page_of(board)
        picture.unlink()
        with pytest.raises(HarnessError, match=r"png is missing, and k-pixel-random\.json tells of it"):
            page_of(board)

    def test_other_bytes_are_no_picture_even_where_their_digest_fits(self, board: Any) -> None:
        content = b"<svg onload=alert(1)>"
        write_sheet(gallery_folder(board), facts(content), content)
        with pytest.raises(HarnessError, match="is not what"):
            page_of(board)
