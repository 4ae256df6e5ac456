"""Methods beyond the protocol's own six: further ones, those without a tokenizer, and those of plug-ins."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmark.commands.options import Parser, add_protocol, add_selection
from benchmark.plan import make_plan
from benchmark.selection import select
from leaderboard.captions import main_rows
from leaderboard.compare_rows import compare_rows
from leaderboard.compare_text import to_text
from leaderboard.compute import compute_section
from leaderboard.contents import Contents, collect
from leaderboard.export import to_csv
from leaderboard.fairness import left_out, prove
from leaderboard.further_rows import PLUGINS_VIEW, listed_names, shown_views
from leaderboard.grids import board_grid, tokenizer_grid
from leaderboard.learning_curves import learning_curve_section
from leaderboard.page import to_html
from leaderboard.page_rows import row_command
from leaderboard.record import Record, TokenizerUse, plugin_words
from leaderboard.row_names import row_key, row_name
from leaderboard.runs import RowKey
from leaderboard.tables import Board
from leaderboard.view_layout import lay_out
from leaderboard.view_table import ViewTable
from leaderboard.views import not_run_note, view_tables, views_sections
from protocols.errors import HarnessError
from protocols.views import View
from tests.leaderboard.further_records import (
    FURTHER,
    MINI,
    SEEDS,
    VIEW,
    as_plugin,
    further_cells,
    further_records,
    without,
)
from tests.leaderboard.planned_records import board_of, planned_records

HOSTILE = "<script>alert(1)</script>"
FILE, PACKAGE = "ring_mim.py", "fair-mim-rings"


def table_of(board: Board) -> ViewTable:
    return next(one for one in view_tables(board, MINI) if one.name == VIEW)


@pytest.fixture(scope="module")
def board() -> Board:
    """All nine methods, three seeds."""
    return board_of(MINI, further_records())


@pytest.fixture(scope="module")
def plugged() -> Board:
    """The six, MaskFeat, and two of plug-ins: one on tokens from a file, one without from a package."""
    every = further_records()
    return board_of(
        MINI,
        [
            *without(every, ("splitmask", "beit-v2")),
            *as_plugin(every, "beit-v2", name="ring-mim", title=HOSTILE, plugin=FILE),
            *as_plugin(every, "maskfeat", name="ring-edges", title="Ring edges", plugin=PACKAGE),
        ],
    )


def cells_of(command: str) -> set[str]:
    """The ids of what a command runs, read as the command line reads it."""
    words = shlex.split(command)
    assert words[:2] == ["python", "run_benchmark.py"]
    parser = Parser(prog="run", description="")
    add_protocol(parser)
    add_selection(parser)
    given = parser.parse_args(words[2:])
    chosen = select(
        MINI,
        methods=given.methods,
        tokenizers=given.tokenizers,
        trunks=given.trunks,
        evaluations=given.evaluations,
        views=given.views,
        seeds=map(int, given.seeds) if given.seeds else None,
    )
    return {cell.id for cell in make_plan(MINI, chosen)}


class TestWhatWasNotRun:
    def test_a_board_of_the_protocols_own_methods_lacks_nothing(self) -> None:
        """No row of a further method, no table that repeats the others': a line, and it runs them."""
        board = board_of(MINI, without(further_records(), FURTHER))
        assert VIEW not in [table.name for table in view_tables(board, MINI)]
        (shown,) = [one for one in shown_views(board, MINI) if one.name == VIEW]
        note = not_run_note(shown, MINI)
        sentence, _, command = note.partition(" To run: ")
        assert sentence == "Not run, and so without rows: SplitMask, MaskFeat and BEiT v2."
        wanted = {cell.id for cell in further_cells() if cell.method in FURTHER and cell.seed == 0}
        assert {one for one in cells_of(command) if "tokenise" not in one} == wanted

    def test_the_line_stands_under_the_board(self, tmp_path: Path) -> None:
        protocol = MINI.model_copy(update={"views": {name: MINI.views[name] for name in ("table2", VIEW)}})
        scratch = [
            one for one in further_records() if one.method is not None and one.method.name == "scratch"
        ]
        for records, lines in ((scratch, 1), ([], 0)):
            board = board_of(protocol, records)
            contents = collect(board, protocol, lambda record: None, work_dir=tmp_path)
            assert len([note for note in contents.notes if "SplitMask" in note]) == lines
            assert [table.name for table in contents.tables] == ["table2"]

    def test_one_that_failed_has_rows_and_the_others_a_line(self) -> None:
        every = further_records()
        failed = [
            one.model_copy(update={"status": "failed", "error": "no memory", "metrics": {}})
            for one in every
            if one.stage == "pretrain" and one.method is not None and one.method.name == "splitmask"
        ]
        table = table_of(board_of(MINI, [*without(every, FURTHER), *failed]))
        mine = table.frame[table.frame["method"] == "splitmask"]
        assert set(mine["verdict"]) == {"missing"}
        assert all("--redo-failed" in command for command in mine["command"])
        assert not {"maskfeat", "beit-v2"} & set(table.frame["method"])
        assert table.notes[-1].startswith("Not run, and so without rows: MaskFeat and BEiT v2. To run: ")


