"""Values that differ per trunk are the protocol's own; values that a view tries make rows of their own."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from leaderboard.figures import MUTED
from leaderboard.lineage import evaluation_name
from leaderboard.report import Report, read_board, write_report
from leaderboard.settings import Settings
from protocols.views import View, ViewCells

PARENT = ("tok-k-pixel",)


@pytest.fixture
def tried(campaign: Any) -> Any:
    """Two trunks; MaPeT's cutting point is 25 on the one, 20 on the other, where a view tries three more."""
    protocol = campaign.protocol
    sizes = protocol.trunks["vit-mini"]
    methods = {name: values for name, values in protocol.methods.items() if name != "mapet"}
    methods |= {"mapet@vit-mini": {"cutting_point": 25}, "mapet@vit-big": {"cutting_point": 20}}
    evaluations = dict(protocol.evaluations)
    finetune = evaluations.pop("finetune")
    evaluations = {
        "finetune@vit-mini": finetune,
        "finetune@vit-big": finetune.model_copy(update={"epochs": 3}),
        **evaluations,
        "other-domain": evaluations["linear-probe"].model_copy(update={"epochs": 4}),
        "never-run": evaluations["linear-probe"].model_copy(update={"epochs": 5}),
    }
    ablation = ViewCells(
        methods=("mapet",), tokenizers=("k-pixel",), trunks=("vit-big",), evaluations=("finetune",),
        hyperparameters={"cutting_point": (9, 20, 30, 100)},
    )  # fmt: skip
    plain = ViewCells(methods=("mapet",), tokenizers=("k-feature",), trunks=("vit-big",),
                      evaluations=("finetune",))  # fmt: skip
    changes = {
        "trunks": {"vit-mini": sizes, "vit-big": sizes}, "methods": methods, "evaluations": evaluations,
        "views": {"table6": View(title="Cutting point", cells=(plain, ablation))},
    }  # fmt: skip
    campaign.protocol = protocol.model_copy(update=changes)
    campaign.tokenizer("k-pixel")
    campaign.tokenizer("k-feature")
    return campaign


def _row(
    campaign: Any, cutting_point: int, *, correct: int, trunk: str = "vit-big", tokenizer: str = "k-pixel",
    seed: int = 0, **more: Any,
) -> str:  # fmt: skip
    """A pre-training of MaPeT with all three evaluations; the stem of its cells' ids."""
    stem = f"{trunk}-{tokenizer}-{cutting_point}-{seed}"
    use: dict[str, Any] = {"method": "mapet", "tokenizer": tokenizer, "trunk": trunk, "seed": seed, **more}
    setting = {"cutting_point": cutting_point, "depth": more.pop("depth", 12)}
    use.pop("depth", None)
    campaign.cell(
        f"{stem}-pretrain", "pretrain", parents=(f"tok-{tokenizer}",), hyperparameters=setting, **use
    )
    for stage, name in (("finetune", "finetune"), ("linear-probe", "linear-probe")):
        campaign.cell(f"{stem}-{name}", stage, parents=(f"{stem}-pretrain",), correct=correct, **use)
    return stem


def _rows(campaign: Any) -> dict[tuple[str, str, str], float]:
    rows = read_board(campaign.work_dir, campaign.protocol).rows
    names = zip(rows["trunk"], rows["tokenizer"], rows["variant"], strict=True)
    return dict(zip(names, rows["finetune_top1_percent"], strict=True))


def _report(campaign: Any) -> Report:
    return write_report(campaign.work_dir, campaign.protocol, width=80)


def test_each_trunks_own_values_are_the_protocols(tried: Any) -> None:
    _row(tried, 25, correct=100, trunk="vit-mini")
    stem = _row(tried, 20, correct=120)
    assert _rows(tried) == {("vit-mini", "k-pixel", ""): 50.0, ("vit-big", "k-pixel", ""): 60.0}
    record = tried.records[f"{stem}-finetune"]
    assert "evaluation:finetune@vit-big" in record.protocol.slices
    assert evaluation_name(record) == "finetune"


