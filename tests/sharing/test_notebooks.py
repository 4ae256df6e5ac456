"""`load_records` and `load_curves`: what each line and column is, and the page that shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from benchmark.merging import merge_bundle
from leaderboard import load_curves, load_records
from leaderboard.bundle import open_bundle
from leaderboard.notebook import COLUMNS, CURVE_COLUMNS, LONG_COLUMNS
from leaderboard.record import Compliance, Metric, write_record
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.made_records import IMAGES, Lab
from tests.leaderboard.further_records import further_records

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "notebooks.md"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Three rows of mini, two seeds each, in a folder called `runs`."""
    work_dir = tmp_path_factory.mktemp("notebook") / "runs"
    made = Lab(work_dir, methods=("scratch", "mim", "mapet"), seeds=(0, 1), protocol=load_protocol("mini"))
    for number, path in enumerate(sorted(made.cells.glob("pretrain-*/metrics.jsonl"))):
        lines = [
            {"step": step, "steps": 4, "epoch": step / 2, "loss": 1 / step + number} for step in (1, 2, 3, 4)
        ]
        again = lines[:3] + [{**line, "loss": 9.0} for line in lines[2:]]  # went on from step 2
        path.write_text("".join(json.dumps(line) + "\n" for line in again) + '{"step": 5, "lo')
    return made


def first(lab: Lab, name: str) -> str:
    """The cell of mim on k-pixel, seed 0."""
    return next(
        cell.id
        for cell in lab.plan
        if (cell.evaluation or cell.stage, cell.method, cell.tokenizer, cell.seed)
        == (name, "mim", "k-pixel", 0)
    )


def test_every_cell_has_its_line_with_typed_columns(lab: Lab) -> None:
    cells = load_records(lab.work_dir, "mini")
    assert list(cells.cell_id) == sorted(lab.records)
    assert list(cells.columns) == [*COLUMNS, "images_per_second", "top1_percent"]
    assert cells.attrs["units"] == {"images_per_second": "images/s", "top1_percent": "%"}
    by_id = cells.set_index("cell_id")
    trained, probe = lab.records[first(lab, "pretrain")], by_id.loc[first(lab, "linear-probe")]
    assert probe.pretraining_cell == trained.cell_id
    assert probe.tokenising_cell == next(iter(trained.parents))
    assert (probe.stage, probe.evaluation, probe.method, probe.tokenizer) == (
        "linear-probe", "linear-probe", "mim", "k-pixel",
    )  # fmt: skip
    assert (probe.top1_percent, probe.images, probe.seed) == (25.0, IMAGES, 0)
    assert by_id.loc[trained.cell_id].isna().top1_percent
    assert by_id.loc[next(iter(trained.parents))].isna().seed
    assert (str(cells.seed.dtype), str(cells.top1_percent.dtype)) == ("Int64", "float64")
    assert probe.ended == pd.Timestamp("2026-01-02T03:04:05Z")
    same = cells[cells.evaluation == "linear-probe"].groupby("method").slices_digest.nunique()
    assert set(same) == {1, 2}, "scratch and mim on two tokenizers"
    assert load_records(str(lab.work_dir), ["mini"]).equals(cells)


def test_a_metric_that_methods_measure_in_two_units_has_both(tmp_path: Path) -> None:
    for record in further_records():
        if record.stage == "pretrain" and record.seed == 0:
            write_record(tmp_path / "mini" / "cells" / record.cell_id, record)
    assert load_records(tmp_path).attrs["units"] == {"loss": "nats or squared error"}


def test_long_has_a_line_for_each_metric_with_its_unit(lab: Lab) -> None:
    frame = load_records(lab.work_dir, metrics="long")
    assert list(frame.columns) == [*COLUMNS, *LONG_COLUMNS]
    (line,) = frame[frame.cell_id == first(lab, "finetune")].to_dict("records")
    assert {name: line[name] for name in LONG_COLUMNS} == {
        "metric": "top1_percent", "value": 25.0, "n": IMAGES, "unit": "%",
    }  # fmt: skip


def test_what_is_not_comparable_says_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "runs", methods=["mim"])
    changed = Compliance(status="modified", deviations=("pretraining.epochs=9",))
    lab.finish(
        lab.cell("pretrain"), compliance=changed, artefacts={"checkpoints/backbone.safetensors": "0" * 64}
    )
    lab.finish(lab.cell("finetune"), status="failed", error="of a full disk\nat line 3")
    out = tmp_path / "one.tar"
    lab.bundle(out, [lab.id("pretrain")])
    with open_bundle(out) as bundle:
        merge_bundle(bundle, tmp_path / "merged")
    cells = load_records(lab.work_dir).set_index("cell_id")
    probe, failed = cells.loc[lab.id("linear-probe")], cells.loc[lab.id("finetune")]
    assert (probe.compliance, probe.deviations) == ("modified", "pretraining.epochs=9")
    assert probe.stale_reason == f"parent {lab.id('pretrain')} was made anew since"
    assert (failed.status, failed.error) == ("failed", "of a full disk")
    assert pd.isna(failed.top1_percent)
    assert set(load_records(tmp_path / "merged").merged_from) == {"one.tar"}
    assert set(cells.merged_from) == {""}


