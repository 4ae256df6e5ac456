"""The site of docs/ builds without a warning, and shows every page as the repository's own view does."""

from __future__ import annotations

import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.page_blocks import DOCS, MARKDOWN, ROOT

CONFIG = ROOT / ".ci" / "mkdocs.yml"
SOURCES = sorted(DOCS.rglob("*.md"))
# Elements that two readers of Markdown disagree about where a page is written carelessly (no empty line
# before a list, three spaces instead of four), by markdown-it's name for them: both views must have as many.
SHAPES = {"table_open": "table", "list_item_open": "li", "code_block": "pre", "fence": "pre", "image": "img"}


class Seen(HTMLParser):
    """Of a built page: its anchors, where its links lead, what it loads, and the elements of its article."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.own_links: list[str] = []  # of the article, without the navigation
        self.loads: list[str] = []
        self.elements: dict[str, int] = {}
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            if self._depth:
                self.own_links.append(given["href"])
        if "src" in given or (tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect")):
            self.loads.append(given.get("src", given.get("href", "")))
        self._depth += tag == "article"
        if self._depth:
            self.elements[tag] = self.elements.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. Strict: a warning of any kind ends the build."""
    folder = tmp_path_factory.mktemp("site")
    with mock.patch.dict(os.environ, {"NO_MKDOCS_2_WARNING": "1"}):
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("mkdocs").addHandler(handler)
        try:
            config: Any = load_config(str(CONFIG), site_dir=str(folder))
            build(config)
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
    assert not warnings, "\n".join(warnings)
    return folder


@pytest.fixture(scope="module")
def seen(site: Path) -> dict[str, Seen]:
    """Every built page of docs/, by its path below the site."""
    names = [source.relative_to(DOCS).with_suffix(".html").as_posix() for source in SOURCES]
    return {name: Seen((site / name).read_text(encoding="utf-8")) for name in names}


def test_every_page_stands_in_the_navigation() -> None:
    """Those that do not would be warned of; those that stand twice would not."""
    named = re.findall(r": ([\w/-]+\.md)$", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(source.relative_to(DOCS).as_posix() for source in SOURCES)


def test_every_link_between_pages_and_every_anchor_leads_somewhere(site: Path, seen: dict[str, Seen]) -> None:
    """To files that are not pages, too: boards, tables, pictures."""
    lost = []
    for name, page in seen.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                assert link.startswith(("https://", "http://", "mailto:")), link
                continue
            path = (site / name).parent / target if target else site / name
            if not path.exists():
                lost.append(f"{name}: {link}")
            elif anchor and path.suffix == ".html":
                key = os.path.relpath(path, site)
                there = seen[key] if key in seen else Seen(path.read_text(encoding="utf-8"))
                if anchor not in there.anchors:
                    lost.append(f"{name}: {link}")
    assert not lost


@pytest.mark.parametrize("source", [ROOT / "README.md", *SOURCES], ids=lambda path: path.name)
def test_anchors_are_those_of_the_repositorys_view_too(source: Path) -> None:
    """Which makes them of a heading's letters, digits, hyphens and spaces."""
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([^)]+)\)", source.read_text(encoding="utf-8")):
        page = source.parent / target if target else source
        headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_the_site_asks_no_network(site: Path, seen: dict[str, Seen]) -> None:
    for name, page in seen.items():
        assert any(one.endswith("site.css") for one in page.loads), "errors are one line, and wrap by it"
        assert [one for one in page.loads if one.startswith(("http", "//"))] == [], name
    sheets = [site / "site.css", *(site / "assets" / "stylesheets").glob("*.css")]
    assert len(sheets) > 1
    assert all("url(http" not in sheet.read_text(encoding="utf-8") for sheet in sheets)


def test_boards_are_part_of_the_site_as_they_are(site: Path) -> None:
    boards = sorted((DOCS / "results").glob("*/index.html"))
    assert boards
    for board in boards:
        assert (site / board.relative_to(DOCS)).read_bytes() == board.read_bytes()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_a_page_has_the_same_tables_lists_and_blocks_in_both_views(
    source: Path, seen: dict[str, Seen]
) -> None:
    page = seen[source.relative_to(DOCS).with_suffix(".html").as_posix()]
    expected: dict[str, int] = dict.fromkeys(SHAPES.values(), 0)
    for token in MARKDOWN.parse(source.read_text(encoding="utf-8")):
        for one in (token, *(token.children or ())):
            if one.type in SHAPES:
                expected[SHAPES[one.type]] += 1
    assert {name: page.elements.get(name, 0) for name in expected} == expected


def test_the_readme_leads_to_pages_that_the_start_page_leads_to(seen: dict[str, Seen]) -> None:
    """Who starts on the site misses no page that the README's map names."""
    named = re.findall(r"\]\(docs/([\w/-]+)\.md[)#]", (ROOT / "README.md").read_text(encoding="utf-8"))
    here = {link.partition("#")[0] for link in seen["index.html"].own_links}
    assert named
    assert {f"{name}.html" for name in named} <= here