@pytest.mark.parametrize(
    ("trunk", "tokenizer", "cutting_point"),
    [("vit-mini", "k-pixel", 20), ("vit-mini", "k-pixel", 30), ("vit-big", "k-feature", 30),
     ("vit-big", "k-pixel", 31)],
)  # fmt: skip
def test_another_trunks_value_or_an_undeclared_one_stands_apart(
    tried: Any, trunk: str, tokenizer: str, cutting_point: int
) -> None:
    """20 is set for the other trunk; a view tries 30, but with one tokenizer on one trunk."""
    _row(tried, cutting_point, correct=100, trunk=trunk, tokenizer=tokenizer)
    board = read_board(tried.work_dir, tried.protocol)
    assert len(board.rows) == 0
    assert [other.differing for other in board.others] == [("method:mapet",)]
    assert list(board.others[0].rows["variant"]) == [""]


def test_an_evaluation_under_another_trunks_recipe_is_of_another_version(tried: Any) -> None:
    stem = _row(tried, 20, correct=120)
    slices = {"evaluation:finetune@vit-big": tried.protocol.slices["evaluation:finetune@vit-mini"]}
    tried.cell(f"{stem}-finetune", "finetune", method="mapet", tokenizer="k-pixel", trunk="vit-big",
               parents=(f"{stem}-pretrain",), correct=10, slices=slices)  # fmt: skip
    (other,) = read_board(tried.work_dir, tried.protocol).others
    assert other.differing == ("evaluation:finetune@vit-big",)


def test_a_slice_that_was_given_per_trunk_belongs_to_no_plugin(campaign: Any) -> None:
    """The record's protocol had MaPeT per trunk, the present one has it once: not the same, not a plug-in."""
    campaign.row("mapet", "k-pixel", finetune=100, probe=100, slices={"method:mapet@vit-mini": "old"})
    board = read_board(campaign.work_dir, campaign.protocol)
    assert len(board.rows) == 0
    assert board.others[0].differing == ("method:mapet@vit-mini",)


def test_tried_values_have_rows_of_their_own_in_the_views_order(tried: Any) -> None:
    for cutting_point, correct in ((100, 40), (30, 80), (9, 20), (20, 120)):
        _row(tried, cutting_point, correct=correct)
    assert list(_rows(tried).items()) == [
        (("vit-big", "k-pixel", ""), 60.0),
        (("vit-big", "k-pixel", "cutting_point 9"), 10.0),
        (("vit-big", "k-pixel", "cutting_point 30"), 40.0),
        (("vit-big", "k-pixel", "cutting_point 100"), 20.0),
    ]
    assert read_board(tried.work_dir, tried.protocol).others == ()


def test_variants_supersede_only_themselves(tried: Any) -> None:
    """A default that no protocol sets, `depth`, changed and was run again for one variant of three."""
    for cutting_point in (20, 30, 9):
        _row(tried, cutting_point, correct=100)
    use: dict[str, Any] = {"method": "mapet", "tokenizer": "k-pixel", "trunk": "vit-big",
                           "ended": "2026-06-01T00:00:00Z"}  # fmt: skip
    setting = {"cutting_point": 30, "depth": 6}
    tried.cell("deep", "pretrain", parents=PARENT, hyperparameters=setting, **use)
    tried.cell("deep-ft", "finetune", parents=("deep",), correct=150, **use)
    board = read_board(tried.work_dir, tried.protocol)
    superseded = board.runs[board.runs["standing"] == "superseded"]
    assert set(superseded["cell_id"]) == {
        "vit-big-k-pixel-30-0-finetune",
        "vit-big-k-pixel-30-0-linear-probe",
    }
    assert _rows(tried)[("vit-big", "k-pixel", "cutting_point 30")] == 75.0
    assert _rows(tried)[("vit-big", "k-pixel", "")] == 50.0


