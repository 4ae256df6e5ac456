"""The page in a real browser, from disk: sorts, filters, chooses, opens, says nothing and asks for nothing.

Needs Chromium (Debian's package, or the one that CHROMIUM names) and the playwright package that drives it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.hand_made import FILL, HOSTILE, SORTED_BY, write_page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium here: install it, or name it with CHROMIUM", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")

NAMES = "#table1-table > tbody > tr > td:first-child"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # The sandbox needs rights that containers lack; the page is our own and from disk.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("browser")).as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; whatever it says or asks for fails the test that opened it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    # Long enough for a machine whose cores are all busy.
    page.set_default_timeout(60_000)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert heard == [address]


def _names(page: Any) -> list[str]:
    return [text.removeprefix("+").strip() for text in page.locator(NAMES).all_inner_texts()]


def _shown(page: Any, part: str) -> list[bool]:
    return [one.is_visible() for one in page.locator(f"#table1-table .place .{part}").all()]


def _wait_for_order(head: Any, order: str) -> None:
    """The column is sorted a moment after it was asked for: DataTables lets the browser draw before."""
    playwright.expect(head).to_have_attribute("aria-sort", order, timeout=60_000)


def test_every_table_is_live(page: Any) -> None:
    assert page.locator("table.sortable").count() == page.locator("table.dataTable").count() == 2
    assert page.locator("details a.more").count() == 0
    assert page.locator("#board-details").count() == 0


def test_columns_sort_by_mouse_and_back(page: Any) -> None:
    given = _names(page)
    head = page.locator("#table1-table > thead th.n")
    head.click()
    _wait_for_order(head, "descending")
    assert _names(page)[:3] == ["mim", "mapet", "mim"]
    head.click()
    _wait_for_order(head, "ascending")
    assert [name for name in _names(page) if name in ("mim", "mapet")] == ["mim", "mapet", "mim"]
    head.click()
    playwright.expect(head).not_to_have_attribute("aria-sort", "ascending", timeout=60_000)
    assert _names(page) == given


def test_columns_sort_by_keyboard(page: Any) -> None:
    head = page.locator("#board th", has_text="linear probe")
    target = head if head.get_attribute("tabindex") is not None else head.locator("[tabindex]").first
    target.focus()
    page.keyboard.press("Enter")
    _wait_for_order(head, "descending")
    tokenizers = page.locator("#board tbody tr td:nth-child(2)").all_inner_texts()
    assert tokenizers[0] == "k-feature"


def test_rows_are_filtered_and_counted(page: Any) -> None:
    view = page.locator("#table1")
    view.get_by_label("Filter rows").fill("k-feature")
    assert _names(page) == ["mim"]
    assert view.locator(".dt-info").inner_text() == "1 rows of 6"
    view.get_by_label("Filter rows").fill("no such row")
    assert page.locator("#table1-table tbody").inner_text() == "No row matches."
    view.get_by_label("Filter rows").fill("reproduced")
    assert _names(page) == ["mapet", "mim"]
    # The other tables keep their rows.
    assert page.locator("#board tbody tr").count() == 5


@pytest.mark.parametrize("choice", ["measured", "reported", "difference"])
def test_one_figure_is_chosen_and_sorted_by(page: Any, choice: str) -> None:
    parts = {"measured": 6, "reported": 5, "difference": 3}
    assert {part: sum(_shown(page, part)) for part in parts} == parts
    page.locator(f'#table1 input[value="{choice}"]').check()
    assert {part: sum(_shown(page, part)) for part in parts} == dict.fromkeys(parts, 0) | {
        choice: parts[choice]
    }
    head = page.locator("#table1-table > thead th.n")
    head.click()
    _wait_for_order(head, "descending")
    shown = page.locator("#table1-table tbody tr:not(.theirs) td.place").evaluate_all(
        "(cells) => cells.map((cell) => cell.innerText)"
    )
    values = [
        float(text.split()[0]) for text in shown if text and text[0] in "+-0123456789" and len(text) > 1
    ]
    ours = [value for value in values if round(value, 1) in SORTED_BY[choice]]
    assert ours == sorted(SORTED_BY[choice], reverse=True)


def test_the_choice_is_made_by_keyboard(page: Any) -> None:
    page.locator('#table1 input[value="together"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator('#table1 input[value="reported"]').is_checked()
    assert not any(_shown(page, "measured"))


def test_rows_open_and_close(page: Any) -> None:
    button = page.get_by_role("button", name="Seeds, records and command of mim, k-feature").last
    detail = page.locator(f"#{button.get_attribute('aria-controls')}")
    assert not detail.is_visible()
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    assert detail.is_visible()
    link = detail.get_by_role("link", name="record", exact=True).first
    assert Path(link.evaluate("(link) => decodeURIComponent(new URL(link.href).pathname)")).is_file()
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "false"
    assert not detail.is_visible()
    page.keyboard.press("Space")
    assert detail.is_visible()
    # An open row goes with its row.
    page.locator("#table1-table > thead th.n").click()
    after = button.locator("xpath=ancestor::tr/following-sibling::tr[1]")
    assert after.locator(f"#{detail.get_attribute('id')}").count() == 1


def test_a_missing_place_says_how_to_fill_it(page: Any) -> None:
    page.get_by_role("button", name="Seeds, records and command of cae, k-pixel").click()
    detail = page.locator("#table1-row-3")
    assert FILL in detail.inner_text()
    detail.get_by_role("button", name="Copy the command").click()
    playwright.expect(detail.locator("button")).to_have_text("Copied")


def test_a_configuration_opens_where_it_is_linked(page: Any) -> None:
    page.get_by_role("button", name="Seeds, records and command of mim, k-feature").last.click()
    page.locator("#table1-row-2").get_by_role("link", name="configuration").first.click()
    shown = page.locator("#configurations details[open]")
    assert shown.count() == 1
    assert "hyperparameters" not in shown.locator("summary").inner_text()
    shown.get_by_role("link", name="pretraining", exact=True).click()
    opened = page.locator("#configurations details[open]").last
    playwright.expect(opened.get_by_text("global_batch")).to_be_visible()


def test_hostile_names_are_text(page: Any) -> None:
    assert HOSTILE in _names(page)
    assert page.get_by_text(f"{HOSTILE} is left out.").is_visible()
    assert page.locator("main script").count() == 0
    button = page.get_by_role("button", name=f"Seeds, records and command of {HOSTILE}").first
    button.click()
    assert button.get_attribute("aria-expanded") == "true"


def test_a_phone_scrolls_tables_and_never_the_page(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("#board button.more").nth(1).click()
    page.locator("#table1 button.more").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#board-row-1").bounding_box()["width"] <= 360
    # The first column stays where it is: a long name must not cover what is read beside it.
    frozen = page.locator("#board tbody > tr > td:first-child:has(> .more), #table1-table td:has(> .more)")
    widths = frozen.evaluate_all("cells => cells.map(cell => cell.offsetWidth)")
    assert len(widths) > 5
    assert max(widths) <= 180


def test_it_is_dark_where_the_reader_is(page: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == "rgb(21, 25, 29)"
    page.emulate_media(media="print")
    assert not page.get_by_label("Filter rows").first.is_visible()


def test_everything_is_there_without_scripts(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    text = page.locator("main").text_content()
    page.locator("#table1-table-details summary").first.click()
    assert page.locator("#table1-row-0").is_visible()
    page.locator('#table1 input[value="difference"]').check()
    assert not page.locator("#table1-table .place .measured").first.is_visible()
    context.close()
    for expected in (HOSTILE, "65.00 ± 0.00", "+1.00", FILL, "peak_lr"):
        assert expected in text