class TestWithoutATokenizer:
    def test_it_has_one_row_with_its_costs(self, board: Board) -> None:
        (row,) = board.rows[board.rows["method"] == "maskfeat"].to_dict("records")
        assert (row["tokenizer"], row["finetune_seeds"]) == ("", 3)
        # One second each for the pre-training and two evaluations; there are no tokens to make.
        assert (row["row_wall_seconds"], row["pretraining_images_seen"]) == (3.0, 1.0)
        assert row["linear-probe_gain_points"] == pytest.approx(
            row["linear-probe_top1_percent"]
            - board.rows.set_index("method").loc["scratch", "linear-probe_top1_percent"]
        )
        rows = main_rows(board)
        assert (rows["method"].iloc[0], rows["method"].iloc[-1]) == ("scratch", "maskfeat")

    def test_its_row_is_named_without_one(self, board: Board) -> None:
        key = RowKey(trunk="vit-mini", tokenizer="", method="maskfeat")
        assert row_name(key) == "maskfeat/vit-mini"
        # The board knows of it by its rows, the protocol by its view.
        for known in (board, board_of(MINI, [])):
            assert row_key(MINI, known, "maskfeat/vit-mini") == row_key(MINI, known, "MaskFeat") == key
            for given in ("maskfeat/k-pixel/vit-mini", "maskfeat/k-pixel"):
                with pytest.raises(HarnessError, match=r"no tokenizer \(maskfeat, scratch\)"):
                    row_key(MINI, known, given)

    def test_it_has_one_row_also_in_cells_that_name_tokenizers(self, board: Board) -> None:
        cells = MINI.views["table1"].cells[0].model_copy(update={"methods": ("mim", "maskfeat", "scratch")})
        protocol = MINI.model_copy(update={"views": {"one": View(title="One", cells=(cells,))}})
        (shown,) = shown_views(board, protocol)
        assert shown.view is not None
        rows = lay_out(protocol, shown.view).rows
        assert [(row.method, row.tokenizer) for row in rows] == [
            ("scratch", ""), ("mim", "k-pixel"), ("mim", "k-feature"), ("maskfeat", ""),
        ]  # fmt: skip

    def test_its_commands_name_none(self, board: Board) -> None:
        (row,) = board.rows[board.rows["method"] == "maskfeat"].itertuples(index=False)
        command = row_command(MINI, row, evaluations=["finetune"], seeds=SEEDS, plugins=board.plugin_files)
        assert "--tokenizers" not in command
        frame = table_of(board).frame
        assert not frame[frame["method"] == "maskfeat"]["command"].str.contains("--tokenizers").any()

    def test_its_table_says_what_a_difference_from_it_is(self, board: Board) -> None:
        notes = " ".join(table_of(board).notes)
        assert "Without a tokenizer: MaskFeat, whose targets are made from the images" in notes
        alone = table_of(board_of(MINI, without(further_records(), ["maskfeat"]))).notes
        assert "Without a tokenizer" not in " ".join(alone)

    def test_two_rows_are_compared_and_the_difference_is_named(self, board: Board) -> None:
        for names in (("maskfeat", "mim/k-pixel"), ("beit-v2/k-feature", "maskfeat")):
            compared = compare_rows(board, MINI, lambda record: None, a=names[0], b=names[1])
            assert compared.differ_in == ("method", "tokenizer")
            assert "maskfeat/vit-mini is pre-trained without a tokenizer" in to_text(compared)
        scratch = compare_rows(board, MINI, lambda record: None, a="scratch", b="mim/k-pixel")
        assert "without a tokenizer" not in to_text(scratch)

    @pytest.mark.parametrize(
        ("row", "evaluation"),
        [("maskfeat", "knn"), ("splitmask/k-pixel", "digits"), ("mim/k-pixel", "knn")],
    )
    def test_the_command_for_what_two_rows_lack_runs_it(
        self, board: Board, row: str, evaluation: str
    ) -> None:
        """Also where no view asks for it."""
        with pytest.raises(HarnessError, match="measure what is missing with: ") as caught:
            compare_rows(board, MINI, lambda record: None, a=row, b="scratch", evaluations=[evaluation])
        command = str(caught.value).partition("missing with: ")[2]
        start = f"{evaluation}-{row.replace('/', '-')}-"
        assert any(cell.startswith(start) for cell in cells_of(command)), command

    def test_what_no_command_measures_is_said(self) -> None:
        """A view's own values are measured in what the view asks for."""
        asked = {"methods": ["mim"], "tokenizers": ["k-feature"], "views": ["sensitivity"], "seeds": [0]}
        records = planned_records(
            MINI, make_plan(MINI, select(MINI, **asked)), lambda cell: {"top1_percent": 50}
        )
        board = board_of(MINI, [*records, *further_records()])
        tried = "mim/k-feature@peak_lr=0.002"
        with pytest.raises(HarnessError, match="no view of protocol mini asks for finetune of mim/k-feat"):
            compare_rows(
                board, MINI, lambda record: None, a=tried, b="mim/k-feature", evaluations=["finetune"]
            )

    def test_all_rows_are_proven_alike(self, board: Board) -> None:
        (proof,) = [one for one in prove(view_tables(board, MINI), board) if one.name == VIEW]
        assert len(proof.labels) == 16
        assert proof.left_out == {}

    @pytest.mark.parametrize(("method", "stays"), [("maskfeat", False), ("scratch", True)])
    def test_one_without_a_pretraining_is_no_row_of_a_method(self, method: str, stays: bool) -> None:
        """The random trunk alone has none; a record that says otherwise proves nothing."""
        every = further_records()
        mine = [one for one in every if one.method is not None and one.method.name == method]
        untrained = [one.model_copy(update={"parents": {}}) for one in mine if one.stage != "pretrain"]
        board = board_of(MINI, [*without(every, [method]), *untrained])
        table = table_of(board)
        assert set(table.frame[table.frame["method"] == method]["seeds"]) == {3}
        out = {table.rows[row][0] for _, row in left_out(prove([table], board))}
        assert out == (set() if stays else {"MaskFeat"})

    def test_one_that_was_pretrained_on_other_images_is_left_out(self) -> None:
        other = [
            one.model_copy(update={"data_set": one.data_set.model_copy(update={"digest": "others"})})
            if one.stage == "pretrain" and one.method is not None and one.method.name == "maskfeat"
            else one
            for one in further_records()
        ]
        board = board_of(MINI, other)
        table = table_of(board)
        assert {table.rows[row][0] for _, row in left_out(prove([table], board))} == {"MaskFeat"}

    def test_its_loss_has_a_figure_and_a_unit_of_its_own(self, board: Board, tmp_path: Path) -> None:
        trained = [run.record for run in board.cells if run.key.method in ("maskfeat", "mim")]
        for record in trained:
            folder = tmp_path / record.cell_id
            folder.mkdir(exist_ok=True)
            lines = ['{"epoch": 0.5, "loss": 2.0}', '{"epoch": 1.0, "loss": 1.0}']
            (folder / "metrics.jsonl").write_text("\n".join(lines))
        section = learning_curve_section(board, tmp_path)
        assert section is not None
        assert [one.name for one in section.figures] == [
            "learning-curves-k-pixel-vit-mini", "learning-curves-k-feature-vit-mini",
            "learning-curves-no-tokenizer-vit-mini-squared error",
        ]  # fmt: skip
        assert "vit-mini, without a tokenizer, MaskFeat: " in section.figures[2].caption, "it has no legend"
        assert "MaskFeat from 2.00 to 1.00" in section.figures[2].alt

    def test_it_stands_in_the_panel_of_every_tokenizer(self, board: Board) -> None:
        section = compute_section(board, MINI, ())
        assert section is not None
        figure = section.figures[0]
        for panel in re.split(r"; (?=k-feature)", figure.alt):
            assert "MaskFeat" in panel
            assert "SplitMask" in panel
        assert "MaskFeat: without a tokenizer, and so the same in every panel." in figure.caption