def test_no_metric_and_no_time_of_a_strangers_record_hides_what_a_column_says(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "runs", methods=["mim"])
    odd = {name: Metric(value=0.5, n=1, unit="%") for name in ("status", "seed", "wall_seconds", "n")}
    attempt = lab.records[lab.id("finetune")].attempts[0].model_copy(update={"ended": "yesterday"})
    lab.finish(lab.cell("finetune"), metrics=odd, attempts=(attempt,))
    line = load_records(lab.work_dir).set_index("cell_id").loc[lab.id("finetune")]
    assert (line.status, line.seed, line.n) == ("done", 0, 0.5)
    assert line.wall_seconds != 0.5
    assert pd.isna(line.ended)
    assert set(odd) <= set(load_records(lab.work_dir, metrics="long").metric)


def test_mistakes_are_told(tmp_path: Path, lab: Lab) -> None:
    with pytest.raises(HarnessError, match="no cells under"):
        load_records(tmp_path)
    with pytest.raises(HarnessError, match="did you mean 'mini'"):
        load_records(lab.work_dir, "mimi")
    with pytest.raises(HarnessError, match="unknown form of metrics 'broad'"):
        load_records(lab.work_dir, metrics="broad")  # type: ignore[arg-type]


def test_curves_have_each_step_once_and_the_later_line(lab: Lab) -> None:
    curves = load_curves(lab.work_dir, "mini")
    assert list(curves.columns) == [*CURVE_COLUMNS, "steps"]
    cell_id = min(one for one in lab.records if one.startswith("pretrain-"))
    assert list(curves[curves.cell_id == cell_id].loss) == [1.0, 0.5, 9.0, 9.0]
    assert str(curves.step.dtype) == "Int64"


def test_lines_that_are_none_of_a_metrics_file_are_passed_over(lab: Lab, tmp_path: Path) -> None:
    """Records and curves may be a stranger's, out of a bundle."""
    cell = tmp_path / "mini" / "cells" / "one"
    cell.mkdir(parents=True)
    empty = load_curves(tmp_path)
    assert list(empty.columns) == list(CURVE_COLUMNS)
    assert (str(empty.cell_id.dtype), str(empty.step.dtype)) == ("object", "Int64")
    lines = (
        '{"step": 1, "loss": "low", "lr": 0.5, "seconds": null, "note": "text"}', "[2]", '{"step": true}',
        f'{{"step": {10**30}, "loss": 1}}', '{"step": 2, "phase": 3}', f'{{"step": 3, "loss": {10**400}}}',
        '{"step": 1, "phase": "k-means", "cell_id": 7}',
    )  # fmt: skip
    (cell / "metrics.jsonl").write_text("\n".join(lines))
    curves = load_curves(tmp_path)
    assert list(curves.columns) == list(CURVE_COLUMNS)
    assert curves[["cell_id", "phase", "step"]].to_numpy().tolist() == [
        ["one", "", 1], ["one", "", 3], ["one", "k-means", 1],
    ]  # fmt: skip
    assert curves.lr.dropna().tolist() == [0.5]
    assert curves.loss.isna().all()
    assert len(load_records(lab.work_dir, ["mini", "mini"])) == len(lab.records), "named twice, read once"


def test_the_page_runs_and_names_every_column(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text()
    for columns in (COLUMNS, LONG_COLUMNS, CURVE_COLUMNS):
        for name, what in columns.items():
            assert f"| `{name}` | {what} |" in page
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(lab.work_dir.parent)
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out.split()
    assert said[:3] == ["mean", "std", "count"]
    assert said.count("25.0") == 5, "a row of scratch, and two tokenizers of two methods"
    assert (lab.work_dir.parent / "curves.png").read_bytes().startswith(b"\x89PNG")
    axes = names["axes"]
    lines = axes.get_lines()  # type: ignore[attr-defined]
    assert [line.get_label() for line in lines] == [
        "mapet on k-feature", "mapet on k-pixel", "mim on k-feature", "mim on k-pixel",
    ]  # fmt: skip
    assert all(len(line.get_xdata()) == 4 for line in lines)


def test_importing_leaderboard_loads_no_pandas() -> None:
    code = "import sys, leaderboard; print({'pandas', 'numpy', 'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
