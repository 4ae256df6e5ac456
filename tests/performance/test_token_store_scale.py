"""Opening a token store and reading from it cost the same for many images as for few.

Two stores are compared in one run, each by its fastest of many tries: no absolute time is asserted.
`python -m tests.performance.token_store` measures the real sizes.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.performance.token_store import PHASES, table
from tests.tokenizers.made_stores import MadeIds, StandIn, write_made
from tokenizers import image_index
from tokenizers.store import open_store

FEW, MANY = 2_000, 200_000
MOST = 3.0  # times as long or as much, for a hundred times the images
BATCH = 512
BY = StandIn(grid=4)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stores")
    for count in (FEW, MANY):
        write_made(folder / str(count), MadeIds(count), tokenizer=BY)
    return folder / str(FEW), folder / str(MANY)


def ratio(few: Callable[[], object], many: Callable[[], object], *, tries: int) -> float:
    """Fastest try of `many` over that of `few`, by turns, so that what else runs disturbs both."""
    best = {few: float("inf"), many: float("inf")}
    for _ in range(tries):
        for action in best:
            started = time.perf_counter()
            action()
            best[action] = min(best[action], time.perf_counter() - started)
    return best[many] / best[few]


def test_opening_takes_no_longer(stores: tuple[Path, Path]) -> None:
    few, many = stores
    opening = [partial(open_store, folder, verify=False) for folder in (few, many)]
    assert ratio(*opening, tries=30) < MOST


def test_reading_random_rows_takes_no_longer(stores: tuple[Path, Path]) -> None:
    few, many = (open_store(folder, verify=False) for folder in stores)
    rng = np.random.default_rng(0)
    rows = {store: rng.integers(len(store), size=BATCH) for store in (few, many)}
    assert ratio(lambda: few.tokens(rows[few]), lambda: many.tokens(rows[many]), tries=200) < MOST


def test_finding_rows_takes_no_longer(stores: tuple[Path, Path]) -> None:
    few, many = (open_store(folder, verify=False) for folder in stores)
    rng = np.random.default_rng(0)
    ids = {
        store: [store.image_id(row) for row in rng.integers(len(store), size=BATCH)] for store in (few, many)
    }
    assert ratio(lambda: few.rows(ids[few]), lambda: many.rows(ids[many]), tries=100) < MOST


def peak(action: Callable[[], object]) -> int:
    """Most bytes that `action` held at once; the pages of a map are none of them."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


def test_opening_and_reading_hold_no_more(stores: tuple[Path, Path]) -> None:
    def open_and_read(folder: Path, *, verify: bool) -> None:
        store = open_store(folder, verify=verify)
        rows = store.rows([store.image_id(row) for row in range(0, len(store), len(store) // 64)])
        store.tokens(rows)
        store.labels(rows)

    few, many = stores
    for verify in (False, True):
        open_and_read(few, verify=verify)  # what is imported or cached once
        few_bytes = peak(lambda verify=verify: open_and_read(few, verify=verify))
        many_bytes = peak(lambda verify=verify: open_and_read(many, verify=verify))
        assert many_bytes < few_bytes + 65536, (few_bytes, many_bytes)


def test_writing_holds_what_its_docstring_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 48 bytes for each further image, when neither ids nor tokens are held by the caller."""
    few, many = 4_000, 34_000

    def write(name: str, count: int) -> int:
        return peak(lambda: write_made(tmp_path / name, MadeIds(count), tokenizer=BY))

    write("first", 10)  # what is imported or cached once
    assert write("whole blocks", many) <= 48 * many + 16e6
    # Blocks that few images fill too, so that what grows is what is kept of each image.
    monkeypatch.setattr(image_index, "_BLOCK", 512)
    assert (write("many", many) - write("few", few)) / (many - few) <= 48


def test_the_report_has_a_column_for_each_size(tmp_path: Path) -> None:
    results = {}
    for rows in (100, 1000):
        results[rows] = {name: phase(tmp_path / str(rows), rows, 4, 3) for name, phase in PHASES.items()}
        for numbers in results[rows].values():
            assert all(value > 0 for value in numbers.values())
            numbers |= {"peak_mib": 46.0, "own_mib": 26.0}
        results[rows]["disk"] = {
            path.name: path.stat().st_size
            for path in (tmp_path / str(rows)).iterdir()
            if path.suffix != ".json"
        }
    lines = table(results, 4).splitlines()
    assert lines[0] == "| images | 100 | 1,000 |"
    assert {line.count("|") for line in lines} == {4}
    disk = [line for line in lines if "bytes a token" in line]
    ids_text = sum(len(one) + 1 for one in MadeIds(1000))
    headers = 4 * 128
    expected = 2 + (8 + 24 + (8 + headers + ids_text) / 1000) / 4
    assert disk[0].split("|")[3].strip() == f"{expected:.3f}"
