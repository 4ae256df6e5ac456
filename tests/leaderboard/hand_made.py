"""A board with one view in which every verdict occurs, as a page shows it; made without a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from leaderboard.contents import Contents
from leaderboard.grids import Column, Grid
from leaderboard.page import to_html
from leaderboard.report import read_board
from leaderboard.sections import Block, Section
from leaderboard.view_table import PLACE_COLUMNS, ViewTable
from leaderboard.views import views_sections
from tests.leaderboard.conftest import Campaign, with_two_seeds

HOSTILE = "<script>alert(1)</script>"
FILL = "python run_benchmark.py --protocol tiny --views table1 --methods cae"
SORTED_BY = {"measured": [65.0, 62.5, 70.0], "reported": [64.9, 62.6, 69.0], "difference": [0.1, -0.1, 1.0]}


def every_verdict() -> ViewTable:
    """Five rows of ours in one column, reproduced to stale, and one of another work's."""
    seeds = "0: {0}; 1: {0}"
    ours: list[dict[str, Any]] = [
        {"method": "mapet", "tokenizer": "k-pixel", "mean": 65.0, "reported": 64.9, "verdict": "reproduced",
         "cell_ids": "mapet-k-pixel-0-finetune; mapet-k-pixel-1-finetune"},
        {"method": "mim", "tokenizer": "k-pixel", "mean": 62.5, "reported": 62.6, "verdict": "reproduced",
         "cell_ids": "mim-k-pixel-0-finetune; mim-k-pixel-1-finetune"},
        {"method": "mim", "tokenizer": "k-feature", "mean": 70.0, "reported": 69.0, "verdict": "off",
         "cell_ids": "mim-k-feature-0-finetune; mim-k-feature-1-finetune"},
        {"method": "cae", "tokenizer": "k-pixel", "reported": 66.0, "verdict": "missing", "command": FILL},
        {"method": HOSTILE, "tokenizer": "k-pixel", "verdict": "stale", "seed_values": "0: 25.00"},
    ]  # fmt: skip
    other = {"method": "Another work", "tokenizer": "", "is_ours": False, "reported": 99.0}
    lines = []
    for row, given in enumerate([*ours, other]):
        blank = dict.fromkeys(PLACE_COLUMNS, "") | {"row": row, "column": 0, "is_ours": True}
        numbers = dict.fromkeys(("mean", "sd", "standard_error", "reported", "difference", "images"), None)
        line = blank | numbers | {
            "row_label": f"{given['method']}, {given['tokenizer']}", "column_label": "fine-tuning",
            "trunk": "vit-mini", "evaluation": "finetune", "metric": "top1_percent", "seeds": 0,
        } | given  # fmt: skip
        if line["mean"] is not None:
            line |= {"seeds": 2, "sd": 0.0, "images": 200, "seed_values": seeds.format(line["mean"])}
            line["difference"] = line["mean"] - line["reported"]
        lines.append(line)
    floats = ["mean", "sd", "standard_error", "reported", "difference"]
    return ViewTable(
        name="table1",
        title="Every verdict",
        row_headers=("method", "tokenizer"),
        rows=tuple((line["method"], line["tokenizer"] or "-") for line in lines),
        columns=("fine-tuning",),
        frame=pd.DataFrame(lines, columns=list(PLACE_COLUMNS)).astype(dict.fromkeys(floats, "float64")),
        notes=("A note of the table.",),
    )


def alarming() -> Section:
    """A section with an alert and one red cell of text from a record."""
    grid = Grid((Column("field", False), Column("rows", True)), (("epochs", "2"), (f"{HOSTILE} ±", "1")))
    block = Block(name="unlike", caption="What differs", grid=grid, frame=pd.DataFrame({"field": ["epochs"]}),
                  red=frozenset({(1, 0)}))  # fmt: skip
    return Section(name="fairness", title="Fairness", alerts=(f"{HOSTILE} is left out.",), blocks=(block,))


def campaign_contents(work_dir: Path) -> tuple[Campaign, Contents]:
    """Records of two seeds under `work_dir`, one method with a hostile name; what a page shows of them."""
    campaign = with_two_seeds(Campaign(work_dir))
    campaign.row(HOSTILE, "k-pixel", finetune=50, probe=50)
    table = every_verdict()
    return campaign, Contents(
        protocol=campaign.protocol,
        board=read_board(work_dir, campaign.protocol),
        tables=(table,),
        table_sections=views_sections([table]),
        sections=(alarming(),),
    )


def write_page(work_dir: Path) -> Path:
    """The page of all that, in its place beside the cells."""
    campaign, contents = campaign_contents(work_dir)
    folder = campaign.cells.parent / "leaderboard"
    folder.mkdir(parents=True)
    page = folder / "index.html"
    page.write_text(to_html(contents, cells_dir=campaign.cells, page_dir=folder), encoding="utf-8")
    return page
