"""Weights from elsewhere under a protocol's evaluations: the same measurement, apart from every row."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark import finetune, probe
from benchmark.cli import build_parser, main
from benchmark.commands.imports import AskedImports, asked_imports, with_known_imports
from benchmark.convert import convert
from benchmark.imported import Imports, clean_label, known_cells
from benchmark.imported_weights import imported_trunk
from benchmark.plan import Cell
from benchmark.record_cell import write_cell_record
from benchmark.recorded_ids import ids_of_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import begun_with, present_sources
from leaderboard.frames import Order
from leaderboard.imported_rows import imported_frame
from leaderboard.imported_view import imported_grid
from leaderboard.lineage import Lineage
from leaderboard.record import PREDICTIONS_NAME, Record, read_record, write_record
from leaderboard.report import write_report
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol
from tests.benchmark.conftest import TINY, Line
from tests.benchmark.made_classifiers import as_reference, small_vit

pytestmark = pytest.mark.usefixtures("boards_without_drawings")
STAGES = {"finetune": finetune.run, "linear-probe": probe.run}
SEED = 3


def asked(work_dir: Path, *words: str) -> AskedImports:
    """What a command with these options asks for."""
    given = ["--protocol", TINY, "--work-dir", str(work_dir), "--seeds", str(SEED), *words]
    found = asked_imports(build_parser("run").parse_args(given))
    assert found is not None
    return found


def context_of(cell: Cell, protocol: Protocol, work_dir: Path) -> CellContext:
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    return CellContext(cell=cell, protocol=protocol, runtime=runtime, work_dir=work_dir)


def run(imports: AskedImports, work_dir: Path) -> list[Record]:
    """Every cell in this process, as a worker runs it."""
    imports.keep(work_dir)
    records = []
    for cell in imports.cells:
        context = context_of(cell, imports.protocol, work_dir)
        result = STAGES[cell.stage](context)
        records.append(
            write_cell_record(cell, imports.protocol, context.runtime, work_dir, status="done", result=result)
        )
    return records


@dataclass(frozen=True)
class Measured:
    """A row of our own, its trunk converted, and the same trunk imported from that file."""

    row: Line
    file: Path
    records: dict[str, Record]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, copied: Callable[[Path], Line]) -> Measured:
    row = copied(tmp_path_factory.mktemp("imports") / "runs")
    file = tmp_path_factory.mktemp("elsewhere") / "MIM of ours (v2).safetensors"
    convert(row.context("pretrain").folder, file)
    records = run(asked(row.work_dir, "--from-checkpoint", str(file)), row.work_dir)
    return Measured(row, file, {record.stage: record for record in records})


def predictions(work_dir: Path, record: Record) -> bytes:
    return (work_dir / "tiny" / "cells" / record.cell_id / PREDICTIONS_NAME).read_bytes()


def test_imported_weights_are_measured_as_the_row_that_they_come_from(measured: Measured) -> None:
    """The same trunk and seed give the same prediction for every image, fine-tuned and probed."""
    for name in ("finetune", "linear-probe"):
        own = read_record(measured.row.context(name).folder)
        assert own is not None
        assert predictions(measured.row.work_dir, measured.records[name]) == predictions(
            measured.row.work_dir, own
        )


def test_the_record_says_what_it_is_and_what_is_not_known(measured: Measured) -> None:
    record = measured.records["linear-probe"]
    assert record.method is not None
    assert record.method.name == "imported-mim-of-ours-v2"
    assert (record.tokenizer, record.parents, record.compliance.status) == (None, {}, "imported")
    sha256 = record.resolved["hyperparameters"]["checkpoint_sha256"]
    assert record.resolved["checkpoint"] == {
        "file": measured.file.name, "sha256": sha256, "key": "", "form": "timm's"
    }  # fmt: skip
    first, second = record.compliance.deviations
    assert first == f"weights of {measured.file.name} (SHA-256 {sha256})"
    assert "with which objective and recipe" in second
    assert ids_of_record(record) == {record.cell_id}
    assert str(measured.file.parent) not in record.model_dump_json()


def test_the_board_shows_them_apart_and_compares_them_with_nothing(
    measured: Measured, tmp_path: Path
) -> None:
    work_dir, protocol = measured.row.work_dir, measured.row.protocol
    forged = measured.records["linear-probe"]
    folder = work_dir / "tiny" / "cells" / forged.cell_id
    # What a record claims of its own compliance must not bring it among the protocol's rows.
    write_record(folder, forged.model_copy(update={"compliance": forged.compliance.model_copy(
        update={"status": "clean", "deviations": ()})}))  # fmt: skip
    try:
        report = write_report(work_dir, protocol, sources=present_sources(), out_dir=tmp_path, width=100)
    finally:
        write_record(folder, forged)
    board = report.board
    assert set(board.rows["method"]) == {"mim"}
    assert set(board.runs["method"]) == {"mim"}
    assert not len(board.modified)
    frame = pd.read_csv(tmp_path / "imported.csv")
    assert list(frame["label"]) == ["mim-of-ours-v2"] * 2
    assert list(frame["evaluation"]) == ["finetune", "linear-probe"]
    assert frame["sha256"].nunique() == 1
    for name in ("finetune", "linear-probe"):
        top1 = measured.records[name].metrics["top1_percent"].value
        assert frame.set_index("evaluation")["top1_percent"][name] == pytest.approx(top1)
    for text in (report.terminal, report.full_terminal, (tmp_path / "board.md").read_text(),
                 (tmp_path / "index.html").read_text()):  # fmt: skip
        assert text.count("mim-of-ours-v2") >= 2
        assert "Imported weights" in text
        assert "compared with none" in text.replace("\n", " ")


def test_a_row_under_other_values_says_so_behind_its_label(measured: Measured) -> None:
    records = list(measured.records.values())
    current = measured.row.protocol.slices | {"evaluation:finetune": "another"}
    order = Order(methods=(), tokenizers=(), trunks=(), evaluations=("finetune", "linear-probe"))
    frame = imported_frame(records, Lineage(records), current, order)
    labels = [row[0] for row in imported_grid(frame).rows]
    assert labels == [
        "mim-of-ours-v2 (not as in the current protocol: evaluation:finetune)", "mim-of-ours-v2"
    ]  # fmt: skip


def test_other_commands_know_the_cells(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir, protocol = measured.row.work_dir, measured.row.protocol
    ids = {record.cell_id for record in measured.records.values()}
    assert {cell.id for cell in known_cells(work_dir, protocol)} == ids
    given = ["--protocol", TINY, "--work-dir", str(work_dir)]
    assert main(["status", *given, "--json"]) == 0
    states = {one["id"]: one["state"] for one in json.loads(capsys.readouterr().out)["cells"]}
    assert {states[one] for one in ids} == {"done"}
    assert main(["status", *given, "--json", "--methods", "mim"]) == 0
    assert not ids & {one["id"] for one in json.loads(capsys.readouterr().out)["cells"]}
    assert main(["plan", *given, "--seeds", "3", "4", "--from-checkpoint", str(measured.file), "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert sorted(one["state"] for one in cells) == ["done", "done", "to do", "to do"]
    assert main(["cell", min(ids), *given]) == 0
    assert capsys.readouterr().out == f"{min(ids)} is done\n"


def test_a_bundle_carries_them(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir, ids = measured.row.work_dir, [record.cell_id for record in measured.records.values()]
    bundle, there = tmp_path / "imports.tar", tmp_path / "there"
    given = ["--protocol", TINY, "--work-dir"]
    assert main(["bundle", str(bundle), *given, str(work_dir), "--cells", *ids]) == 0
    assert main(["merge", str(bundle), *given, str(there)]) == 0
    capsys.readouterr()
    for record in measured.records.values():
        assert read_record(there / "tiny" / "cells" / record.cell_id) == record
    assert {cell.id for cell in known_cells(there, measured.row.protocol)} == set(ids)


def test_the_id_is_of_the_files_bytes_and_its_label(measured: Measured, tmp_path: Path) -> None:
    cells = measured.row.work_dir / "tiny" / "cells"
    before = sorted(cells.iterdir())
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(measured.file.read_bytes())
    same = asked(tmp_path, "--from-checkpoint", str(moved), "--label", "MIM_of ours v2")
    assert {cell.id for cell in same.cells} == {record.cell_id for record in measured.records.values()}
    other = asked(tmp_path, "--from-checkpoint", str(moved), "--label", "mine")
    assert [cell.method for cell in other.cells] == ["imported-mine"] * 2
    assert not {cell.id for cell in same.cells} & {cell.id for cell in other.cells}
    assert sorted(cells.iterdir()) == before, "to ask is to write nothing"
    assert begun_with(other.cells[0], present_sources(), {}) == {}


def test_what_was_asked_for_is_found_before_it_is_done(measured: Measured, tmp_path: Path) -> None:
    """The file itself may be gone by then: the weights lie in the work dir."""
    file = tmp_path / "mine.safetensors"
    file.write_bytes(measured.file.read_bytes())
    imports = asked(tmp_path / "runs", "--from-checkpoint", str(file), "--evaluations", "linear-probe")
    imports.keep(tmp_path / "runs")
    file.unlink()
    (cell,) = known_cells(tmp_path / "runs", imports.protocol)
    assert cell == imports.cells[0]
    kept = imported_trunk(Imports(work_dir=tmp_path / "runs", protocol="tiny"), cell)
    own = measured.row.export
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[name], own[name]) for name in own)
    (path,) = (tmp_path / "runs" / "tiny" / "imported").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HarnessError, match="the record says"):
        imported_trunk(Imports(work_dir=tmp_path / "runs", protocol="tiny"), cell)
    path.unlink()
    with pytest.raises(HarnessError, match="run again with --from-checkpoint and the file whose SHA-256 is"):
        imported_trunk(Imports(work_dir=tmp_path / "runs", protocol="tiny"), cell)
    # Under another protocol's values they would be other cells.
    changed = load_protocol(TINY, overrides=["evaluations.linear-probe.epochs=2"])
    assert known_cells(tmp_path / "runs", changed) == []


def test_a_classifier_that_began_with_imported_weights(measured: Measured, tmp_path: Path) -> None:
    """Its card names no objective, and the commands that made it."""
    folder = measured.row.work_dir / "tiny" / "cells" / measured.records["finetune"].cell_id
    card = convert(folder, tmp_path / "tuned.safetensors").card.read_text()
    for part in ("their objective is not known", "| compliance | imported: weights of MIM of ours",
                 "--from-checkpoint 'MIM of ours (v2).safetensors' --label mim-of-ours-v2",
                 "| these weights |"):  # fmt: skip
        assert part in card


def test_set_is_said_beside_where_the_weights_come_from(measured: Measured, tmp_path: Path) -> None:
    words = ["--from-checkpoint", str(measured.file), "--evaluations", "linear-probe"]
    (cell,) = asked(tmp_path, *words, "--set", "evaluations.linear-probe.epochs=2").cells
    assert cell.is_modified
    (untouched,) = asked(tmp_path, *words, "--set", "evaluations.finetune.epochs=3").cells
    assert not untouched.is_modified
    imports = asked(tmp_path, *words, "--set", "evaluations.linear-probe.epochs=2")
    (record,) = run(imports, tmp_path)
    assert record.compliance.status == "imported"
    assert record.compliance.deviations[-1] == "evaluations.linear-probe.epochs=2"


# Which files fit -----------------------------------------------------------------------------------------


def saved(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model": weights}, path)
    return path


@torch.inference_mode()
def test_a_vit_of_timm_without_layer_scale_computes_the_same(tmp_path: Path) -> None:
    """A supervised one, with a head and in the reference's names: features are those of plain timm."""
    model = small_vit(pool="token", layer_scale=None)
    file = saved(tmp_path / "supervised.pth", as_reference(model.state_dict()))
    imports = asked(tmp_path / "runs", "--from-checkpoint", str(file))
    imports.keep(tmp_path / "runs")
    context = context_of(imports.cells[-1], imports.protocol, tmp_path / "runs")
    frozen = probe.frozen_trunk(context, features="patch-mean")
    images = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    expected = model.forward_features(images)[:, 1:].mean(dim=1)
    torch.testing.assert_close(frozen(images), expected, rtol=0, atol=1e-5)
    said = "; ".join(imports.imports[0].deviations)
    for part in ("has no layer scale: ones in its place", "head.bias, head.weight", "taken to have 2",
                 "attn.q and attn.kv joined"):  # fmt: skip
        assert part in said