def test_every_variants_gain_is_over_the_one_random_trunk(tried: Any) -> None:
    tried.cell("floor", "linear-probe", method="scratch", trunk="vit-big", correct=20)
    _row(tried, 20, correct=100)
    _row(tried, 30, correct=60)
    rows = read_board(tried.work_dir, tried.protocol).rows.set_index(["method", "variant"])
    assert rows.loc[("mapet", ""), "linear-probe_gain_points"] == 40.0
    assert rows.loc[("mapet", "cutting_point 30"), "linear-probe_gain_points"] == 20.0


def test_every_rendering_names_the_variant(tried: Any) -> None:
    for cutting_point in (20, 30):
        for seed in (0, 1):
            _row(tried, cutting_point, correct=100 + cutting_point + 20 * seed, seed=seed)
    use: dict[str, Any] = {"method": "mapet", "tokenizer": "k-pixel", "trunk": "vit-big"}
    tried.cell("bad", "pretrain", parents=PARENT, hyperparameters={"cutting_point": 100}, status="failed",
               error="no memory", **use)  # fmt: skip
    report = _report(tried)
    # The main table is of the protocol's own setting; the others stand in the table of their view.
    assert re.search(r"^MaPeT +k-pixel +65\.00 ", report.terminal, re.M)
    assert "70.00" not in report.terminal
    assert "2 rows of other settings, which views of the protocol try, in their tables" in report.terminal
    in_view = report.full_terminal.partition("Table 6. Cutting point")[2]
    assert re.search(r"^MaPeT +k-pixel +30 .* 70\.00 \+- 7\.07 \(2\)", in_view, re.M)
    assert "failed: pretrain MaPeT, cutting point 100 k-pixel vit-big, seed 0: no memory" in report.terminal
    assert max(map(len, report.full_terminal.splitlines())) <= 80
    page = report.paths["index.html"].read_text(encoding="utf-8").partition('id="table6-table"')[2]
    assert re.search(r"MaPeT</td><td>k-pixel</td><td>30</td>.*70\.00 ± 7\.07", page)
    markdown = report.paths["board.md"].read_text(encoding="utf-8")
    assert re.search(r"^\| MaPeT \| k-pixel \| 30 \| .*70\.00 ± 7\.07 \(2\) \|", markdown, re.M)
    for name in ("board.csv", "runs.csv"):
        lines = csv.DictReader(io.StringIO(report.paths[name].read_text(encoding="utf-8")))
        assert {"", "cutting_point 30"} <= {line["variant"] for line in lines}
    content = json.loads(report.json)
    assert {row["variant"] for row in content["rows"]} == {"", "cutting_point 30", "cutting_point 100"}
    figure = report.paths["probe.svg"].read_text(encoding="utf-8")
    # The two seeds of the protocol's own setting.
    assert len(re.findall(rf"<use [^>]*fill: {MUTED}; stroke: {MUTED}", figure)) == 2


def test_columns_are_the_defaults_and_what_was_measured(tried: Any) -> None:
    stem = _row(tried, 20, correct=100)
    _row(tried, 25, correct=100, trunk="vit-mini")
    names = [one.name for one in read_board(tried.work_dir, tried.protocol).evaluations]
    assert names == ["finetune", "linear-probe"]
    tried.cell("transfer", "linear-probe", evaluation="other-domain", method="mapet", tokenizer="k-pixel",
               trunk="vit-big", parents=(f"{stem}-pretrain",), correct=70)  # fmt: skip
    board = read_board(tried.work_dir, tried.protocol)
    assert [one.name for one in board.evaluations] == ["finetune", "linear-probe", "other-domain"]
    rows = board.rows.set_index("trunk")
    assert rows.loc["vit-big", "other-domain_top1_percent"] == 35.0
    assert rows.loc["vit-big", "linear-probe_top1_percent"] == 50.0
    # What only some rows are asked for is in no row's total.
    assert list(rows["row_wall_seconds"]) == [170.0, 170.0]
    report = _report(tried)
    assert "| vit-mini | 50.00 | 50.00 | - | - | - | - | - | 1 |" in report.paths["board.md"].read_text()
    terminal = report.terminal
    # Not asked of every row: a trunk of which nothing was measured has no table of it.
    assert terminal.count("other-domain") == 1
    assert terminal.index("vit-big:") < terminal.index("other-domain")
    assert max(map(len, terminal.splitlines())) <= 80