class TestPlugIns:
    def test_their_rows_follow_the_protocols_and_are_marked(self, plugged: Board) -> None:
        table = table_of(plugged)
        names = [texts[0] for texts in table.rows]
        assert names[-4:] == [
            "MaskFeat", f"{HOSTILE} (plug-in {FILE})", f"{HOSTILE} (plug-in {FILE})",
            f"Ring edges (plug-in {PACKAGE})",
        ]  # fmt: skip
        assert [texts[1] for texts in table.rows][-4:] == ["-", "k-pixel", "k-feature", "-"]
        mine = table.frame[table.frame["method"].isin(["ring-mim", "ring-edges"])]
        assert (len(mine), set(mine["seeds"]), set(mine["verdict"])) == (6, {3}, {""})
        shown = [row[0] for row in board_grid(main_rows(plugged), plugged.evaluations).rows]
        assert shown.count(f"{HOSTILE} (plug-in {FILE})") == 2
        assert "MaskFeat" in shown

    def test_their_commands_name_a_file_but_no_package(self, plugged: Board) -> None:
        frame = table_of(plugged).frame.set_index("method")["command"]
        assert all(f" --plugin {FILE} --views {VIEW} " in one for one in frame["ring-mim"])
        assert not frame[["ring-edges", "mim", "maskfeat"]].str.contains("--plugin").any()

    def test_they_are_proven_like_the_others(self, plugged: Board) -> None:
        assert left_out(prove(view_tables(plugged, MINI), plugged)) == frozenset()

    def test_the_page_escapes_their_titles_and_the_files_name_them(
        self, plugged: Board, tmp_path: Path
    ) -> None:
        tables = view_tables(plugged, MINI)
        contents = Contents(
            protocol=MINI, board=plugged, tables=tables, table_sections=views_sections(tables)
        )
        page = to_html(contents, cells_dir=tmp_path, page_dir=None)
        assert HOSTILE not in page
        assert f"&lt;script&gt;alert(1)&lt;/script&gt; (plug-in {FILE})" in page
        lines = to_csv(contents)["board.csv"].splitlines()
        assert lines[0].startswith("method,variant,tokenizer,trunk,method_title,plugin,")
        assert [line for line in lines if line.startswith(f"ring-edges,,,vit-mini,Ring edges,{PACKAGE},")]
        assert [line for line in lines if line.startswith("mim,,k-pixel,vit-mini,,,")]

    def test_a_board_without_any_has_no_columns_for_them(self, board: Board) -> None:
        assert not {"plugin", "method_title"} & set(board.rows.columns)

    def test_a_protocol_whose_views_take_none_gives_them_a_table_of_their_own(self, plugged: Board) -> None:
        protocol = MINI.model_copy(update={"views": {"table1": MINI.views["table1"]}})
        tables = {one.name: one for one in view_tables(plugged, protocol)}
        assert list(tables) == ["table1", PLUGINS_VIEW]
        frame = tables[PLUGINS_VIEW].frame
        assert set(frame["method"]) == {run.key.method for run in plugged.cells}
        assert set(frame["verdict"]) == {""}
        assert not frame["command"].str.contains("--views").any()
        assert left_out(prove(tables.values(), plugged)) == frozenset()

    def test_a_tokenizer_of_a_plug_in_joins_with_the_methods_that_have_a_record_of_it(self) -> None:
        use = TokenizerUse(name="rings", digest="r", source_digest="r", plugin=FILE)
        every = further_records()
        mine = [
            one.model_copy(update={"cell_id": f"rings-{one.cell_id}", "tokenizer": use, "parents": {}})
            for one in without(every, set(MINI.names("methods")) - {"mim"})
            if one.tokenizer is not None and one.tokenizer.name == "k-pixel"
        ]
        board = board_of(MINI, [*without(every, FURTHER), *mine])
        (shown,) = [one for one in shown_views(board, MINI) if one.name == VIEW]
        assert shown.view is not None
        names = [(row.method, row.tokenizer) for row in lay_out(MINI, shown.view).rows]
        assert [name for name in names if name[1] == "rings"] == [("mim", "rings")]
        stores = [row[0] for row in tokenizer_grid(board.tokenizers).rows]
        assert f"rings (plug-in {FILE}), test images" in stores
        assert "k-pixel, test images" in stores
        (row,) = board.rows[board.rows["tokenizer"] == "rings"].itertuples(index=False)
        command = row_command(MINI, row, evaluations=["finetune"], seeds=SEEDS, plugins=board.plugin_files)
        assert f" --plugin {FILE} --methods mim --tokenizers rings " in command

    def test_commands_name_files_and_folders_and_no_package(self) -> None:
        brought = ["pack/ring.py", "pack/edges.py", PACKAGE, "", FILE]
        assert plugin_words(brought) == ["--plugin", "pack", FILE]
        assert plugin_words([PACKAGE, ""]) == []

    def test_two_of_one_title_are_told_apart_by_their_names(self) -> None:
        every = further_records()
        mine = [
            one
            for name in ("rings", "rings-wide")
            for one in as_plugin(every, "maskfeat", name=name, title="Rings", plugin=FILE)
        ]
        board = board_of(MINI, [*without(every, FURTHER), *mine])
        assert [texts[0] for texts in table_of(board).rows][-2:] == [
            f"Rings rings (plug-in {FILE})", f"Rings rings-wide (plug-in {FILE})",
        ]  # fmt: skip

    def test_a_later_record_of_the_harness_itself_is_no_plug_in(self) -> None:
        every = without(further_records(), FURTHER)
        old = as_plugin(every, "mim", name="mim", title="Mine", plugin=FILE)
        renewed = [one.model_copy(update={"cell_id": f"x-{one.cell_id}"}) for one in every]
        assert board_of(MINI, old).plugins["mim"].plugin == FILE
        assert board_of(MINI, [*old, *renewed]).plugins == {}


def test_imported_weights_are_compared_with_no_row(board: Board) -> None:
    with pytest.raises(HarnessError, match="is of imported weights"):
        row_key(MINI, board, "imported-published/vit-mini")


def test_names_are_listed_as_prose() -> None:
    assert listed_names([]) == ""
    assert listed_names(["maskfeat"]) == "MaskFeat"
    assert listed_names(["maskfeat", "mine"], {"mine": "Mine (plug-in mine.py)"}) == (
        "MaskFeat and Mine (plug-in mine.py)"
    )


def test_records_from_before_there_were_plug_ins_are_read_as_they_were() -> None:
    content = further_records()[-1].model_dump(mode="json")
    for use in ("method", "tokenizer"):
        for name in ("title", "plugin"):
            (content[use] or {}).pop(name, None)
    assert Record.model_validate(content) == further_records()[-1]