def trunk_weights() -> dict[str, Tensor]:
    whole = small_vit(pool="token").state_dict()
    return {name: one for name, one in whole.items() if not name.startswith("head.")}


def grown(name: str, *shape: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {name: torch.zeros(shape)}


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Any]], tuple[str, ...], str]] = {
    "another grid": (
        grown("pos_embed", 1, 50, 16), (),
        r"pos_embed\) of a 7 x 7 grid, not 4 x 4 \(images of 28\); nothing is",
    ),
    "another MLP": (grown("blocks.0.mlp.fc1.weight", 64, 16), (), "MLP width 64, not 32"),
    "a tensor is missing": (
        lambda weights: {name: one for name, one in weights.items() if name != "cls_token"},
        (), "missing: cls_token",
    ),
    "several sets": (dict, (), r"with convert FILE OUT\.safetensors, and choose"),
    "methods beside it": (dict, ("--methods", "mim"), "--methods: nothing is pre-trained"),
    "views beside it": (dict, ("--views", "none"), "--views: nothing is pre-trained"),
    "too many labels": (dict, ("--label", "a", "b"), "--label gives 2 names for 1 files"),
    "a label of nothing": (dict, ("--label", "?!"), "has no letter or digit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    change, words, said = REFUSED[name]
    weights = change(trunk_weights())
    content = {"model": weights, "model_ema": weights} if name == "several sets" else {"model": weights}
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(HarnessError, match=said):
        asked(tmp_path / "runs", "--from-checkpoint", str(tmp_path / "weights.pth"), *words)
    assert not (tmp_path / "runs").exists()


def test_a_fine_tuned_classifier_can_be_fine_tuned_and_not_probed(tmp_path: Path) -> None:
    file = saved(tmp_path / "tuned.pth", dict(small_vit(pool="avg").state_dict()))
    with pytest.raises(
        HarnessError, match=r"linear-probe look at tokens .* --evaluations finetune, or measure it"
    ):
        asked(tmp_path, "--from-checkpoint", str(file))
    (cell,) = asked(tmp_path, "--from-checkpoint", str(file), "--evaluations", "finetune").cells
    assert cell.evaluation == "finetune"


def test_two_files_of_one_name_need_labels(tmp_path: Path) -> None:
    weights = trunk_weights()
    (tmp_path / "a").mkdir()
    one, two = saved(tmp_path / "vit.pth", weights), saved(tmp_path / "a" / "vit.pth", weights)
    with pytest.raises(HarnessError, match="two files would be called 'vit'"):
        asked(tmp_path, "--from-checkpoint", str(one), str(two))
    words = ("--from-checkpoint", str(one), str(two), "--label", "one", "two")
    assert [cell.method for cell in asked(tmp_path, *words).cells] == ["imported-one"] * 2 + [
        "imported-two"
    ] * 2


def test_cells_of_launchers_and_clusters_say_too_what_set_moved(tmp_path: Path) -> None:
    """They find the cell by the note in its folder, and not by the options of --from-checkpoint."""
    file, moved = saved(tmp_path / "vit.pth", trunk_weights()), "evaluations.finetune.epochs=3"
    imports = asked(tmp_path, "--from-checkpoint", str(file), "--set", moved)
    imports.keep(tmp_path)
    given = ["--protocol", TINY, "--work-dir", str(tmp_path), "--seeds", str(SEED), "--set", moved]
    known = with_known_imports([], build_parser("run").parse_args(given), imports.protocol, imports.selection)
    assert known == imports.cells
    assert {cell.stage: cell.is_modified for cell in known} == {"finetune": True, "linear-probe": False}


def test_a_dry_run_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "vit.pth", trunk_weights())
    (tmp_path / "cluster.yaml").write_text("{scheduler: local, time: 01:00:00, gpus_per_node: 0}")
    words = ["--protocol", TINY, "--work-dir", str(tmp_path / "runs"), "--from-checkpoint", str(file)]
    assert main([*words, "--cluster", str(tmp_path / "cluster.yaml"), "--dry-run"]) == 0
    assert "attempt finetune-imported-vit-" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_heads_that_a_header_states_must_be_the_trunks(tmp_path: Path) -> None:
    weights = trunk_weights()
    source = tmp_path / "plain.safetensors"
    save_file(weights, source)
    convert(source, tmp_path / "four.safetensors", heads=4)
    with pytest.raises(
        HarnessError, match=r"has 4 attention heads \(as its header says\), and vit-tiny-test"
    ):
        asked(tmp_path, "--from-checkpoint", str(tmp_path / "four.safetensors"))


def test_labels_are_parts_of_names() -> None:
    assert clean_label("MaPeT_tiny (k-CLIP).v2") == "mapet-tiny-k-clip-.v2"
    assert len(clean_label("x" * 100)) == 40


def test_a_label_alone_means_nothing() -> None:
    options = Namespace(from_checkpoint=[], label=["mine"])
    with pytest.raises(HarnessError, match="give a FILE with it"):
        asked_imports(options)