def test_several_values_that_are_tried_together() -> None:
    cells = ViewCells(methods=("cae",), tokenizers=("t",), trunks=("v",), evaluations=("finetune",),
                      hyperparameters={"decoder_depth": (2, 4), "alignment_weight": (0.5,)})  # fmt: skip
    settings = Settings(values={("cae", "v"): {"decoder_depth": 1, "mask_count": 9}}, tried=(cells,))

    def variant(**used: Any) -> str | None:
        return settings.variant(
            method="cae", tokenizer="t", trunk="v", used={"mask_count": 9} | used, recipe={}
        )

    assert variant(decoder_depth=1) == ""
    assert variant(decoder_depth=4) == "decoder_depth 4"
    # The protocol leaves the weight to the method's default.
    assert variant(decoder_depth=1, alignment_weight=2.0) == ""
    assert variant(decoder_depth=2, alignment_weight=0.5) == "decoder_depth 2, alignment_weight 0.5"
    assert variant(decoder_depth=4, mask_count=8) is None
    assert settings.variants == ("decoder_depth 2", "decoder_depth 4", "alignment_weight 0.5")


def _rates(*rates: float) -> ViewCells:
    return ViewCells(methods=("mim",), tokenizers=("k-pixel",), trunks=("vit-mini",),
                     evaluations=("finetune",), pretraining={"peak_lr": rates})  # fmt: skip


def test_a_recipe_that_a_study_tries_is_a_row_of_its_own_and_another_is_no_row(campaign: Any) -> None:
    study = _rates(0.002, 0.004)
    campaign.protocol = campaign.protocol.model_copy(
        update={"views": {"sensitivity": View(title="Rates", cells=(study,), is_study=True)}}
    )
    campaign.tokenizer("k-pixel")
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel"}
    for name, recipe in (("own", {}), ("tried", {"peak_lr": 0.002}), ("other", {"peak_lr": 0.003}),
                         ("both", {"peak_lr": 0.002, "epochs": 7})):  # fmt: skip
        campaign.cell(f"{name}-pretrain", "pretrain", parents=PARENT, recipe=recipe, **use)
        campaign.cell(f"{name}-finetune", "finetune", parents=(f"{name}-pretrain",), correct=len(name), **use)
    board = read_board(campaign.work_dir, campaign.protocol)
    rows = dict(zip(board.rows["variant"], board.rows["finetune_top1_percent"], strict=True))
    assert rows == {"": 1.5, "peak_lr 0.002": 2.5}
    assert [(other.differing, len(other.rows)) for other in board.others] == [(("pretraining",), 1)] * 2


def test_a_recipe_that_is_not_what_its_digest_says_is_on_no_board(campaign: Any) -> None:
    views = {"s": View(title="R", cells=(_rates(0.002),))}
    campaign.protocol = campaign.protocol.model_copy(update={"views": views})
    campaign.tokenizer("k-pixel")
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel"}
    campaign.cell(
        "p", "pretrain", parents=PARENT, recipe={"peak_lr": 0.002}, slices={"pretraining": "f" * 64}, **use
    )
    campaign.cell("f", "finetune", parents=("p",), correct=5, **use)
    board = read_board(campaign.work_dir, campaign.protocol)
    assert not len(board.rows)
    assert [other.differing for other in board.others] == [("pretraining",)]
